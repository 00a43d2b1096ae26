"""What was freed, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def trim_heap() -> None:
    """glibc keeps freed heaps: weights of a few MiB a tensor live there once such a block was freed, and what
    a tokenizer was made of."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
