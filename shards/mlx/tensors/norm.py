"""Norms of rows, each by MLX's kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from ...formats.blocks.norm import NormConfig


class MlxNorm:
    """``norm(x)``: each row of x (..., size) normed, as ``NormConfig`` says. ``weight`` (size), its offset
    added, and ``bias`` (size); None: the settings have none."""

    def __init__(self, settings: NormConfig, weight: mx.array | None, bias: mx.array | None) -> None:
        self._layer, self._eps = settings.kind == "layer", settings.eps
        self._weight, self._bias = weight, bias

    def __call__(self, x: mx.array) -> mx.array:
        if self._layer:
            return mx.fast.layer_norm(x, self._weight, self._bias, self._eps)
        out = mx.fast.rms_norm(x, self._weight, self._eps)
        return out if self._bias is None else out + self._bias


def normed(norm: MlxNorm | None, x: mx.array) -> mx.array:
    return x if norm is None else norm(x)
