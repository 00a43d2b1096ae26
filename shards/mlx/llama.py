"""A Llama block on MLX: RMSNorm, rotary grouped-query attention, SwiGLU, over packed tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx

from .device import fused
from .linear import MlxLinear
from .rope import Rotation

if TYPE_CHECKING:
    from ..formats.config import ModelConfig

Attend = Callable[[int, mx.array, mx.array, mx.array], mx.array]
"""As ``llama.Attend``, with MLX's arrays."""


def _gate(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


class MlxBlock:
    """One block."""

    def __init__(
        self,
        config: ModelConfig,
        norm: mx.array,
        qkv: MlxLinear,
        out: MlxLinear,
        mlp_norm: mx.array,
        gate_up: MlxLinear,
        down: MlxLinear,
    ) -> None:
        self._heads, self._head_dim = config.n_heads, config.head_dim
        self._rotated = config.n_heads + config.n_kv_heads
        self._intermediate, self._eps = config.intermediate_size, config.rms_norm_eps
        self._norm, self._mlp_norm = norm, mlp_norm
        self._qkv, self._out, self._gate_up, self._down = qkv, out, gate_up, down
        self._gate = fused(_gate)

    def __call__(self, block: int, x: mx.array, rotate: Rotation, attend: Attend) -> mx.array:
        """``x`` (T, hidden) → (T, hidden)."""
        qkv = self._qkv(mx.fast.rms_norm(x, self._norm, self._eps)).reshape(len(x), -1, self._head_dim)
        qk = rotate(qkv[:, : self._rotated])  # (T, heads + kv_heads, head_dim): q and k turn in one go
        x = x + self._out(attend(block, qk[:, : self._heads], qk[:, self._heads :], qkv[:, self._rotated :]))
        gate_up = self._gate_up(mx.fast.rms_norm(x, self._mlp_norm, self._eps))
        return x + self._down(self._gate(gate_up[:, : self._intermediate], gate_up[:, self._intermediate :]))
