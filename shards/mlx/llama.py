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
    from .weights import MlxLoader

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


def load_block(loader: MlxLoader, config: ModelConfig, block: int) -> MlxBlock:
    """Block number ``block`` of the model, with q, k, v and gate, up as one product each."""
    loader.label = f"block {block}"
    prefix = f"model.layers.{block}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    hidden, q_size, kv_size = config.hidden_size, config.q_size, config.kv_size
    inner = config.intermediate_size
    return MlxBlock(
        config,
        norm=loader.norm(f"{prefix}.input_layernorm.weight", hidden),
        qkv=loader.linear([f"{attention}.{part}_proj" for part in "qkv"], [q_size, kv_size, kv_size], hidden),
        out=loader.linear([f"{attention}.o_proj"], [hidden], q_size),
        mlp_norm=loader.norm(f"{prefix}.post_attention_layernorm.weight", hidden),
        gate_up=loader.linear([f"{mlp}.gate_proj", f"{mlp}.up_proj"], [inner, inner], hidden),
        down=loader.linear([f"{mlp}.down_proj"], [hidden], inner),
    )
