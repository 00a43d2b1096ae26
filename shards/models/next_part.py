"""Guesses of the token after the next one, by a block that the model's file has for that (multi-token
prediction), and from each guess the next: what a draft is made of, in one process and without the route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic

import numpy as np

from .backend import Memory, SpanBackend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..layers.kv_pool import BatchSlice
    from .client_part import ClientModel, Project
    from .head import FinalNorm, Head


class NextPart(Generic[Memory]):
    """See ``NextConfig``. ``blocks``: the one block, as a span of its own with keys and values of its own."""

    def __init__(
        self,
        client: ClientModel,
        blocks: SpanBackend[Memory],
        project: Project,
        norms: tuple[FinalNorm, FinalNorm, FinalNorm],
        head: Head,
    ) -> None:
        """``project``: (T, 2 * hidden) → (T, hidden). ``norms``: of embeddings, of what the model's head
        multiplies, and the block's own, behind it. ``head``: that head behind the block's own norm."""
        self.blocks = blocks
        *self._norms, self._own = norms
        self._client, self._project, self._head = client, project, head

    def forward(
        self,
        hidden: NDArray[np.float32],
        ids: Sequence[int] | NDArray[np.int64],
        slices: Sequence[BatchSlice],
        pool: Memory,
    ) -> NDArray[np.float32]:
        """``hidden`` (T, hidden): what the model's head multiplies (``ClientModel.final_norm``) at T
        positions; ``ids``: the T tokens that follow them → (T, hidden), for ``logits``. ``slices``, ``pool``:
        as of ``SpanBackend.forward``; positions are those of ``hidden``."""
        of_embedding, of_hidden = self._norms
        embedded = self._client.embed(ids)
        both = np.concatenate((of_embedding(embedded), of_hidden(hidden)), 1)
        return self.blocks.forward(np.ascontiguousarray(self._project(both)), slices, pool)

    def hidden(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """What ``forward`` gave (T, hidden) → the ``hidden`` that it is to be given for the token after the
        one that is guessed from these, which then is the token that follows."""
        return self._own(rows)

    def logits(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(T, hidden) → (T, vocab), of the tokens after those that ``forward`` was given. They are as rough
        as the head's weights are held."""
        return self._head(rows)
