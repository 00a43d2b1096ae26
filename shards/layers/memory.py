"""Memory that kernels work in: large, aligned to lines of the cache, committed as it is first written."""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray


CHUNK_BYTES = 1 << 26
"""``lasting_zeros`` asks the system for so many bytes at a time: many huge pages, of which few stay empty."""
_LINE = 64
"""Bytes of a line of the cache, and of the longest vector."""


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros, which cost nothing until they are written. MemoryError where there is not so much.

    numpy's own large arrays begin 16 bytes into a page, so that vectors of 64 bytes lie across two lines of
    the cache, and are backed by huge pages, so that a byte that is written commits two megabytes.
    """
    nbytes = math.prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize
    if not nbytes:
        return np.zeros(shape, dtype)
    return np.frombuffer(_mapped(nbytes), dtype).reshape(shape)


class _Lasting:
    """Zeros for what is written once and read for long, such as weights: packed into huge pages, which make
    reading a fifth faster. A chunk goes when all that it holds has gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk: weakref.ref[NDArray[np.uint8]] | None = None
        self._used = 0

    def __call__(self, nbytes: int) -> NDArray[np.uint8]:
        """(nbytes,), aligned to 64 bytes. MemoryError where there is not so much."""
        with self._lock:
            chunk = None if self._chunk is None else self._chunk()
            if chunk is None or self._used + nbytes > len(chunk):
                memory = _mapped(max(nbytes, CHUNK_BYTES))
                with contextlib.suppress(AttributeError, OSError):  # not Linux, or it has no huge pages
                    memory.madvise(mmap.MADV_HUGEPAGE)
                chunk = np.frombuffer(memory, np.uint8)
                self._chunk, self._used = weakref.ref(chunk), 0
            first = self._used
            self._used += -(-nbytes // _LINE) * _LINE
            return chunk[first : first + nbytes]


lasting_zeros = _Lasting()


def _mapped(nbytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"no memory for {nbytes} bytes: {error}") from None
