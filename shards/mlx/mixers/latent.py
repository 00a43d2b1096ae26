"""Multi-head latent attention: q is taken to the latent, and the latent is what all heads attend to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from ..tensors.linear import DenseLinears, MlxLinear
from ..tensors.norm import MlxNorm, normed
from ..tensors.rope import MlxRope, Positions
from .attention import PagedAttention, Scores

if TYPE_CHECKING:
    from ...formats.blocks.attention import AttentionConfig
    from ...models.block_weights import LatentWeights


class LatentLayer:
    """The attention of a block whose settings have ``latent``."""

    def __init__(
        self,
        settings: AttentionConfig,
        weights: LatentWeights[MlxNorm, MlxLinear, DenseLinears],
        rope: MlxRope | None,
    ) -> None:
        if settings.latent is None:
            raise ValueError("the settings are not those of latent attention")
        self._weights, self._rope = weights, rope
        self._heads = settings.heads
        self._nope, self._rank = settings.latent.nope_dim, settings.latent.kv_rank
        self._query_scale = settings.query_scale
        self._scores = Scores(settings, settings.scale)

    def __call__(self, block: int, x: mx.array, positions: Positions, attend: PagedAttention) -> mx.array:
        """``x`` (T, hidden), as the block has normed it → (T, hidden)."""
        weights = self._weights
        read = x
        if weights.q_a is not None:
            read = normed(weights.q_norm, weights.q_a(x))
        q = weights.q(read).reshape(len(x), self._heads, -1)  # nope_dim and rope_dim values a head
        kv = weights.kv_a(x)[:, None]  # (T, 1, kv_rank + rope_dim)
        latent, key = weights.kv_norm(kv[..., : self._rank]), kv[..., self._rank :]
        turned = q[..., self._nope :]
        if self._rope is not None:
            rotate = positions.rotation(self._rope)
            turned, key = rotate(self._rope.scaled(turned)), rotate(self._rope.scaled(key))
        q = mx.concatenate([weights.k_b.heads(q[..., : self._nope]), turned], axis=-1)
        if self._query_scale is not None:
            q = q * positions.query_scale(self._query_scale, q.dtype)
        attended = attend(block, self._scores, q, mx.concatenate([latent, key], axis=-1))
        values = weights.v_b.heads(attended.reshape(len(x), self._heads, self._rank))
        return weights.out(values.reshape(len(x), -1))
