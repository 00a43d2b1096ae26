"""One block of a model on MLX, over packed tokens: what ``BlockConfig`` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from ...swarm.errors import UnsupportedModelError
from ..models.block_weights import AttentionWeights
from .experts import ExpertsLayer, MlxExperts
from .mixers.attention import PagedAttention
from .mixers.heads import HeadsLayer
from .mixers.latent import LatentLayer
from .mlp import MlxMlp, MlxSide
from .tensors.linear import DenseLinears, MlxLinear
from .tensors.norm import MlxNorm, normed
from .tensors.rope import MlxRope, Positions

if TYPE_CHECKING:
    from ...swarm.errors import UnsupportedModelError
    from ..formats.blocks.block import BlockConfig
from ..models.block_weights import BlockWeights


class MlxBlock:
    """``dtype``: that of activations. ``rope`` belongs to the block's settings."""

    def __init__(
        self,
        settings: BlockConfig,
        weights: BlockWeights[MlxNorm, MlxLinear, MlxExperts, DenseLinears],
        rope: MlxRope | None,
        dtype: str,
    ) -> None:
        attention = weights.attention
        self._attention: HeadsLayer | LatentLayer
        if settings.attention is None or attention is None:
            raise UnsupportedModelError("MLX does not compute blocks without attention")
        if isinstance(attention, AttentionWeights):
            self._attention = HeadsLayer(settings.attention, attention, rope, dtype, settings.kv_of)
        else:
            self._attention = LatentLayer(settings.attention, attention, rope)
        dense = None
        if settings.mlp is not None and weights.mlp is not None:
            dense = MlxMlp(settings.mlp, weights.mlp)
        self._feed_forward: MlxMlp | ExpertsLayer
        if settings.experts is not None and weights.experts is not None:
            self._feed_forward = ExpertsLayer(settings.experts, weights.experts, dense, dtype)
        elif dense is not None:
            self._feed_forward = dense
        self._norm, self._mlp_norm = weights.norm, weights.mlp_norm
        self._attention_out_norm, self._mlp_out_norm = weights.attention_out_norm, weights.mlp_out_norm
        self._side: MlxSide | None = None
        if settings.side is not None and weights.side is not None:
            self._side = MlxSide(settings.side, weights.side)
        self._parallel = settings.parallel
        self._multiplier, self._scalar = settings.residual_multiplier, weights.scalar

    def __call__(
        self,
        block: int,
        x: mx.array,
        positions: Positions,
        attend: PagedAttention,
        beside: mx.array | None = None,
    ) -> mx.array:
        """``x`` (T, hidden) → (T, hidden). ``block`` is absolute. ``beside`` (T, values): what its side
        reads."""
        read = normed(self._norm, x)
        attended = normed(self._attention_out_norm, self._attention(block, read, positions, attend))
        if self._parallel:
            read = read if self._mlp_norm is None else self._mlp_norm(x)
            out = normed(self._mlp_out_norm, self._feed_forward(read, x))
            x = x + self._times(attended + out)
        else:
            x = x + self._times(attended)
            out = self._feed_forward(normed(self._mlp_norm, x), x)
            x = x + self._times(normed(self._mlp_out_norm, out))
        if self._side is not None and beside is not None:
            x = x + self._side(x, beside)
        return x if self._scalar == 1.0 else x * self._scalar

    def _times(self, x: mx.array) -> mx.array:
        return x if self._multiplier == 1.0 else x * self._multiplier
