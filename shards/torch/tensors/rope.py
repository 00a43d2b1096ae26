"""``layers.rope`` as tensors, and the positions of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...layers.rope import Rope

if TYPE_CHECKING:
    from ...formats.blocks.attention import QueryScale
    from ...formats.blocks.rope import RopeConfig
    from ...layers.kv_pool import BatchSlice

Rotation = tuple[Tensor, Tensor]
"""cos and sin, each (T, 1, rotary_dim)."""


class TorchRope:
    """cos and sin rows for one kind of rotation, on ``device`` in ``dtype``. ``rowwise``: as ``Rope``'s."""

    def __init__(
        self, rope: RopeConfig, device: torch.device, dtype: torch.dtype, *, rowwise: bool = False
    ) -> None:
        self._rope = Rope(rope, rowwise=rowwise)
        self._device, self._dtype = device, dtype

    def rows(self, slices: Sequence[tuple[int, int] | tuple[int, int, bool]]) -> Rotation:
        """``Rope.rows`` as (T, 1, rotary_dim): the middle dimension broadcasts over heads. Read only."""
        cos, sin = (
            torch.from_numpy(rows)[:, None].to(self._device, self._dtype) for rows in self._rope.rows(slices)
        )
        return cos, sin


class Positions:
    """What the rows of one forward pass are turned and scaled by: made once, for all blocks that need it."""

    def __init__(self, slices: Sequence[BatchSlice], device: torch.device, dtype: torch.dtype) -> None:
        self._slices = [(part.start, part.count, part.long_context) for part in slices]
        self._device, self._dtype = device, dtype
        self._rotations: dict[TorchRope, Rotation] = {}
        self._scales: dict[QueryScale, Tensor] = {}

    def rotation(self, rope: TorchRope) -> Rotation:
        if rope not in self._rotations:
            self._rotations[rope] = rope.rows(self._slices)
        return self._rotations[rope]

    def query_scale(self, scale: QueryScale) -> Tensor:
        """(T, 1, 1)"""
        if scale not in self._scales:
            at = np.concatenate([np.arange(start, start + count) for start, count, _ in self._slices])
            factors = (1 + scale.beta * np.log1p((at + scale.offset) // scale.period)).astype(np.float32)
            self._scales[scale] = torch.from_numpy(factors)[:, None, None].to(self._device, self._dtype)
        return self._scales[scale]


def turned(x: Tensor, rotation: Rotation, *, fused: bool = True) -> Tensor:
    """``x`` (T, heads, head_dim) with its first ``rotary_dim`` dimensions turned. ``fused``: a multiplication
    and the addition after it may be one operation, which may or may not round between them."""
    cos, sin = rotation
    dim = cos.shape[-1]
    part = x if dim == x.shape[-1] else x[..., :dim]
    rolled = part.roll(dim // 2, -1)
    out = torch.addcmul(part * cos, rolled, sin) if fused else part * cos + rolled * sin
    return out if part is x else torch.cat((out, x[..., dim:]), -1)
