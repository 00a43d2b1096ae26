"""Pieces of a model from the HuggingFace hub, for those that no peer gives: checked like all others."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ...swarm.errors import NetworkError
from ..pieces.manifest import PieceManifest

if TYPE_CHECKING:
    from ..checkpoint.hub_repo import HubFile, HubRepo


class HubPieces:
    """A ``downloader.LastResort``. It does not contact the hub before its first piece is wanted."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._files: dict[str, HubFile] | None = None
        self._repo: HubRepo

    def __call__(self, manifest: PieceManifest, piece: int) -> bytes:
        with self._lock:
            if self._files is None:
                self._repo, self._files = self._found(manifest)
        place = manifest.place(piece)
        file = self._files.get(place.file.name)
        if file is None or (file.sha256 and file.sha256 != place.file.content):
            raise NetworkError(f"the hub has another {place.file.name} of {self._name}")
        return self._repo.read_range(file, place.offset, place.length)

    def _found(self, manifest: PieceManifest) -> tuple[HubRepo, dict[str, HubFile]]:
        from ..checkpoint.hub_gguf import chosen, gguf_of
        from ..checkpoint.hub_repo import HubRepo  # here: huggingface_hub is imported only where it is used

        name, _, choice = self._name.partition(":")
        repo = HubRepo(name)
        if not manifest.is_gguf:
            return repo, dict(repo.files)
        return repo, chosen(name, choice, gguf_of(repo.files)).files(repo.files)
