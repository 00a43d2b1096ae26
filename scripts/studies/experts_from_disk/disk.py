"""How fast a disk is."""

from __future__ import annotations

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

READ_BYTES = 72 * 4096
"""What is read at a time: a matrix of an expert."""


def drop_pages(path: Path) -> None:
    """The file's, from memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def disk_bytes_per_s(path: Path, threads: int, nbytes: int = 1 << 28) -> float:
    """Reads past the system's cache in random order, as the store of experts does with as many threads."""
    places = np.random.default_rng(0).permutation(path.stat().st_size // READ_BYTES - 1)
    places = places[: nbytes // READ_BYTES]
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def read(share: np.ndarray) -> None:
        with mmap.mmap(-1, READ_BYTES) as memory:
            for place in share:
                os.preadv(descriptor, [memory], int(place) * READ_BYTES)

    try:
        with ThreadPoolExecutor(threads) as readers:
            began = time.perf_counter()
            list(readers.map(read, np.array_split(places, threads)))
        return len(places) * READ_BYTES / (time.perf_counter() - began)
    finally:
        os.close(descriptor)
