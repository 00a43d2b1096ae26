"""transformers' ``Cache`` for a model whose keys and values are on the peers' machines."""

from __future__ import annotations

import weakref
from typing import Any, NoReturn, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ...swarm.errors import UsageError
from ..hops.trace import Repair
from ..swarm_model import SwarmModel
from .rows import RowBatch


class _OfSwarm(Protocol):
    """A model in transformers' sense, which works through ``swarm``."""

    swarm: SwarmModel


class SwarmCache(Cache):
    """The KV cache of a batch: a session in the swarm for each row, to be passed as ``past_key_values``.

    ``crop`` rolls the sessions back, ``reorder_cache``, ``batch_select_indices``, ``batch_repeat_interleave``
    and ``copy.deepcopy`` fork them: peers copy a page of 32 tokens when one of two sessions writes to it.
    ``max_tokens``: how long a row may get; without it sessions grow as needed, up to the model's context.

    The peers' memory is free again after ``close``, or when nothing refers to the cache any more.
    """

    def __init__(self, model: _OfSwarm, max_tokens: int | None = None) -> None:
        super().__init__(layers=[])
        swarm = model.swarm
        if max_tokens is not None and not 0 < max_tokens <= swarm.context:
            raise UsageError(
                f"a session of {max_tokens} tokens is not possible",
                hint=f"Give 1 to {swarm.context}, which is the model's context.",
            )
        self._begin(swarm, RowBatch(swarm.core, max_tokens))

    def _begin(self, swarm: SwarmModel, batch: RowBatch) -> None:
        self._swarm = swarm
        self._loop = loop = swarm.loop
        self._batch = batch
        self._finalizer = weakref.finalize(self, loop.post, batch.close)
        self._finalizer.atexit = False  # the model's own ends everything

    # What generate and forward need.

    def belongs_to(self, swarm: SwarmModel) -> bool:
        return self._swarm is swarm

    def feed(self, ids: Tensor, mask: Tensor | None, wanted: int) -> list[np.ndarray]:
        """Append columns ``ids`` (rows, tokens), of which ``mask`` (rows, tokens) leaves some out.

        Returns for each row the hidden states after the last block of what is in the last ``wanted`` columns,
        (tokens, hidden) float32. Raises SwarmError; the cache is as before then.
        """
        kept = torch.ones_like(ids) if mask is None else mask
        return self._loop.run(self._batch.feed(ids.tolist(), kept.tolist(), wanted))

    def align(self, ids: Tensor, mask: Tensor | None) -> None:
        """Keep only what whole sequences ``ids`` (rows, tokens) begin with, so that the rest is to be fed."""
        kept = torch.ones_like(ids) if mask is None else mask
        self._loop.run(self._batch.align(ids.tolist(), kept.tolist()))

    def reserve(self, columns: int) -> None:
        """Expect rows of ``columns`` columns: sessions opened from now on get room for them."""
        self._batch.reserve(columns)

    # transformers' interface.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that were fed, padding included."""
        return self._batch.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self._batch.limit or self._swarm.context

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._batch.columns + query_length, 0

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first tokens."""
        return self._batch.size or -1

    @property
    def is_initialized(self) -> bool:
        return bool(self._batch.rows)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` columns; above 0: keep the first
        ``tokens_to_remove``, as in earlier versions of transformers."""
        columns = self._batch.columns
        left = tokens_to_remove if tokens_to_remove > 0 else columns + tokens_to_remove
        if left < columns:
            self._loop.run(self._cut(max(0, left)))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self._batch.size:
            numbers = torch.arange(self._batch.size)[indices.cpu()]  # of masks of bools, too
            self._batch.select(numbers.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._batch.select([row for row in range(self._batch.size) for _ in range(repeats)])

    def reset(self) -> None:
        """Forget everything; the cache may be used anew."""
        if not self._loop.closed:
            self._loop.run(self._close())

    def update(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(
            "keys and values of the swarm are on its peers", hint="Use a SwarmCache with its own model only."
        )

    def __len__(self) -> int:
        """The model's blocks."""
        return self._swarm.model.n_blocks

    def __repr__(self) -> str:
        return f"SwarmCache(rows={self._batch.size}, columns={self._batch.columns})"

    def __deepcopy__(self, memo: dict[int, Any]) -> SwarmCache:
        twin = SwarmCache.__new__(SwarmCache)
        Cache.__init__(twin, layers=[])
        twin._begin(self._swarm, self._loop.run(self._batch.copy()))
        memo[id(self)] = twin
        return twin

    # What it is beyond that.

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, padding not counted."""
        return self._batch.lengths

    @property
    def repaired(self) -> tuple[Repair, ...]:
        """Each time that the route of one of the rows was repaired."""
        return tuple(self._batch.repaired)

    def close(self) -> None:
        """Free the peers' memory. Idempotent; ``with`` does it."""
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _cut(self, columns: int) -> None:
        self._batch.cut(columns)

    async def _close(self) -> None:
        self._batch.close()
