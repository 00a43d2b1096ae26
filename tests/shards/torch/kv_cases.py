"""Sessions in a paged pool, for the tests of both attention paths."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from swarm_node.shards.formats.blocks.attention import KvShape
from swarm_node.shards.layers.kv_pool import BatchSlice, KvPart
from swarm_node.shards.torch.mixers.attention import Scores
from swarm_node.shards.torch.tensors.kv_pool import TorchKvPart, TorchKvPool
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS

CPU = torch.device("cpu")


def used_pool(n_slots: int, kv_heads: int, head_dim: int, kv_dtype: str) -> tuple[TorchKvPool, Scores]:
    """A pool full of what must never be read, and plain attention over it: a NaN that got into a result would
    show."""
    shape = KvShape(kv_heads, head_dim, head_dim)
    pool = TorchKvPool(n_slots, (shape,), kv_dtype, CPU)
    soil(pool.part(shape).held)
    return pool, Scores(shape, head_dim**-0.5)


def soil(held: KvPart[Tensor]) -> None:
    for array in (held.keys, held.values, held.key_scales, held.value_scales):
        if array is not None:
            array.fill_(float("nan") if array.is_floating_point() else -128)


@dataclass
class PagedSession:
    """``table`` (blocks, pages) of slots; ``length`` tokens are held."""

    table: np.ndarray
    first_block: int
    length: int = field(default=0)

    def part(self, row: int, count: int) -> BatchSlice:
        return BatchSlice(self.table, self.first_block, row, self.length, count)


def shuffled_sessions(
    shapes: list[tuple[int, int, int]], seed: int = 0, spare: int = 3
) -> tuple[list[PagedSession], int]:
    """Sessions of (first_block, blocks, tokens) whose slots lie in any order, and the pool's size."""
    generator = torch.Generator().manual_seed(seed)
    pages = [(first, blocks, -(-tokens // PAGE_TOKENS)) for first, blocks, tokens in shapes]
    n_slots = sum(blocks * n for _, blocks, n in pages) + spare
    slots = torch.randperm(n_slots, generator=generator, dtype=torch.int32).numpy()
    sessions, taken = [], 0
    for first, blocks, n in pages:
        sessions.append(PagedSession(slots[taken : taken + blocks * n].reshape(blocks, n), first))
        taken += blocks * n
    return sessions, n_slots


def stored(pool: TorchKvPart, session: PagedSession, block: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values (tokens, kv_heads, dim) float64 as the pool holds them, read slot by slot."""
    keys, values, held = [], [], pool.held
    for position in range(tokens):
        slot = int(session.table[block - session.first_block, position // PAGE_TOKENS])
        at = position % PAGE_TOKENS
        k, v = held.keys[slot, :, :, at].double(), held.values[slot, :, at].double()
        if held.key_scales is not None and held.value_scales is not None:
            # The kernels multiply in float32; so does the meaning of a stored value.
            k = (k.float() * held.key_scales[slot, :, at, None]).double()
            v = (v.float() * held.value_scales[slot, :, at, None]).double()
        keys.append(k)
        values.append(v)
    return torch.stack(keys), torch.stack(values)


def softmax_attention(q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """``q`` (n, heads, head_dim) at positions from ``start``, against (start + n, kv_heads, head_dim), in
    float64, written out → (n, heads * head_dim)."""
    n, heads, head_dim = q.shape
    group = heads // keys.shape[1]
    wide_keys = keys.double().repeat_interleave(group, 1)
    wide_values = values.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q.double(), wide_keys) * head_dim**-0.5
    seen = torch.arange(len(keys))[None, :] <= torch.arange(start, start + n)[:, None]
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, wide_values).reshape(n, -1)
