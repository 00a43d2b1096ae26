"""Attention of query heads in groups: what a block makes of q, k and v before it attends, and after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..tensors.device import optional
from ..tensors.linear import MlxLinear
from ..tensors.norm import MlxNorm
from ..tensors.rope import MlxRope, Positions
from .attention import PagedAttention, Scores

if TYPE_CHECKING:
    from ...formats.blocks.attention import AttentionConfig, HeadNorm
    from ...models.block_weights import AttentionWeights


class HeadsLayer:
    """The attention of a block without ``latent``."""

    def __init__(
        self,
        settings: AttentionConfig,
        weights: AttentionWeights[MlxNorm, MlxLinear],
        rope: MlxRope | None,
        dtype: str,
        kv_of: int | None = None,
    ) -> None:
        """``kv_of``: the block whose keys and values are read, where these are not its own."""
        self._settings, self._rope, self._kv_of = settings, rope, kv_of
        self._qkv, self._out = weights.qkv, weights.out
        self._heads, self._head_dim = settings.heads, settings.head_dim
        kv_heads = settings.kv_heads if kv_of is None else 0
        self._rotated = settings.heads + kv_heads
        self._first_value = settings.heads if settings.keys_as_values else self._rotated
        self._width = (self._first_value + kv_heads) * settings.head_dim
        self._norm = self._v_norm = None
        if settings.qk_norm is not None:
            self._norm = _QkNorm(settings, settings.qk_norm, weights, dtype)
        if settings.v_norm is not None:
            each = None if weights.v_norm is None else weights.v_norm[: self._head_dim]
            self._v_norm = MlxNorm(settings.v_norm, optional(each, dtype), None)
        self._after = settings.qk_norm is not None and settings.qk_norm.after_rope
        scale = settings.scale
        self._scaled = False
        if rope is not None and rope.factor != 1.0:
            # A factor on all of q and k is one on their product, which costs nothing.
            whole = rope.dim == self._head_dim and not self._after
            scale, self._scaled = (scale * rope.factor**2, False) if whole else (scale, True)
        self._scores = Scores(settings, scale, optional(weights.sinks, dtype))

    def __call__(self, block: int, x: mx.array, positions: Positions, attend: PagedAttention) -> mx.array:
        """``x`` (T, hidden), as the block has normed it → (T, hidden)."""
        projected, settings = self._qkv(x), self._settings
        rows = projected if settings.gate is None else projected[:, : self._width]
        rows = rows.reshape(len(x), -1, self._head_dim)
        # (T, heads + kv_heads, head_dim): q and k are normed and turned in one go.
        qk, v = rows[:, : self._rotated], rows[:, self._first_value :]
        if self._norm is not None and not self._after:
            qk = self._norm(qk)
        if self._rope is not None:
            qk = positions.rotation(self._rope)(self._rope.scaled(qk) if self._scaled else qk)
        if self._norm is not None and self._after:
            qk = self._norm(qk)
        if self._v_norm is not None:
            v = self._v_norm(v)
        q = qk[:, : self._heads]
        if settings.query_scale is not None:
            q = q * positions.query_scale(settings.query_scale, q.dtype)
        if self._kv_of is None:
            out = attend(block, self._scores, q, qk[:, self._heads :], v)
        else:
            out = attend(self._kv_of, self._scores, q, None)
        if settings.gate is not None:
            gate = mx.sigmoid(projected[:, self._width :])
            out = out.reshape(*gate.shape, -1) * gate[..., None]  # a value or a whole head has one gate
            out = out.reshape(len(x), -1)
        return self._out(out)


class _QkNorm:
    """``norm(qk)``: q and k (T, heads + kv_heads, head_dim), each head or all heads of each normed."""

    def __init__(
        self,
        settings: AttentionConfig,
        norm: HeadNorm,
        weights: AttentionWeights[MlxNorm, MlxLinear],
        dtype: str,
    ) -> None:
        parts = (weights.q_norm, weights.k_norm), (weights.q_norm_bias, weights.k_norm_bias)
        self._heads, self._each = settings.heads, norm.over == "head"
        self._norms: list[MlxNorm] = []
        self._weight = self._bias = None
        if self._each:
            self._norms = [MlxNorm(norm.norm, None, None)]
            shape = (-1, settings.head_dim)
            self._weight, self._bias = (
                optional(np.concatenate(given).reshape(shape), dtype) if (given := _given(part)) else None
                for part in parts
            )
        else:
            self._norms = [
                MlxNorm(norm.norm, optional(weight, dtype), optional(bias, dtype))
                for weight, bias in zip(*parts, strict=True)
            ]

    def __call__(self, qk: mx.array) -> mx.array:
        if self._each:
            qk = self._norms[0](qk)
            qk = qk if self._weight is None else qk * self._weight
            return qk if self._bias is None else qk + self._bias
        parts = qk[:, : self._heads], qk[:, self._heads :]
        normed = [
            norm(part.reshape(len(qk), -1)).reshape(part.shape)
            for norm, part in zip(self._norms, parts, strict=True)
            if part.size
        ]
        return mx.concatenate(normed, axis=1)


def _given(parts: Iterable[np.ndarray | None]) -> list[np.ndarray]:
    return [part for part in parts if part is not None]
