"""Several residual streams (alternating updates, arXiv 2301.13310), and the learned residual beside attention
(arXiv 2411.07501): see ``formats.blocks``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..formats.blocks.block import StreamsConfig
    from ..models.block_weights import LaurelWeights, StreamsWeights
    from .tensors.device import Target
    from .tensors.linear import Linear
    from .tensors.norm import Norm


class Laurel:
    """``laurel(x, normed)``: both (T, hidden) → the same shape."""

    def __init__(self, weights: LaurelWeights[Norm, Linear]) -> None:
        self.left, self.right, self._norm = weights

    def __call__(self, x: Tensor, normed: Tensor) -> Tensor:
        beside = self._norm(self.right(self.left(normed)).to(x.dtype))
        return (x + normed + beside) * 0.5**0.5


class Streams:
    """Of rows (T, count, hidden). Sums go stream by stream, so that each value is of single additions."""

    def __init__(
        self, settings: StreamsConfig, weights: StreamsWeights[Norm, Linear], target: Target
    ) -> None:
        self.count, self.active = settings.count, settings.active
        self._norm, self.router, self.predict_coefs, self.correct_coefs, scale = weights
        self._scale = None if scale is None else target.tensor(scale)
        self._tanh = target.per_row(torch.tanh)

    def predict(self, x: Tensor) -> Tensor:
        routed = self.predict_coefs(self._route(x[:, self.active])).to(x.dtype)
        coefs = routed.unflatten(1, (self.count, self.count, 1))  # (T, to, from, 1)
        predicted = x.clone()
        for source in range(self.count):
            predicted += coefs[:, :, source] * x[:, source, None]
        return predicted

    def correct(self, predicted: Tensor, y: Tensor) -> Tensor:
        """``y`` (T, hidden): what the block made of the active stream of ``predicted``."""
        coefs = self.correct_coefs(self._route(y)).to(y.dtype) + 1
        return predicted + coefs[..., None] * (y - predicted[:, self.active])[:, None]

    def scaled(self, x: Tensor) -> Tensor:
        """What of rows (T, count, hidden) a side reads."""
        active = x[:, self.active]
        return active.contiguous() if self._scale is None else active * self._scale

    def _route(self, x: Tensor) -> Tensor:
        return self._tanh(self.router(self._norm(x.contiguous()) / x.shape[-1]).to(x.dtype))
