"""From a block's input to queries, keys and values, and from what they attend to its output: with heads of
keys and values, and with a latent that all heads share; and which tokens an indexer lets these see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..tensors.norm import Norm, norm_of
from ..tensors.rope import Positions, TorchRope, turned
from .attention import PagedAttention, Scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...formats.blocks.attention import AttentionConfig, HeadNorm, IndexerConfig
    from ...models.block_weights import AttentionWeights, IndexerWeights, LatentWeights
    from ..tensors.device import Target
    from ..tensors.linear import Linear


class SelfAttention:
    """Grouped-query attention of a block. ``x``: (T, hidden), normed; ``block``: its absolute number."""

    def __init__(
        self,
        settings: AttentionConfig,
        weights: AttentionWeights[Norm, Linear],
        rope: TorchRope | None,
        target: Target,
        kv_of: int | None = None,
    ) -> None:
        """``kv_of``: the block whose keys and values are read, where these are not its own."""
        self._kv_of, kv_heads = kv_of, settings.kv_heads if kv_of is None else 0
        self.qkv, self.out = weights.qkv, weights.out
        self._heads, self._head_dim, self._rope = settings.heads, settings.head_dim, rope
        self._rotated = settings.heads + kv_heads
        self._stacked = self._rotated + (0 if settings.keys_as_values else kv_heads)
        self._query_scale, self._gate = settings.query_scale, settings.gate
        self._sigmoid = target.per_row(torch.sigmoid)
        self._fused = not target.rowwise
        sinks = None if weights.sinks is None else torch.from_numpy(weights.sinks).to(target.device)
        self._scores = Scores.of(settings, sinks)
        self._norm = self._late_norm = self._v_norm = None
        if settings.qk_norm is not None:
            norm = target.per_row(_qk_norm(settings, kv_heads, settings.qk_norm, weights, target))
            if settings.qk_norm.after_rope:
                self._late_norm = norm
            else:
                self._norm = norm
        if settings.v_norm is not None:
            weight = _vector(weights.v_norm, settings.kv_size).reshape(settings.kv_heads, -1)
            self._v_norm = target.per_row(norm_of(settings.v_norm, target.tensor(weight)))

    def __call__(self, block: int, x: Tensor, positions: Positions, attend: PagedAttention) -> Tensor:
        stacked = self.qkv(x)
        if stacked.dtype is not x.dtype:
            stacked = stacked.to(x.dtype)
        width = self._stacked * self._head_dim  # the gate is behind
        part = stacked if self._gate is None else stacked[:, :width]
        heads = part.view(x.shape[0], -1, self._head_dim)
        qk = heads[:, : self._rotated]  # (T, heads + kv_heads, head_dim): q and k turn in one go
        if self._norm is not None:
            qk = self._norm(qk)
        if self._rope is not None:
            qk = turned(qk, positions.rotation(self._rope), fused=self._fused)
        if self._late_norm is not None:
            qk = self._late_norm(qk)
        q, k = qk[:, : self._heads], qk[:, self._heads :]
        if self._query_scale is not None:
            q = q * positions.query_scale(self._query_scale)
        if self._kv_of is not None:
            attended = attend(self._kv_of, self._scores, q, None, None)
        else:
            v = heads[:, -k.shape[1] :]  # the keys themselves where there are no others
            attended = attend(block, self._scores, q, k, v if self._v_norm is None else self._v_norm(v))
        if self._gate is not None:
            gate = self._sigmoid(stacked[:, width:])
            if self._gate == "head":
                gate = gate.repeat_interleave(self._head_dim, 1)
            attended = attended * gate
        return self.out(attended)


class LatentAttention:
    """Multi-head latent attention of a block, absorbed: q is taken to the latent, which is key and value, and
    what is attended from there to the heads' values. Arguments as for ``SelfAttention``."""

    def __init__(
        self,
        settings: AttentionConfig,
        weights: LatentWeights[Norm, Linear, Linear],
        rope: TorchRope | None,
        target: Target,
        index_of: int | None = None,
    ) -> None:
        """``index_of``: the block whose indexer says which tokens are seen, where that is not its own."""
        if settings.latent is None:
            raise ValueError("attention without a latent")
        self.q_a, self.q_norm, self.q, self.kv_a, self.kv_norm, self.k_b, self.v_b, self.out, _ = weights
        self._indexer = None
        if settings.latent.indexer is not None and weights.indexer is not None:
            self._indexer = Indexer(settings, settings.latent.indexer, weights.indexer, rope, target)
        self._is_indexed = self._indexer is not None or index_of is not None
        self._heads, self._rope = settings.heads, rope
        self._rank, self._nope = settings.latent.kv_rank, settings.latent.nope_dim
        self._query_scale, self._fused = settings.query_scale, not target.rowwise
        self._scores = Scores.of(settings, None)

    def __call__(self, block: int, x: Tensor, positions: Positions, attend: PagedAttention) -> Tensor:
        queried = x if self.q_a is None else self.q_a(x).to(x.dtype)
        if self.q_norm is not None:
            queried = self.q_norm(queried)
        if self._indexer is not None:
            self._indexer(block, x, queried, positions, attend)
        q = self.q(queried).to(x.dtype).unflatten(1, (self._heads, -1))
        kv = self.kv_a(x).to(x.dtype)
        latent = self.kv_norm(kv[:, : self._rank])
        rotating = torch.cat((q[..., self._nope :], kv[:, None, self._rank :]), 1)  # (T, heads + 1, rope_dim)
        if self._rope is not None:
            rotating = turned(rotating, positions.rotation(self._rope), fused=self._fused)
        q = torch.cat((self.k_b(q[..., : self._nope]), rotating[:, :-1]), -1)  # (T, heads, key_dim)
        if self._query_scale is not None:
            q = q * positions.query_scale(self._query_scale)
        k = torch.cat((latent[:, None], rotating[:, -1:]), -1)  # (T, 1, key_dim)
        attended = attend(block, self._scores, q, k, k[..., : self._rank], indexed=self._is_indexed)
        return self.out(self.v_b(attended.unflatten(1, (self._heads, -1))).flatten(1))


