"""The plain path with one way to compute a row: the same bits with any rows beside it.

Products go in tiles (``layers.row_tiles``). Norms and activations, whose vectorised loops and reductions are
cut by the size of the whole tensor, go row by row, and so does attention (``PagedAttention``). What is left
is single additions and multiplications, which IEEE 754 defines.

Bits still depend on torch's version, the device, the CPU's instructions and, for wide products, the number of
threads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .llama import Attend, LlamaBlock


class RowwiseBlock(LlamaBlock):
    """A LlamaBlock whose linears are RowTiles, for ``attend`` of a rowwise ``PagedAttention``."""

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
