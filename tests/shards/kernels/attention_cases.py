"""Attention of any settings over a pool: the C functions on tensors, and the same written out in float64."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from swarm_node.shards.formats.blocks.attention import KvShape
from swarm_node.shards.kernels.library import address
from swarm_node.shards.kernels.pages import SnAttention, SnPiece, kv_struct
from swarm_node.shards.layers.kv_pool import BatchSlice, KvPool
from swarm_node.shards.torch.tensors.kv_pool import TorchKvPool
from tests.shards.torch.kv_cases import CPU, soil

INT64 = ctypes.c_int64
GUARD = 64
"""Floats before and behind scratch memory that must stay as they are."""


@dataclass(frozen=True)
class Attention:
    heads: int
    kv: KvShape
    scale: float = 0.0
    softcap: float = 0.0
    window: int = 0
    chunk: int = 0
    sinks: tuple[float, ...] = ()

    @property
    def q_size(self) -> int:
        return self.heads * self.kv.key_dim

    @property
    def out_size(self) -> int:
        return self.heads * self.kv.value_dim

    def first_seen(self, position: int) -> int:
        if self.chunk:
            return position // self.chunk * self.chunk
        return max(0, position - self.window + 1) if self.window else 0

    def in_float64(self, q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """``q`` (n, heads, key_dim) at positions from ``start``, against ``keys`` (start + n, kv_heads,
        key_dim) and ``values`` (start + n, kv_heads, value_dim) → (n, heads * value_dim)."""
        n, end = len(q), start + len(q)
        group = self.heads // self.kv.heads
        wide_keys = keys.double().repeat_interleave(group, 1)
        wide_values = values.double().repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q.double(), wide_keys) * self.scale
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        sees = torch.zeros(n, end, dtype=torch.bool)
        for row in range(n):
            sees[row, self.first_seen(start + row) : start + row + 1] = True
        scores = scores.masked_fill(~sees, float("-inf"))
        if self.sinks:
            sinks = torch.tensor(self.sinks).double()[:, None, None].expand(-1, n, 1)
            scores = torch.cat([scores, sinks], -1)
        weights = scores.softmax(-1)[..., :end]
        wide_values = wide_values.masked_fill(~sees.any(0)[:, None, None], 0.0)
        return torch.einsum("hqk,khd->qhd", weights, wide_values).reshape(n, -1)


def gqa(heads: int, kv_heads: int, head_dim: int) -> Attention:
    return Attention(heads, KvShape(kv_heads, head_dim, head_dim), head_dim**-0.5)


def latent(heads: int, rank: int, rope_dim: int) -> Attention:
    return Attention(heads, KvShape(1, rank + rope_dim, rank, shared=True), (rank + rope_dim) ** -0.5)


SHAPES = [
    gqa(9, 3, 64),
    gqa(8, 8, 80),
    gqa(8, 2, 96),
    gqa(4, 1, 128),
    gqa(6, 2, 8),
    gqa(5, 1, 72),
    gqa(60, 1, 40),
    gqa(14, 2, 24),
    gqa(6, 3, 112),
    gqa(4, 4, 120),
    gqa(4, 2, 256),
    gqa(71, 1, 64),
    gqa(6, 2, 13),
    gqa(3, 3, 4),
    Attention(8, KvShape(2, 192, 128), 192**-0.5),
    Attention(12, KvShape(4, 12, 37), 12**-0.5),
    latent(16, 128, 32),
    latent(128, 512, 64),
    latent(5, 30, 7),
]


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    """Any heads and sizes, with any of the settings at once."""
    if draw(st.booleans()):
        shape = draw(st.sampled_from(SHAPES))
        heads, kv = shape.heads, shape.kv
    else:
        kv_heads, key_dim = draw(st.integers(1, 5)), draw(st.integers(1, 90))
        shared = draw(st.booleans())
        value_dim = draw(st.integers(1, key_dim if shared else 90))
        kv, heads = KvShape(kv_heads, key_dim, value_dim, shared), kv_heads * draw(st.integers(1, 20))
    reach = draw(st.sampled_from(["window", "chunk", ""]))
    changes = {reach: draw(st.sampled_from([1, 2, 5, 31, 32, 33, 50, 64, 100, 1000]))} if reach else {}
    sink = draw(st.sampled_from([None, -30.0, 0.0, 3.0]))
    return Attention(
        heads,
        kv,
        draw(st.sampled_from([1.0, 0.5, 2.0])) * kv.key_dim**-0.5,
        draw(st.sampled_from([0.0, 0.5, 2.0, 50.0])),
        **changes,
        sinks=() if sink is None else tuple(sink + 0.1 * head for head in range(heads)),
    )


class Memory:
    """A pool for blocks of ``attention``, full of what must never be read."""

    def __init__(self, n_slots: int, attention: Attention, kv_dtype: str) -> None:
        self.attention, kv = attention, attention.kv
        self.pool = TorchKvPool(n_slots, (kv,), kv_dtype, CPU)
        self.part = self.pool.part(kv)
        soil(self.part.held)
        held = KvPool(0, (kv,), kv_dtype)
        held.data = self.pool.data.numpy()
        self.kv = kv_struct(held)
        self._sinks = np.array(attention.sinks, np.float32)
        self.struct = SnAttention(
            *(attention.heads, kv.heads, kv.key_dim, kv.value_dim, kv.shared),
            *(attention.scale, attention.softcap, attention.window, attention.chunk),
            address(self._sinks) if attention.sinks else None,
        )


class Kernels:
    """The functions of ``attention.h`` on torch tensors."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.sn_attend_scratch.restype = INT64

    def append(self, memory: Memory, part: BatchSlice, block: int, k: Tensor, v: Tensor) -> None:
        """``k`` (batch rows, kv_heads * key_dim), ``v`` likewise, perhaps views of wider rows."""
        assert k.stride(0) == v.stride(0)
        self._library.sn_kv_append(
            *(ctypes.byref(memory.struct), ctypes.byref(memory.kv), ctypes.byref(c_struct(part))),
            *(block, at(k), at(v), INT64(k.stride(0)), 0, memory.attention.kv.heads),
        )

    def rows(
        self,
        memory: Memory,
        part: BatchSlice,
        block: int,
        q: Tensor,
        *,
        first: int = 0,
        heads: tuple[int, int] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Rows ``first`` to ``first + len(q)`` of the slice: ``q`` (n, q_size) → (n, out_size). ``heads``:
        the first of them and their end; all by default."""
        attention, struct = memory.attention, ctypes.byref(memory.struct)
        out = torch.full((len(q), attention.out_size), float("nan")) if out is None else out
        # Exactly what is asked for, at an odd place.
        size = self._library.sn_attend_scratch(struct)
        scratch = torch.full((GUARD + 1 + size + GUARD,), 12345.0)
        self._library.sn_attend(
            *(struct, ctypes.byref(memory.kv), ctypes.byref(c_struct(part)), block, first, len(q)),
            *(at(q), INT64(q.stride(0)), at(out), INT64(out.stride(0)), *(heads or (0, attention.heads))),
            at(scratch[GUARD + 1 :]),
        )
        for guard in (scratch[: GUARD + 1], scratch[-GUARD:]):
            assert (guard == 12345.0).all(), "wrote beyond the scratch memory"
        return out


def at(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.dtype is torch.float32
    return ctypes.c_void_p(tensor.data_ptr())


def c_struct(part: BatchSlice) -> SnPiece:
    return SnPiece(
        part.table.ctypes.data, part.table.shape[1], part.first_block, part.row, part.start, part.count
    )


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)
