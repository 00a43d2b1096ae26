"""Causal convolutions of each channel by itself, over few inputs, and the block that consists of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .states import PagedStates

if TYPE_CHECKING:
    from ...formats.blocks.state import ShortConvConfig
    from ...models.block_weights import RecurrenceWeights, ShortConvWeights
    from ..tensors.device import Target
    from ..tensors.linear import Linear
    from ..tensors.norm import Norm


class Convolution:
    """Weights of each channel's last inputs, the newest last."""

    def __init__(
        self, weights: RecurrenceWeights[Norm, Linear] | ShortConvWeights[Linear], target: Target
    ) -> None:
        self._taps = torch.from_numpy(weights.taps).to(target.device).T.contiguous()
        self._bias = None
        if weights.conv_bias is not None:
            self._bias = torch.from_numpy(weights.conv_bias).to(target.device)
        self._fused = not target.rowwise

    def __call__(self, inputs: Tensor) -> Tensor:
        """``inputs`` (sessions, taps - 1 + rows, channels): those before the rows, and theirs → (sessions,
        rows, channels)."""
        rows = inputs.shape[1] + 1 - len(self._taps)
        out = inputs[:, :rows] * self._taps[0]
        for tap, weights in enumerate(self._taps[1:], 1):
            if self._fused:  # whether it rounds once or twice may depend on a value's place in the tensor
                out.addcmul_(inputs[:, tap : tap + rows], weights)
            else:
                out += inputs[:, tap : tap + rows] * weights
        return out if self._bias is None else out.add_(self._bias)


class ShortConv:
    """Of a block whose normed input is ``x`` (T, hidden)."""

    def __init__(self, settings: ShortConvConfig, weights: ShortConvWeights[Linear], target: Target) -> None:
        self._shape, self._bcv, self._out = settings.state, weights.bcv, weights.out
        self._conv = Convolution(weights, target)

    def __call__(self, block: int, x: Tensor, states: PagedStates) -> Tensor:
        b, c, v = self._bcv(x).float().chunk(3, 1)
        gated, out = b * v, torch.empty_like(v)
        for group in states.groups(self._shape):
            matrices, window = group.begin(block)
            inputs = torch.cat((window, gated[group.rows].unflatten(0, (group.sessions, -1))), 1)
            out[group.rows] = self._conv(inputs).flatten(0, 1)
            for cut, end in enumerate(group.ends):
                group.keep(block, cut, matrices, inputs[:, end : end + self._shape.rows])
        return self._out((c * out).to(x.dtype))
