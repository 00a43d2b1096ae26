"""One block of a model on MLX, over packed tokens: what ``BlockConfig`` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from ..formats.blocks.state import RecurrenceConfig, ShortConvConfig
from ..models.block_weights import AttentionWeights, BlockWeights, RecurrenceWeights, ShortConvWeights
from .experts import ExpertsLayer, MlxExperts
from .mixers.attention import PagedAttention
from .mixers.heads import HeadsLayer
from .mixers.latent import LatentLayer
from .mixers.recurrence import RecurrenceLayer, ShortConvLayer
from .mixers.states import PagedStates
from .mlp import MlxMlp, MlxSide
from .tensors.linear import DenseLinears, MlxLinear
from .tensors.norm import MlxNorm, normed
from .tensors.rope import MlxRope, Positions

if TYPE_CHECKING:
    from ..formats.blocks.block import BlockConfig

    Weights = BlockWeights[MlxNorm, MlxLinear, MlxExperts, DenseLinears]


class MlxBlock:
    """``dtype``: that of activations. ``rope`` belongs to the block's settings."""

    def __init__(self, settings: BlockConfig, weights: Weights, rope: MlxRope | None, dtype: str) -> None:
        self._attention = _attention(settings, weights, rope, dtype)
        self._state = _state(settings, weights)
        self._feed_forward = _feed_forward(settings, weights, dtype)
        self._factors = settings.attention_factor, settings.state_factor, settings.mlp_factor
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
        states: PagedStates,
        beside: mx.array | None = None,
    ) -> mx.array:
        """``x`` (T, hidden) → (T, hidden). ``block`` is absolute. ``beside`` (T, values): what its side
        reads."""
        read = normed(self._norm, x)
        mixed = self._mixed(block, read, positions, attend, states)
        if self._parallel and mixed is not None:
            made = self._transformed(read if self._mlp_norm is None else self._mlp_norm(x), x)
            x = x + _times(mixed if made is None else mixed + made, self._multiplier)
        else:
            if mixed is not None:
                x = x + _times(mixed, self._multiplier)
            made = self._transformed(normed(self._mlp_norm, x), x)
            if made is not None:
                x = x + _times(made, self._multiplier)
        if self._side is not None and beside is not None:
            x = x + self._side(x, beside)
        return _times(x, self._scalar)

    def _mixed(
        self, block: int, read: mx.array, positions: Positions, attend: PagedAttention, states: PagedStates
    ) -> mx.array | None:
        mixed = None
        if self._attention is not None:
            mixed = _times(self._attention(block, read, positions, attend), self._factors[0])
        if self._state is not None:
            kept = _times(self._state(block, read, states), self._factors[1])
            mixed = kept if mixed is None else mixed + kept
        return None if mixed is None else normed(self._attention_out_norm, mixed)

    def _transformed(self, read: mx.array, x: mx.array) -> mx.array | None:
        if self._feed_forward is None:
            return None
        return normed(self._mlp_out_norm, _times(self._feed_forward(read, x), self._factors[2]))


def _attention(
    settings: BlockConfig, weights: Weights, rope: MlxRope | None, dtype: str
) -> HeadsLayer | LatentLayer | None:
    held = weights.attention
    if settings.attention is None or held is None:
        return None
    if isinstance(held, AttentionWeights):
        return HeadsLayer(settings.attention, held, rope, dtype, settings.kv_of)
    return LatentLayer(settings.attention, held, rope, settings.index_of)


def _state(settings: BlockConfig, weights: Weights) -> RecurrenceLayer | ShortConvLayer | None:
    kept, held = settings.state, weights.state
    if isinstance(kept, RecurrenceConfig) and isinstance(held, RecurrenceWeights):
        return RecurrenceLayer(kept, held)
    if isinstance(kept, ShortConvConfig) and isinstance(held, ShortConvWeights):
        return ShortConvLayer(kept, held)
    return None


def _feed_forward(settings: BlockConfig, weights: Weights, dtype: str) -> MlxMlp | ExpertsLayer | None:
    """The dense MLP, the experts or both."""
    dense = None
    if settings.mlp is not None and weights.mlp is not None:
        dense = MlxMlp(settings.mlp, weights.mlp)
    if settings.experts is not None and weights.experts is not None:
        return ExpertsLayer(settings.experts, weights.experts, dense, dtype)
    return dense


def _times(x: mx.array, factor: float) -> mx.array:
    return x if factor == 1 else x * factor
