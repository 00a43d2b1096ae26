"""A Llama block on MLX: RMSNorm, rotary grouped-query attention, SwiGLU, over packed tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx

from ..models.block_weights import AttentionWeights
from .device import fused
from .linear import MlxLinear
from .rope import Rotation

if TYPE_CHECKING:
    from ..formats.block_config import BlockConfig
    from ..models.block_weights import BlockWeights

Attend = Callable[[int, mx.array, mx.array, mx.array], mx.array]
"""As ``llama.Attend``, with MLX's arrays."""


def _gate(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


class MlxBlock:
    """One block."""

    def __init__(
        self,
        settings: BlockConfig,
        weights: BlockWeights[mx.array, MlxLinear, None, None],
    ) -> None:
        attention, mlp, norm = settings.attention, settings.mlp, settings.norm
        if not isinstance(weights.attention, AttentionWeights) or mlp is None or weights.mlp is None:
            raise ValueError("not a Llama block")
        if norm is None or weights.norm is None or weights.mlp_norm is None:
            raise ValueError("not a Llama block")
        self._heads, self._head_dim = attention.heads, attention.head_dim
        self._rotated = attention.heads + attention.kv_heads
        self._intermediate, self._eps = mlp.inner, norm.eps
        self._norm, self._mlp_norm = weights.norm, weights.mlp_norm
        self._qkv, self._out = weights.attention.qkv, weights.attention.out
        self._gate_up, self._down = weights.mlp
        self._gate = fused(_gate)

    def __call__(self, block: int, x: mx.array, rotate: Rotation, attend: Attend) -> mx.array:
        """``x`` (T, hidden) → (T, hidden)."""
        qkv = self._qkv(mx.fast.rms_norm(x, self._norm, self._eps)).reshape(len(x), -1, self._head_dim)
        qk = rotate(qkv[:, : self._rotated])  # (T, heads + kv_heads, head_dim): q and k turn in one go
        x = x + self._out(attend(block, qk[:, : self._heads], qk[:, self._heads :], qkv[:, self._rotated :]))
        gate_up = self._gate_up(mx.fast.rms_norm(x, self._mlp_norm, self._eps))
        return x + self._down(self._gate(gate_up[:, : self._intermediate], gate_up[:, self._intermediate :]))
