"""``layers.rope`` as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layers.rope import Rope

if TYPE_CHECKING:
    from ..formats.rope_config import RopeConfig


class TorchRope:
    """cos and sin rows for one model, on ``device`` in ``dtype``. ``rowwise``: as ``Rope``'s."""

    def __init__(
        self, rope: RopeConfig, device: torch.device, dtype: torch.dtype, *, rowwise: bool = False
    ) -> None:
        self._rope = Rope(rope, rowwise=rowwise)
        self._device, self._dtype = device, dtype

    def rows(self, slices: Sequence[tuple[int, int] | tuple[int, int, bool]]) -> tuple[Tensor, Tensor]:
        """``Rope.rows`` as (T, 1, rotary_dim): the middle dimension broadcasts over heads. Read only."""
        cos, sin = (
            torch.from_numpy(rows)[:, None].to(self._device, self._dtype) for rows in self._rope.rows(slices)
        )
        return cos, sin
