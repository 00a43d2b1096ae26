"""A block, whatever its settings, over packed tokens of many sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formats.blocks.state import RecurrenceConfig, ShortConvConfig
from ..models.block_weights import AttentionWeights, RecurrenceWeights, ShortConvWeights
from .experts import Experts
from .mixers.convolution import ShortConv
from .mixers.recurrence import Recurrence
from .mixers.self_attention import LatentAttention, SelfAttention
from .mlp import Mlp, Side
from .streams import Laurel, Streams

if TYPE_CHECKING:
    from ..formats.blocks.block import BlockConfig
    from ..models.block_weights import BlockWeights, MlpWeights
    from .mixers.attention import PagedAttention
    from .mixers.states import PagedStates
    from .tensors.device import Target
    from .tensors.linear import Linear
    from .tensors.norm import Norm
    from .tensors.rope import Positions, TorchRope

    Transform = Callable[[Tensor, Tensor], Tensor]
    """``transform(normed, stream)``: what it reads and the residual stream, both (T, hidden)."""
    TorchWeights = BlockWeights[Norm, Linear, list[MlpWeights[Linear]], Linear]


class Block:
    """One block. Not an ``nn.Module``: its call overhead is most of a decode token at this size."""

    def __init__(
        self, settings: BlockConfig, weights: TorchWeights, rope: TorchRope | None, target: Target
    ) -> None:
        """``rope``: that of its attention; blocks that are turned alike have the same one."""
        self._attention = _attention(settings, weights, rope, target)
        self._state = _state(settings, weights, target)
        self._factors = settings.attention_factor, settings.state_factor, settings.mlp_factor
        self._transform = _transform(settings, weights, target)
        self._norm, self._mlp_norm = weights.norm or _same, weights.mlp_norm
        self._attention_out_norm = weights.attention_out_norm or _same
        self._mlp_out_norm = weights.mlp_out_norm or _same
        self._parallel, self._multiplier = settings.parallel, settings.residual_multiplier
        self._scalar = weights.scalar
        self._side: Side | None = None
        if settings.side is not None and weights.side is not None:
            self._side = Side(settings.side, weights.side, target)
        self._laurel = None if weights.laurel is None else Laurel(weights.laurel)
        self._streams: Streams | None = None
        if settings.streams is not None and weights.streams is not None:
            self._streams = Streams(settings.streams, weights.streams, target)

    def __call__(
        self,
        block: int,
        x: Tensor,
        positions: Positions,
        attend: PagedAttention,
        states: PagedStates,
        beside: Tensor | None = None,
    ) -> None:
        """``x`` (T, residual) becomes its own output. ``block`` is absolute. ``beside`` (T, values): what its
        side reads."""
        if self._streams is None:
            self._compute(block, x, positions, attend, states)
            if self._side is not None and beside is not None:
                x.add_(self._side(x, beside))
            if self._scalar != 1:
                x.mul_(self._scalar)
            return
        predicted = self._streams.predict(x.unflatten(1, (self._streams.count, -1)))
        y = predicted[:, self._streams.active].clone(memory_format=torch.contiguous_format)
        self._compute(block, y, positions, attend, states)
        corrected = self._streams.correct(predicted, y)
        if self._side is not None and beside is not None:
            corrected[:, 1:] += self._side(self._streams.scaled(corrected), beside)[:, None]
        x.copy_(corrected.flatten(1))

    def _compute(
        self, block: int, x: Tensor, positions: Positions, attend: PagedAttention, states: PagedStates
    ) -> None:
        """``x`` (T, hidden), in place: what mixes rows, and what transforms each."""
        normed = self._norm(x)
        mixed = self._mixed(block, normed, positions, attend, states)
        if self._parallel and mixed is not None:
            made = self._transformed(normed if self._mlp_norm is None else self._mlp_norm(x), x)
            self._add(x, mixed if made is None else mixed + made)
            return
        if mixed is not None:
            self._add(x, mixed)
        if self._laurel is not None:
            x.copy_(self._laurel(x, normed))
        made = self._transformed(x if self._mlp_norm is None else self._mlp_norm(x), x)
        if made is not None:
            self._add(x, made)

    def _mixed(
        self, block: int, normed: Tensor, positions: Positions, attend: PagedAttention, states: PagedStates
    ) -> Tensor | None:
        of_attention, of_state, _ = self._factors
        mixed = None
        if self._attention is not None:
            mixed = _times(self._attention(block, normed, positions, attend), of_attention)
        if self._state is not None:
            kept = _times(self._state(block, normed, states), of_state)
            mixed = kept if mixed is None else mixed + kept
        return None if mixed is None else self._attention_out_norm(mixed)

    def _transformed(self, normed: Tensor, x: Tensor) -> Tensor | None:
        if self._transform is None:
            return None
        return self._mlp_out_norm(_times(self._transform(normed, x), self._factors[2]))

    def _add(self, x: Tensor, part: Tensor) -> None:
        """In place: keeps the type where a product is of a wider one."""
        x.add_(_times(part, self._multiplier))


def _attention(
    settings: BlockConfig, weights: TorchWeights, rope: TorchRope | None, target: Target
) -> SelfAttention | LatentAttention | None:
    held = weights.attention
    if settings.attention is None or held is None:
        return None
    if isinstance(held, AttentionWeights):
        return SelfAttention(settings.attention, held, rope, target, settings.kv_of)
    return LatentAttention(settings.attention, held, rope, target, settings.index_of)


def _state(settings: BlockConfig, weights: TorchWeights, target: Target) -> Recurrence | ShortConv | None:
    kept, held = settings.state, weights.state
    if isinstance(kept, RecurrenceConfig) and isinstance(held, RecurrenceWeights):
        return Recurrence(kept, held, target)
    if isinstance(kept, ShortConvConfig) and isinstance(held, ShortConvWeights):
        return ShortConv(kept, held, target)
    return None


def _transform(settings: BlockConfig, weights: TorchWeights, target: Target) -> Transform | None:
    """By the dense MLP, the experts or both."""
    held = weights.experts
    dense = experts = None
    if settings.mlp is not None and weights.mlp is not None:
        dense = Mlp(settings.mlp, weights.mlp, target)
    if settings.experts is not None and held is not None:
        experts = Experts(settings.experts, held, target)
    if dense is None or experts is None or held is None:
        if experts is not None:
            return experts
        if dense is not None:
            return lambda normed, _: dense(normed)
        return None
    dense_out_norm, experts_out_norm = held.dense_out_norm or _same, held.out_norm or _same

    def both(normed: Tensor, stream: Tensor) -> Tensor:
        routed = normed if held.norm is None else held.norm(stream)
        return dense_out_norm(dense(normed)) + experts_out_norm(experts(routed, stream))

    return both


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _same(x: Tensor) -> Tensor:
    return x
