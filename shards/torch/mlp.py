"""MLPs, gated or not, and their activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formats.blocks.mlp import MlpConfig

if TYPE_CHECKING:
    from ..formats.blocks.block import SideConfig
    from ..models.block_weights import MlpWeights, SideWeights
    from .tensors.device import Target
    from .tensors.linear import Linear
    from .tensors.norm import Norm


class Mlp:
    """``mlp(x)``: x (T, hidden) → the same shape."""

    def __init__(self, settings: MlpConfig, weights: MlpWeights[Linear], target: Target) -> None:
        self._inner, self._gated = settings.inner, settings.gated
        self._limit = settings.limit if settings.activation == "clamped" else 0.0
        self.gate_up, self.down = weights
        activate = _sparse(activation(settings), settings.sparsity)
        factor = settings.gate_factor
        self._activation = target.per_row(activate if factor == 1 else lambda gate: activate(gate * factor))

    def __call__(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x)
        if not self._gated:
            return self.down(self._activation(gate_up))
        up = gate_up[:, self._inner :]
        if self._limit:
            up = up.clamp(-self._limit, self._limit).add_(1)
        return self.down(self._activation(gate_up[:, : self._inner]).mul_(up))


class Side:
    """``side(x, values)``: x (T, hidden), values (T, side) → (T, hidden)."""

    def __init__(self, settings: SideConfig, weights: SideWeights[Norm, Linear], target: Target) -> None:
        self.gate, self.projection, self._norm = weights
        self._activation = target.per_row(activation(MlpConfig(settings.values, settings.activation)))

    def __call__(self, x: Tensor, values: Tensor) -> Tensor:
        gated = self._activation(self.gate(x)).mul_(values)
        return self._norm(self.projection(gated).to(x.dtype))


def _sparse(activate: Callable[[Tensor], Tensor], sparsity: float) -> Callable[[Tensor], Tensor]:
    """``activate``, of what exceeds a cutoff of its row: see ``MlpConfig``."""
    if not sparsity:
        return activate
    quantile = NormalDist().inv_cdf(sparsity)

    def of_the_largest(gate: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(gate, -1, correction=0, keepdim=True)
        return activate(F.relu(gate - (mean + deviation * quantile)))

    return of_the_largest


def activation(settings: MlpConfig) -> Callable[[Tensor], Tensor]:
    """Its result is memory of its own."""
    alpha, limit = settings.alpha, settings.limit

    def clamped(gate: Tensor) -> Tensor:
        gate = gate.clamp(max=limit)
        return torch.sigmoid(gate * alpha).mul_(gate)

    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "relu": F.relu,
        "relu2": lambda x: F.relu(x).square_(),
        "clamped": clamped,
    }
    return functions[settings.activation]
