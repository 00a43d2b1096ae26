"""The package's C kernels as one library, and their threads."""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...swarm.runtime.c_build import is_built, load_library

_SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-ffp-contract=off",)
_first_byte: Any = ctypes.c_char.from_buffer
WORKER_NAME = "swarm-worker"
"""What Linux calls the threads of every ThreadPool: ``SN_WORKER_NAME`` in ``csrc/pool.h``."""


@cache
def library() -> ctypes.CDLL:
    """Linears, attention, blocks and their threads. Raises NativeUnavailableError, with the reason."""
    return load_library("shards", sorted(_SOURCES.glob("*.c")), FLAGS)


def is_ready() -> bool:
    """Whether ``library`` would answer without compiling (or fail without trying)."""
    return is_built("shards", sorted(_SOURCES.glob("*.c")), FLAGS)


def address(array: np.ndarray) -> int:
    """Where the first value of a C-contiguous ``array`` lies: ten times as fast as ``array.ctypes``, where it
    may be written to."""
    if array.flags.carray and array.nbytes:
        return ctypes.addressof(_first_byte(array))
    return array.ctypes.data


class ThreadPool:
    """``threads`` that compute (``csrc/pool.c``), the caller's own among them: none are started for 1. They
    end with this.

    For one caller at a time, which gives ``handle`` to the kernels. Between the parts of a call they spin for
    some 50 us at most, then sleep. They are not pinned: nodes that share a machine would end up on the same
    cores.
    ``width``: how many of them compute, all at first; the others sleep. Results are the same for every width.
    Raises OSError where the system refuses threads, NativeUnavailableError without the library.
    """

    def __init__(self, threads: int) -> None:
        self.handle: int | None = None
        if threads > 1:
            kernels = library()
            kernels.sn_pool_new.restype = ctypes.c_void_p
            kernels.sn_pool_free.argtypes = (ctypes.c_void_p,)
            self.handle = kernels.sn_pool_new(ctypes.c_int32(threads))
            if self.handle is None:
                raise OSError(f"cannot start {threads - 1} threads")
            # At exit they go with the process: one that still computes would be waited for.
            weakref.finalize(self, kernels.sn_pool_free, self.handle).atexit = False

    @property
    def width(self) -> int:
        return library().sn_pool_width(ctypes.c_void_p(self.handle)) if self.handle is not None else 1

    @width.setter
    def width(self, threads: int) -> None:
        if self.handle is not None:
            library().sn_pool_set_width(ctypes.c_void_p(self.handle), ctypes.c_int32(threads))
