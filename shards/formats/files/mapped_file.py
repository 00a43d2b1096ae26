"""A read-only memory map of one file, some of whose bytes may not be there yet."""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from pathlib import Path
from typing import Protocol

import numpy as np

from ....swarm.errors import CheckpointError


class AbsentError(CheckpointError):
    """``length`` bytes from ``start`` of the file called ``name`` were never fetched, or some of them are
    ``damaged``."""

    def __init__(self, name: str, start: int, length: int, *, damaged: bool = False) -> None:
        super().__init__(
            f"bytes {start} to {start + length} of {name} {'are damaged' if damaged else 'were not fetched'}",
            hint="Start the model by its name: they are fetched again while peers share it."
            if damaged
            else "They belong to blocks, or to a client's part, that this process did not ask for.",
        )
        self.name = name
        self.start = start
        self.length = length


class PresentBytes(Protocol):
    """Which bytes of a file are there. Elsewhere it holds zeros, which must not be read."""

    def require(self, start: int, length: int) -> None:
        """AbsentError unless all these bytes are there."""

    def prefix(self) -> int:
        """How many bytes are there from the start of the file on."""


class MappedFile:
    """The whole file, read page by page when touched. CheckpointError where that fails.

    The kernel ends a process that reads pages which are gone: ``check`` before bytes are used that were asked
    for long ago.
    """

    def __init__(self, path: Path, presence: PresentBytes | None = None) -> None:
        """``presence`` None: all of the file is there."""
        self.path = path
        self.grows = presence is not None
        self._presence = presence
        with contextlib.ExitStack() as on_error:
            try:
                self._file = on_error.enter_context(path.open("rb"))
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
                self._identity = _identity(os.fstat(self._file.fileno()))
            except ValueError:  # mmap refuses an empty file
                raise CheckpointError(f"{path} is empty", hint="Download it again.") from None
            except OSError as error:
                raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
            on_error.pop_all()
        self._array: np.ndarray = np.frombuffer(self._map, dtype=np.uint8)
        self.size = len(self._map)
        _open_files.add(self)

    def slice(self, offset: int, length: int) -> np.ndarray:
        """``length`` bytes from ``offset`` on, (length,) uint8, not copied; fewer past the end of the file.
        AbsentError where they are not there; see ``check``."""
        self.check()
        if self._presence is not None:
            self._presence.require(offset, min(length, self.size - offset))
        return self._array[offset : offset + length]

    def check(self) -> None:
        """CheckpointError if the file was cut short or written into since it was opened.

        One that was replaced by another of its name is kept as it was. A file some of whose bytes were not
        there is written into as they come.
        """
        if self._map.closed:
            return
        changed = self._map.size() < self.size
        if not changed and self._presence is None:
            with contextlib.suppress(OSError):
                inode, mtime = _identity(self.path.stat())
                changed = inode == self._identity[0] and mtime != self._identity[1]
        if changed:
            raise CheckpointError(
                f"{self.path} was changed while it was in use", hint="Start again once it is written."
            )

    def descriptor(self) -> int:
        """A new one for reading, which the caller closes: of this file, whatever its path leads to by now.
        CheckpointError where it was changed."""
        self.check()
        try:
            return os.open(f"/dev/fd/{self._file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from None

    def offset_of(self, view: np.ndarray) -> int | None:
        """Where the first byte of ``view`` lies in the file; None: in another one, or in none."""
        offset = _address(view) - _address(self._array)
        return offset if 0 <= offset < len(self._array) else None

    def head(self) -> memoryview:
        """The file from its start on, as far as it is there without a gap; drop it before ``close``."""
        if self._presence is None:
            return memoryview(self._map)
        return memoryview(self._map)[: self._presence.prefix()]

    def release(self) -> None:
        """Drop the pages from this process's memory; they are read again when touched again."""
        if not self._map.closed and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        self._array = np.empty(0, dtype=np.uint8)
        self._file.close()
        try:
            self._map.close()
        except BufferError:
            self.release()  # tensors still hold views: the map goes with the last of them


_open_files: weakref.WeakSet[MappedFile] = weakref.WeakSet()


def place_in_file(view: np.ndarray) -> tuple[MappedFile, int] | None:
    """The open file whose bytes ``view`` shows, and where they begin; None: it shows a copy."""
    for file in tuple(_open_files):
        if (offset := file.offset_of(view)) is not None:
            return file, offset
    return None


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _identity(status: os.stat_result) -> tuple[tuple[int, int], int]:
    """Which file it is, and when it was last written into."""
    return (status.st_dev, status.st_ino), status.st_mtime_ns
