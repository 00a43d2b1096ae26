"""Where a node's model comes from: enough of it to plan with first, then the tensors of a span."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from ..shards.checkpoint.checkpoint import Checkpoint
from ..shards.checkpoint.opening import open_checkpoint
from ..shards.pieces.file_hashes import Progress, hashing_watched
from ..shards.pieces.store import is_store
from ..swarm.types import Span


class ModelSource(Protocol):
    """The source owns the checkpoints that it gives; they are open until the next call or ``close``."""

    @property
    def needs_network(self) -> bool:
        """Whether nothing can be said of the model before the node is in its swarm."""

    async def describe(self) -> Checkpoint:
        """Configuration, digest and the list of tensors; the tensors themselves may be missing.
        Raises ModelError, NetworkError."""

    async def open(self, span: Span) -> Checkpoint:
        """With every tensor of ``span``. Raises ModelError, NetworkError."""

    def close(self) -> None:
        """Idempotent."""


class LocalOrHubModel:
    """A path, or a name on the HuggingFace hub, of which only files that hold the span are fetched.

    Files here are hashed in pieces as well: a node announces their root.
    """

    needs_network = False  # not the swarm's

    def __init__(self, path_or_name: str, progress: Progress | None = None) -> None:
        self._name = path_or_name
        self._is_here = Path(path_or_name).expanduser().exists()
        self._progress = progress
        self._checkpoint: Checkpoint | None = None

    async def describe(self) -> Checkpoint:
        if self._checkpoint is None:
            with hashing_watched():
                self._checkpoint = await asyncio.to_thread(
                    open_checkpoint, self._name, weights=False, pieces=True, progress=self._progress
                )
        return self._checkpoint

    async def open(self, span: Span) -> Checkpoint:
        if self._checkpoint is None or not self._is_here or is_store(Path(self._name)):
            self.close()
            with hashing_watched():
                self._checkpoint = await asyncio.to_thread(
                    open_checkpoint, self._name, blocks=span, pieces=True, progress=self._progress
                )
        return self._checkpoint

    def close(self) -> None:
        if self._checkpoint is not None:
            self._checkpoint.close()
            self._checkpoint = None
