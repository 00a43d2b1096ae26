"""What the client holds of a model: embedding, final norm and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ...swarm.errors import UsageError
from .head import FinalNorm, Head

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.config import ModelConfig, SidebandConfig
    from ..kernels.head import NativeHead

Project = Callable[["NDArray[np.float32]"], "NDArray[np.float32]"]
"""A matrix product of rows (T, in) → (T, out)."""
_SMALLEST_SQUARE = np.float32(1e-5)
"""A stream is scaled as if its mean square was no less: part of what Gemma 3n computes."""
HELD_ROWS = 64
"""After this many rows of the embedding, their pages of the file are let go: the kernel maps 64 KiB around
each row, so that a long chat would come to hold all of the embedding."""


class SideMaker:
    """Makes the values that blocks read beside the residual: see ``SidebandConfig``."""

    def __init__(
        self,
        settings: SidebandConfig,
        embedding: Embedding,
        project: Project,
        norm: FinalNorm,
    ) -> None:
        """``project``: (T, hidden) → (T, all blocks' values)."""
        self._settings, self._embedding, self._project, self._norm = settings, embedding, project, norm

    def __call__(self, ids: NDArray[np.int64], embedded: NDArray[np.float32]) -> NDArray[np.float32]:
        """T token ids and their rows of the first block (T, hidden) → (T, all blocks' values)."""
        settings = self._settings
        made = self._project(embedded) * np.float32(settings.projection_scale)
        made = self._norm(made.reshape(-1, settings.values)).reshape(made.shape)
        known = np.where(ids < settings.vocab_size, ids, 0)
        made += self._embedding.dequantize_rows(known) * np.float32(settings.embedding_scale)
        made *= np.float32(settings.scale)
        return made


class Streams:
    """Residual streams of what enters the first block, and what the final norm reads of those that leave the
    last: see ``ModelConfig``."""

    def __init__(self, spread: Sequence[Project], merge: Sequence[Project]) -> None:
        self._spread, self._merge = spread, merge

    def spread(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(T, hidden) → (T, streams * hidden)."""
        others = (_as_large(project(rows), rows) for project in self._spread)
        return np.concatenate((rows, *others), 1)

    def merged(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(T, streams * hidden) → (T, hidden)."""
        first, *others = np.split(rows, 1 + len(self._merge), 1)
        total = first.copy()
        for project, stream in zip(self._merge, others, strict=True):
            total += _as_large(project(stream), first)
        total /= np.float32(1 + len(self._merge))
        return total


def _as_large(rows: NDArray[np.float32], like: NDArray[np.float32]) -> NDArray[np.float32]:
    """``rows``, each with the root mean square of its row in ``like``."""
    wanted, found = (np.square(each).mean(-1, keepdims=True, dtype=np.float32) for each in (like, rows))
    scaled: NDArray[np.float32] = rows * (np.sqrt(wanted) / np.sqrt(np.maximum(found, _SMALLEST_SQUARE)))
    return scaled


class Embedding(Protocol):
    """A ``RawTensor`` of the file, or what another backend has of it."""

    def dequantize_rows(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """The rows of these tokens, (tokens, hidden)."""
        ...


class ClientModel:
    """``device``: where the head is. ``weight_bytes``: memory the weights take; ``weights``: how held;
    ``kernels``: what computes the head ("native", "torch"). Rows come and go as float32 arrays.

    The embedding stays in the file: a prompt's rows are read from the memory map, so the checkpoint must stay
    open for as long as this is used.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Embedding,
        norm: Head,
        head: Head,
        device: str,
        weight_bytes: int,
        weights: str,
        kernels: str,
        release: Callable[[], None],
        tied: NativeHead | None = None,
        side: SideMaker | None = None,
        streams: Streams | None = None,
        with_norm: Callable[[FinalNorm], Head] | None = None,
    ) -> None:
        """``release`` lets go of the pages of the file that were read. ``tied`` holds the values of the
        embedding in 8 bits: a token that was just chosen is not looked up in the file. ``side``: of a model
        with a sideband; ``streams``: of one with several residual streams. ``with_norm``: the head behind
        another norm."""
        self.config = config
        self.device = device
        self.weight_bytes = weight_bytes
        self.weights = weights
        self.kernels = kernels
        self._embedding = embedding
        self._norm = norm
        self._head = head
        self._release = release
        self._rows_read = 0
        self._tied = tied
        self._side, self._streams = side, streams
        self._with_norm = with_norm

    def embed(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """T token ids → (T, ``row_width(0)``) float32. UsageError for an id outside the vocabulary."""
        index = np.asarray(ids, dtype=np.int64)
        if not len(index):
            return np.empty((0, self.config.row_width(0)), np.float32)
        if not 0 <= index.min() <= index.max() < self.config.vocab_size:
            raise UsageError(f"token ids must be 0 to {self.config.vocab_size - 1}")
        if self._tied is not None and len(index) == 1:
            rows = self._scaled(self._tied.int8_row(int(index[0])))
        else:
            rows = self._scaled(self._embedding.dequantize_rows(index))
            self._count(len(rows))
        residual = rows if self._streams is None else self._streams.spread(rows)
        if self._side is None:
            return residual
        beside = self._side(index, rows)
        self._count(len(rows))
        return np.concatenate((residual, beside), 1)

    def _count(self, rows: int) -> None:
        self._rows_read += rows
        if self._rows_read > HELD_ROWS:
            self._rows_read = 0
            self._release()

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        if self.config.embedding_multiplier != 1.0:
            rows *= np.float32(self.config.embedding_multiplier)
        return rows

    def final_norm(self, hidden: np.ndarray) -> np.ndarray:
        """What the head multiplies: rows after the last block, (T, residual) → (T, hidden)."""
        return self._norm(hidden if self._streams is None else self._streams.merged(hidden))

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Rows after the last block, (T, residual) → (T, vocab) float32. From any thread."""
        return self._finished(self._head(hidden if self._streams is None else self._streams.merged(hidden)))

    def with_norm(self, norm: FinalNorm) -> Head:
        """The head behind another norm than the model's: rows (T, hidden) → (T, vocab). It shares the
        weights, and makes no logits exact. UsageError for a head of transformers' own."""
        if self._with_norm is None:
            raise UsageError("a head of transformers' own layers has no other norm")
        head = self._with_norm(norm)
        return lambda rows: self._finished(head(rows))

    def _finished(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        config = self.config
        if config.logit_multiplier != 1.0:
            logits *= np.float32(config.logit_multiplier)
        if config.logit_softcap:
            logits /= np.float32(config.logit_softcap)
            np.tanh(logits, out=logits)
            logits *= np.float32(config.logit_softcap)
        return logits
