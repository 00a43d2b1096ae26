"""The MLP of a block, and activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import mlx.core as mx

from .tensors.device import Function, fused
from .tensors.linear import MlxLinear

if TYPE_CHECKING:
    from ..formats.blocks.block import SideConfig
    from ..formats.blocks.mlp import MlpConfig
    from ..models.block_weights import MlpWeights, SideWeights
    from .tensors.norm import MlxNorm


class MlxMlp:
    """``mlp(x)``: x (T, hidden) → (T, hidden). A block hands over its residual stream too, which experts may
    read."""

    def __init__(self, settings: MlpConfig, weights: MlpWeights[MlxLinear]) -> None:
        self._gate_up, self._down = weights
        self._activate = activation(settings)

    def __call__(self, x: mx.array, _residual: mx.array | None = None) -> mx.array:
        return self._down(self._activate(self._gate_up(x)))


class MlxSide:
    """``side(x, values)``: x (T, hidden), values (T, side) → (T, hidden)."""

    def __init__(self, settings: SideConfig, weights: SideWeights[MlxNorm, MlxLinear]) -> None:
        self._gate, self._projection, self._norm = weights
        self._activate = fused(_gated(settings.activation))

    def __call__(self, x: mx.array, values: mx.array) -> mx.array:
        return self._norm(self._projection(self._activate(self._gate(x), values)))


@cache
def activation(settings: MlpConfig) -> Function:
    """What becomes of the rows (..., 2 * inner) of gate and up, or (..., inner) of up alone: (..., inner)."""
    inner, factor = settings.inner, settings.gate_factor
    if not settings.gated:
        return fused(_scaled(_ACTIVATIONS[settings.activation], factor))
    if settings.activation == "clamped":
        gate = fused(_clamped(settings))
    else:
        gate = fused(_gated(settings.activation, factor))
    return lambda rows: gate(rows[..., :inner], rows[..., inner:])


@cache
def _gated(name: str, factor: float = 1.0) -> Callable[[mx.array, mx.array], mx.array]:
    activate = _scaled(_ACTIVATIONS[name], factor)
    return lambda gate, up: activate(gate) * up


@cache
def _scaled(activate: Function, factor: float) -> Function:
    return activate if factor == 1 else lambda x: activate(x * factor)


def _clamped(settings: MlpConfig) -> Callable[[mx.array, mx.array], mx.array]:
    alpha, limit, factor = settings.alpha, settings.limit, settings.gate_factor

    def gated(gate: mx.array, up: mx.array) -> mx.array:
        gate = mx.minimum(gate * factor, limit)
        return gate * mx.sigmoid(alpha * gate) * (mx.clip(up, -limit, limit) + 1)

    return gated


def _relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


_ACTIVATIONS: dict[str, Function] = {
    "silu": lambda x: x * mx.sigmoid(x),
    "gelu": lambda x: x * (1 + mx.erf(x * math.sqrt(0.5))) * 0.5,
    "gelu_tanh": lambda x: x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) * 0.5,
    "relu": _relu,
    "relu2": lambda x: _relu(x) * _relu(x),
}
