"""A read-only memory map of one file."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..swarm.errors import CheckpointError


class MappedFile:
    """``array``: the whole file as uint8, read page by page when touched. CheckpointError where that fails.

    The file must not shrink while it is open: the kernel ends a process that reads pages that are gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # mmap refuses an empty file
            raise CheckpointError(f"{path} is empty", hint="Download it again.") from None
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
        self.array: np.ndarray = np.frombuffer(self._map, dtype=np.uint8)
        self.size = len(self._map)

    def unpack(self, form: str, offset: int) -> tuple[Any, ...]:
        """``struct.unpack_from``; struct.error past the end of the file."""
        return struct.unpack_from(form, self._map, offset)

    def view(self) -> memoryview:
        """The same bytes, for the standard library; drop it before ``close``."""
        return memoryview(self._map)

    def release(self) -> None:
        """Drop the pages from this process's memory; they are read again when touched again."""
        if not self._map.closed and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        self.array = np.empty(0, dtype=np.uint8)
        try:
            self._map.close()
        except BufferError:
            self.release()  # tensors still hold views: the map goes with the last of them
