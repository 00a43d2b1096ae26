"""The plain path with one way to compute a row: the same bits whatever rows are computed beside it.

Products on torch's kernels depend on how many rows they have, as the library picks another kernel for each
shape. So dense products always have ROW_TILE rows here, missing ones being zeros: every row of one shape is
computed alike (found by trying; ``row_check`` proves it on the loaded weights). Norms and activations, whose
vectorised loops and reductions are cut by the size of the whole tensor, go row by row, and so does attention
(``PagedAttention``). What is left is single additions and multiplications, which IEEE 754 defines.

Bits still depend on torch's version, the device, the CPU's instructions and, for wide products, the number of
threads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.linear import PACKED_ROWS_INT8, Linear
from .llama import Attend, LlamaBlock

ROW_TILE = 16
"""Rows of every dense product. 3072x576 in float32 on one core, milliseconds: 1 row 0.31, a tile of 8 0.90,
of 16 0.97, of 32 1.23, 512 rows 13.9. So one session's token costs three times as much and a prompt twice."""
PACKED_ROWS = min(ROW_TILE, PACKED_ROWS_INT8)
"""Rows given to torch's packed kernels at a time: few enough that the weights are never unpacked."""


class RowTiles:
    """``linear`` given at most ROW_TILE rows at a time. ``pad``: always exactly that many.

    torch's packed kernels for int8 and int4 take each row the same way in any number, so these are only cut.
    """

    __slots__ = ("_linear", "_pad")

    def __init__(self, linear: Linear, *, pad: bool) -> None:
        self._linear = linear
        self._pad = pad

    @property
    def nbytes(self) -> int:
        return self._linear.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if not self._pad:
            return torch.cat([self._linear(tile) for tile in x.split(PACKED_ROWS)])
        return torch.cat([self._padded(tile) for tile in x.split(ROW_TILE)])

    def _padded(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        if count == ROW_TILE:
            return self._linear(x.contiguous())
        tile = x.new_zeros(ROW_TILE, x.shape[1])
        tile[:count] = x
        return self._linear(tile)[:count]


class RowwiseBlock(LlamaBlock):
    """A LlamaBlock whose linears are RowTiles, for ``attend`` of a rowwise ``PagedAttention``."""

    __slots__ = ()

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
