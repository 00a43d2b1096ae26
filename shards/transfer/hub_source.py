"""Pieces of a model from the HuggingFace hub, for those that no peer gives: checked like all others."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ...swarm.errors import NetworkError
from ..pieces.manifest import PieceManifest

if TYPE_CHECKING:
    from ..checkpoint.hub import HubRepo


class HubPieces:
    """A ``downloader.LastResort``. It does not contact the hub before its first piece is wanted."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._repo: HubRepo | None = None

    def __call__(self, manifest: PieceManifest, piece: int) -> bytes:
        from ..checkpoint.hub import HubRepo  # here: huggingface_hub is imported only where it is used

        if manifest.is_gguf:
            raise NetworkError("it is not known which GGUF file of the hub this is")
        with self._lock:
            if self._repo is None:
                repo = HubRepo(self._name)
                repo.fetch("config.json")  # settles the commit
                self._repo = repo
        place = manifest.place(piece)
        return self._repo.read_range(place.file.name, place.offset, place.length).data
