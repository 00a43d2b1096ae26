"""Memory that kernels work in: large, at the start of a page, committed as it is first written."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros, which cost nothing until they are written. MemoryError where there is not so much.

    numpy's own large arrays begin 16 bytes into a page, so that vectors of 64 bytes lie across two lines of
    the cache, and are backed by huge pages, so that a byte that is written commits two megabytes.
    """
    nbytes = math.prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize
    if not nbytes:
        return np.zeros(shape, dtype)
    try:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"no memory for {nbytes} bytes: {error}") from None
    return np.frombuffer(memory, dtype).reshape(shape)
