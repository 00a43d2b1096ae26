"""transformers' cache of one session, kept in the pages of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ...swarm.errors import UnsupportedModelError
from ...swarm.protocol.field_types import PAGE_TOKENS
from ..formats.config import ModelConfig
from ..formats.transformers.layered import KeysAndValues
from ..layers.kv_pool import BatchSlice
from ..torch.tensors.kv_pool import TorchKvPart, TorchKvPool


class PagedLayer(CacheLayerMixin):
    """What one block caches of a session: the pages that the session's table names. Positions before
    ``start`` are held, the ``count`` from there on are those of this call."""

    is_sliding = False
    is_compileable = False

    def __init__(self, part: TorchKvPart, slots: Tensor, start: int, count: int) -> None:
        """``slots`` (pages), int64."""
        super().__init__()
        self._part, self._slots, self._start, self._count = part, slots, start, count
        self._held = start

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keeps keys and values (1, heads, count, size) and gives those of all positions."""
        shape, end = self._part.shape, self._start + self._count
        wanted = (1, shape.heads, self._count)
        if self._held != self._start or (*key_states.shape[:3], *value_states.shape[:3]) != (
            *wanted,
            *wanted,
        ):
            raise UnsupportedModelError("a block does not keep one key and one value of each token")
        self._held = end
        positions = torch.arange(self._start, end, device=self._slots.device)
        rows, offsets = self._slots[positions // PAGE_TOKENS], positions % PAGE_TOKENS
        self._part.store(rows, offsets, key_states[0].transpose(0, 1), value_states[0].transpose(0, 1))
        keys, values = self._part.gather(self._slots, key_states.dtype)
        return keys[None, :, :end], values[None, :, :end]

    def get_seq_length(self) -> int:
        return self._held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._start + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...


class UnheldLayer(PagedLayer):
    """Of a block that does not compute here: it knows how long the session is."""

    def __init__(self, start: int) -> None:
        CacheLayerMixin.__init__(self)
        self._held = self._start = start

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        raise UnsupportedModelError("a block uses the keys and values of another")


def paged_cache(
    config: ModelConfig, pool: TorchKvPool, part: BatchSlice, first: int, end: int
) -> KeysAndValues:
    """For blocks ``first`` to ``end`` - 1 and the session of ``part``."""
    pages = -(-(part.start + part.count) // PAGE_TOKENS)
    layers: list[Any] = [UnheldLayer(part.start) for _ in config.blocks]
    for block in range(first, end):
        row: Sequence[int] | np.ndarray = part.table[block - part.first_block, :pages].astype(np.int64)
        slots = torch.from_numpy(np.ascontiguousarray(row)).to(pool.device)
        attention = config.blocks[block].attention
        if attention is None:
            raise UnsupportedModelError(f"block {block} has no attention")
        held = pool.part(attention.kv)
        layers[block] = PagedLayer(held, slots, part.start, part.count)
    return KeysAndValues(config.family, layers)