class Indexer:
    """Lets ``attend`` choose the tokens that a block sees. ``x``: (T, hidden), as the block has normed it;
    ``queried`` (T, q_rank): the latents of its queries."""

    def __init__(
        self,
        attention: AttentionConfig,
        settings: IndexerConfig,
        weights: IndexerWeights[Norm, Linear],
        rope: TorchRope | None,
        target: Target,
    ) -> None:
        self.q, self.k, self.norm, self.weights = weights
        self._kv, self._top, self._heads = attention.kv, settings.top, settings.heads
        self._rope, self._fused = rope, not target.rowwise

    def __call__(
        self, block: int, x: Tensor, queried: Tensor, positions: Positions, attend: PagedAttention
    ) -> None:
        q = self.q(queried).to(x.dtype).unflatten(1, (self._heads, -1))
        k = self.norm(self.k(x).to(x.dtype))
        qk = torch.cat((q, k[:, None]), 1)  # (T, heads + 1, head_dim)
        if self._rope is not None:
            qk = turned(qk, positions.rotation(self._rope), fused=self._fused)
        attend.choose(block, self._kv, self._top, qk[:, :-1], qk[:, -1:], self.weights(x))


def _qk_norm(
    settings: AttentionConfig,
    kv_heads: int,
    norm: HeadNorm,
    weights: AttentionWeights[Norm, Linear],
    target: Target,
) -> Norm:
    """Of q and k together, (T, heads + kv_heads, head_dim)."""
    heads, dim = settings.heads, settings.head_dim
    weight = [_vector(weights.q_norm, heads * dim), _vector(weights.k_norm, kv_heads * dim)]
    bias = [part for part in (weights.q_norm_bias, weights.k_norm_bias) if part is not None]
    if norm.over == "head":
        return norm_of(
            norm.norm,
            target.tensor(np.concatenate(weight)).unflatten(0, (-1, dim)),
            target.tensor(np.concatenate(bias)).unflatten(0, (-1, dim)) if bias else None,
        )
    q_norm, k_norm = (
        norm_of(norm.norm, target.tensor(weight[part]), target.tensor(bias[part]) if bias else None)
        for part in range(2)
    )

    def over_all(qk: Tensor) -> Tensor:
        parts = [q_norm(qk[:, :heads].flatten(1))]
        if kv_heads:
            parts.append(k_norm(qk[:, heads:].flatten(1)))
        return torch.cat(parts, 1).view(qk.shape)

    return over_all


def _vector(values: NDArray[np.float32] | None, size: int) -> NDArray[np.float32]:
    return np.ones(size, np.float32) if values is None else values
