"""Multi-head latent attention: q is taken to the latent, and the latent is what all heads attend to, or those
of its tokens that an indexer chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from ..tensors.linear import DenseLinears, MlxLinear
from ..tensors.norm import MlxNorm, normed
from ..tensors.rope import MlxRope, Positions
from .attention import PagedAttention, Scores

if TYPE_CHECKING:
    from ...formats.blocks.attention import AttentionConfig, IndexerConfig
    from ...models.block_weights import IndexerWeights, LatentWeights


class LatentLayer:
    """The attention of a block whose settings have ``latent``."""

    def __init__(
        self,
        settings: AttentionConfig,
        weights: LatentWeights[MlxNorm, MlxLinear, DenseLinears],
        rope: MlxRope | None,
        index_of: int | None = None,
    ) -> None:
        """``index_of``: the block whose indexer says which tokens are seen, where that is not its own."""
        if settings.latent is None:
            raise ValueError("the settings are not those of latent attention")
        self._weights, self._rope = weights, rope
        self._heads = settings.heads
        self._nope, self._rank = settings.latent.nope_dim, settings.latent.kv_rank
        self._query_scale = settings.query_scale
        self._scores = Scores(settings, settings.scale)
        self._indexer = settings.latent.indexer
        self._is_indexed = self._indexer is not None or index_of is not None

    def __call__(self, block: int, x: mx.array, positions: Positions, attend: PagedAttention) -> mx.array:
        """``x`` (T, hidden), as the block has normed it → (T, hidden)."""
        weights = self._weights
        read = x
        if weights.q_a is not None:
            read = normed(weights.q_norm, weights.q_a(x))
        if self._indexer is not None and weights.indexer is not None:
            self._choose(block, x, read, self._indexer, weights.indexer, positions, attend)
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
        keys = mx.concatenate([latent, key], axis=-1)
        attended = attend(block, self._scores, q, keys, indexed=self._is_indexed)
        values = weights.v_b.heads(attended.reshape(len(x), self._heads, self._rank))
        return weights.out(values.reshape(len(x), -1))

    def _choose(
        self,
        block: int,
        x: mx.array,
        read: mx.array,
        settings: IndexerConfig,
        weights: IndexerWeights[MlxNorm, MlxLinear],
        positions: Positions,
        attend: PagedAttention,
    ) -> None:
        """``read``: (T, q_rank), what queries are made of."""
        q = weights.q(read).reshape(len(x), settings.heads, -1)
        qk = mx.concatenate([q, weights.norm(weights.k(x))[:, None]], axis=1)
        if self._rope is not None:
            qk = positions.rotation(self._rope)(self._rope.scaled(qk))
        attend.choose(block, self._scores, settings.top, qk[:, :-1], qk[:, -1:], weights.weights(x))
