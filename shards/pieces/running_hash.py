"""The SHA-256 of a file that comes in pieces, in any order, computed while they come."""

from __future__ import annotations

import hashlib
import threading
from io import FileIO

from .file_hashes import fill
from .manifest import PieceManifest


class RunningHash:
    """The SHA-256 of a file's pieces from the first on, as far as they are there without a gap.

    It knows nothing of damage: its owner says which pieces may be read, and drops it when what was read
    changes. ``lock``: held by the thread that hashes. Pieces are given as ranges from ``left.start`` on.
    """

    def __init__(self, manifest: PieceManifest, name: str) -> None:
        self.lock = threading.Lock()
        self.left = manifest.pieces_of(name)
        """The pieces that are not hashed yet."""
        self._manifest = manifest
        self._begun = self._first = self.left.start
        self._hash = hashlib.sha256()
        self._buffer = memoryview(b"")

    def has_begun(self, piece: int) -> bool:
        """Whether the bytes of the piece are hashed, or are about to be."""
        return self._first <= piece < self._begun

    def begin(self, pieces: range) -> None:
        """Before ``read``."""
        self._begun = pieces.stop

    def read(self, pieces: range, file: FileIO) -> memoryview:
        """Their bytes, for ``take``; valid until the next call. OSError; fewer where the file ends before."""
        places = [self._manifest.place(piece) for piece in pieces]
        length = sum(place.length for place in places)
        if len(self._buffer) < length:
            self._buffer = memoryview(bytearray(length))
        file.seek(places[0].offset)
        return self._buffer[: fill(file, self._buffer[:length])]

    def take(self, pieces: range, data: memoryview) -> None:
        """Hash what ``read`` gave."""
        self._hash.update(data)
        self.left = range(pieces.stop, self.left.stop)
        if not self.left:
            self._buffer = memoryview(b"")

    def digest(self) -> bytes:
        """Of what was taken."""
        return self._hash.digest()
