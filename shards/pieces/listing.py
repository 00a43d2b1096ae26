"""Files of which only sizes and SHA-256 are known, as pieces whose hashes are noted when they come.

The HuggingFace hub tells no hashes of pieces. So what comes from it is believed as it comes, and what is
proved later is that this disk has kept it; a file that is here whole must have the SHA-256 that the hub told.
Encoded, a listing is this msgpack array, and its SHA-256 is the root that a store is named after:

    ["swarm-node files 1", piece_size, [[name, size, content], …]]

Nobody shares a store of this kind: it proves nothing to others. Beside its claims it keeps ``hashes``, 32
bytes a piece, zeros for one that never came.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ...swarm.errors import RemoteProtocolError
from ...swarm.runtime.state_files import replace_file
from .digest import FileHash
from .manifest import MAX_FILES, MAX_MANIFEST, PieceFile, PieceManifest, file_problem, piece_size_for

_FORMAT = "swarm-node files 1"
_HASHES = "hashes"
_UNKNOWN = bytes(32)


class FileListing(PieceManifest):
    """Raises CheckpointError for files that are not a model's weights, or beyond a manifest's bounds."""

    def __init__(self, piece_size: int, files: Sequence[FileHash]) -> None:
        super().__init__(
            piece_size, tuple(PieceFile(file.name, file.size, 0, b"", file.content) for file in files)
        )
        self._hashes = bytearray(_UNKNOWN * self.n_pieces)
        for file in self.files:  # of a file of one piece the hash is known
            if len(only := self.pieces_of(file.name)) == 1:
                self._hashes[32 * only[0] : 32 * only[0] + 32] = file.content
        self._lock = threading.Lock()

    @classmethod
    def of(cls, files: Sequence[FileHash]) -> FileListing:
        """Of files in any order, in pieces of the size that a model of their size has."""
        files = sorted(files, key=lambda file: file.name)
        return cls(piece_size_for(sum(file.size for file in files)), files)

    @cached_property
    def encoded(self) -> bytes:
        files = [[file.name, file.size, file.content] for file in self.files]
        encoded: bytes = msgpack.packb([_FORMAT, self.piece_size, files])
        return encoded

    def is_right(self, piece: int, data: bytes | bytearray | memoryview) -> bool:
        """Whether these are the bytes that came. False for a piece that never came."""
        known = self._hash(piece)
        return known != _UNKNOWN and hashlib.sha256(data).digest() == known

    def accept(self, piece: int, data: bytes | bytearray | memoryview) -> bool:
        """Believes the first bytes that come, if they are as many as the piece has."""
        if len(data) != self.place(piece).length:
            return False
        digest = hashlib.sha256(data).digest()
        with self._lock:
            if self._hash(piece) == _UNKNOWN:
                self._hashes[32 * piece : 32 * piece + 32] = digest
            return self._hash(piece) == digest

    def load(self, folder: Path) -> None:
        """Take over the hashes of pieces that came before, or to other processes."""
        try:
            with (folder / _HASHES).open("rb") as file:
                kept = file.read(len(self._hashes) + 1)
        except OSError:
            return
        if len(kept) != len(self._hashes):
            return
        with self._lock:
            own = np.frombuffer(self._hashes, np.uint8).reshape(-1, len(_UNKNOWN))
            unknown = ~own.any(axis=1)
            own[unknown] = np.frombuffer(kept, np.uint8).reshape(own.shape)[unknown]

    def save(self, folder: Path) -> None:
        """OSError where the disk does not allow it."""
        with self._lock:
            kept = bytes(self._hashes)
        replace_file(folder / _HASHES, kept)

    def _hash(self, piece: int) -> bytes:
        return bytes(self._hashes[32 * piece : 32 * piece + 32])

    def _problem(self) -> str:
        return file_problem(self.piece_size, self.files)

    @classmethod
    def parse(cls, encoded: bytes | bytearray | memoryview, root: str) -> PieceManifest:
        """RemoteProtocolError unless these bytes are the listing that ``root`` names, within the bounds."""
        if len(encoded) > MAX_MANIFEST or hashlib.sha256(encoded).hexdigest() != root:
            raise RemoteProtocolError("a listing that is not the one asked for")
        try:
            form, piece_size, files = msgpack.unpackb(encoded, max_array_len=MAX_FILES, max_map_len=0)
            if form != _FORMAT or type(piece_size) is not int or type(files) is not list:
                raise ValueError("another format")
            return cls(piece_size, [_file(entry) for entry in files])
        except (ValueError, TypeError) as error:
            raise RemoteProtocolError(f"a listing that is malformed: {str(error)[:200]}") from None


def parse_list(encoded: bytes, root: str) -> PieceManifest:
    """A manifest or a listing: what a store is of."""
    kind = FileListing if _FORMAT.encode() in encoded[:32] else PieceManifest
    return kind.parse(encoded, root)


def _file(entry: Any) -> FileHash:
    if type(entry) is not list or [type(item) for item in entry] != [str, int, bytes]:
        raise ValueError("a file without name, size and content")
    return FileHash(*entry)
