"""What pieces can be served from, and the simplest of it: a model's files where they lie."""

from __future__ import annotations

from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Protocol

import numpy as np

from ...swarm.errors import CheckpointError
from .manifest import PieceManifest

Watcher = Callable[[int], None]


class PieceHolder(Protocol):
    """Pieces that can be served. Methods may be called from any thread; ``read`` blocks."""

    @property
    def manifest(self) -> PieceManifest: ...

    def held(self) -> np.ndarray:
        """(pieces,) bool: what this machine says it has. ``read`` finds out whether that is true."""

    def has(self, piece: int) -> bool: ...

    def read(self, piece: int) -> bytes:
        """The bytes that the manifest names, and no others: CheckpointError where they are not here."""

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """``watcher(piece)`` for each piece that comes, in the thread that adds it; returns how to end it."""


class WholeFiles:
    """A model's files where they lie, whole, under the names of its manifest.

    ``on_change(error)``: called once, in the thread that reads, when a file is no longer what was hashed.
    From then on nothing is held.
    """

    def __init__(
        self,
        manifest: PieceManifest,
        files: dict[str, Path],
        on_change: Callable[[CheckpointError], None] | None = None,
    ) -> None:
        self.manifest = manifest
        self._files = files
        self._on_change = on_change
        self._held = np.ones(manifest.n_pieces, dtype=bool)

    def held(self) -> np.ndarray:
        return self._held.copy()

    def has(self, piece: int) -> bool:
        return 0 <= piece < len(self._held) and bool(self._held[piece])

    def read(self, piece: int) -> bytes:
        place = self.manifest.place(piece)
        path = self._files[place.file.name]
        try:
            with path.open("rb", buffering=0) as file:
                data = read_at(file, place.offset, place.length)
        except OSError as error:
            raise self._changed(f"cannot read {path}: {error.strerror or error}") from None
        if not self.manifest.is_right(piece, data):
            raise self._changed(f"{path} has changed since it was hashed: it is not shared any longer")
        return data

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        return lambda: None

    def _changed(self, what: str) -> CheckpointError:
        error = CheckpointError(what, hint="Start the node again to share the files as they are.")
        self._held[:] = False
        told, self._on_change = self._on_change, None
        if told is not None:
            told(error)
        return error


def read_at(file: FileIO, offset: int, length: int) -> bytes:
    """Fewer bytes where the file ends before. OSError."""
    file.seek(offset)
    data = bytearray()
    while len(data) < length and (more := file.read(length - len(data))):
        data += more
    return bytes(data)
