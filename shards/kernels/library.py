"""The package's C kernels as one library."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

from ...swarm.runtime.c_build import is_built, load_library

_SOURCES = Path(__file__).parent / "csrc"
_FLAGS = ("-ffp-contract=off",)


@cache
def library() -> ctypes.CDLL:
    """Linears, attention, blocks and their threads. Raises NativeUnavailableError, with the reason."""
    return load_library("shards", sorted(_SOURCES.glob("*.c")), _FLAGS)


def is_ready() -> bool:
    """Whether ``library`` would answer without compiling (or fail without trying)."""
    return is_built("shards", sorted(_SOURCES.glob("*.c")), _FLAGS)
