"""A Llama block: RMSNorm, rotary grouped-query attention, SwiGLU, over packed tokens of many sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.block_weights import AttentionWeights
from .linear import Linear
from .norm import RmsNorm

if TYPE_CHECKING:
    from ..formats.block_config import BlockConfig
    from ..models.block_weights import BlockWeights

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``attend(block, q (T, heads, head_dim), k (T, kv_heads, head_dim), v) -> (T, heads * head_dim)``.

``block`` is absolute. The caller owns the KV cache, causality and softmax (scale ``head_dim ** -0.5``).
"""


class LlamaBlock:
    """One block. Not an ``nn.Module``: its call overhead is most of a decode token at this size."""

    def __init__(self, settings: BlockConfig, weights: BlockWeights[RmsNorm, Linear, None, None]) -> None:
        attention, mlp = settings.attention, settings.mlp
        if not isinstance(weights.attention, AttentionWeights) or mlp is None or weights.mlp is None:
            raise ValueError("not a Llama block")
        if weights.norm is None or weights.mlp_norm is None:
            raise ValueError("not a Llama block")
        self._heads, self._kv_heads, self._head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self._intermediate = mlp.inner
        self.norm, self.mlp_norm = weights.norm, weights.mlp_norm
        self.qkv, self.out = weights.attention.qkv, weights.attention.out
        self.gate_up, self.down = weights.mlp

    def __call__(self, block: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> None:
        """``x`` (T, hidden) becomes its own output. ``cos``, ``sin`` (T, 1, head_dim) from ``Rope.rows``."""
        dtype = x.dtype
        tokens, heads, kv_heads, head_dim = x.shape[0], self._heads, self._kv_heads, self._head_dim
        rotated = heads + kv_heads

        qkv = self.qkv(self.norm(x))
        qkv = (qkv if qkv.dtype is dtype else qkv.to(dtype)).view(tokens, rotated + kv_heads, head_dim)
        qk = qkv[:, :rotated]  # (T, heads + kv_heads, head_dim): q and k turn in one go
        qk = torch.addcmul(qk * cos, qk.roll(head_dim // 2, -1), sin)
        attended = attend(block, qk[:, :heads], qk[:, heads:], qkv[:, rotated:])
        x.add_(self.out(attended))  # in place: keeps the type where a product is of a wider one

        gate_up = self.gate_up(self.mlp_norm(x))
        gated = F.silu(gate_up[:, : self._intermediate]).mul_(gate_up[:, self._intermediate :])
        x.add_(self.down(gated))


class RowwiseBlock(LlamaBlock):
    """The plain path with one way to compute a row: the same bits whatever rows are computed beside it. It is
    a LlamaBlock whose linears are RowTiles, for ``attend`` of a rowwise ``PagedAttention``.

    Products go in tiles (RowTiles). Norms and activations, whose vectorised loops and reductions are cut by
    the size of the whole tensor, go row by row, and so does attention. What is left is single additions and
    multiplications, which IEEE 754 defines. Bits still depend on torch's version, the device, the CPU's
    instructions and, for wide products, the number of threads.
    """

    def __call__(self, block: int, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> None:
        dtype = x.dtype
        tokens, head_dim, inner = x.shape[0], self._head_dim, self._intermediate
        rotated = self._heads + self._kv_heads

        qkv = self.qkv(_each_row(self.norm, x)).to(dtype).view(tokens, rotated + self._kv_heads, head_dim)
        qk = qkv[:, :rotated]
        # Not addcmul: whether it rounds between its two operations is its own affair.
        qk = qk * cos + qk.roll(head_dim // 2, -1) * sin
        attended = attend(block, qk[:, : self._heads], qk[:, self._heads :], qkv[:, rotated:])
        x.add_(self.out(attended).to(dtype))

        gate_up = self.gate_up(_each_row(self.mlp_norm, x))
        gated = _each_row(F.silu, gate_up[:, :inner]).mul_(gate_up[:, inner:])
        x.add_(self.down(gated).to(dtype))


def _each_row(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([function(row.contiguous()) for row in x.split(1)])
