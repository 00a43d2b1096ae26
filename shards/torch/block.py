"""A block, whatever its settings, over packed tokens of many sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.block_weights import AttentionWeights
from .experts import Experts
from .mlp import Mlp, Side
from .self_attention import LatentAttention, SelfAttention
from .streams import Laurel, Streams

if TYPE_CHECKING:
    from ..formats.blocks.block import BlockConfig
    from ..models.block_weights import BlockWeights, MlpWeights
    from .attention import PagedAttention
    from .device import Target
    from .linear import Linear
    from .norm import Norm
    from .rope import Positions, TorchRope

    Transform = Callable[[Tensor, Tensor], Tensor]
    """``transform(normed, stream)``: what it reads and the residual stream, both (T, hidden)."""
    TorchWeights = BlockWeights[Norm, Linear, list[MlpWeights[Linear]], Linear]


class Block:
    """One block. Not an ``nn.Module``: its call overhead is most of a decode token at this size."""

    def __init__(
        self, settings: BlockConfig, weights: TorchWeights, rope: TorchRope | None, target: Target
    ) -> None:
        """``rope``: of ``settings.attention.rope``; blocks that are turned alike have the same one."""
        attention = weights.attention
        self._attention: SelfAttention | LatentAttention
        if isinstance(attention, AttentionWeights):
            self._attention = SelfAttention(settings.attention, attention, rope, target, settings.kv_of)
        else:
            self._attention = LatentAttention(settings.attention, attention, rope, target)
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
        beside: Tensor | None = None,
    ) -> None:
        """``x`` (T, residual) becomes its own output. ``block`` is absolute. ``beside`` (T, values): what its
        side reads."""
        if self._streams is None:
            self._compute(block, x, positions, attend)
            if self._side is not None and beside is not None:
                x.add_(self._side(x, beside))
            if self._scalar != 1:
                x.mul_(self._scalar)
            return
        predicted = self._streams.predict(x.unflatten(1, (self._streams.count, -1)))
        y = predicted[:, self._streams.active].clone(memory_format=torch.contiguous_format)
        self._compute(block, y, positions, attend)
        corrected = self._streams.correct(predicted, y)
        if self._side is not None and beside is not None:
            corrected[:, 1:] += self._side(self._streams.scaled(corrected), beside)[:, None]
        x.copy_(corrected.flatten(1))

    def _compute(self, block: int, x: Tensor, positions: Positions, attend: PagedAttention) -> None:
        """``x`` (T, hidden), in place: attention and MLP."""
        normed = self._norm(x)
        attended = self._attention_out_norm(self._attention(block, normed, positions, attend))
        if self._parallel:
            made = self._transform(normed if self._mlp_norm is None else self._mlp_norm(x), x)
            self._add(x, attended + self._mlp_out_norm(made))
        else:
            self._add(x, attended)
            if self._laurel is not None:
                x.copy_(self._laurel(x, normed))
            made = self._transform(x if self._mlp_norm is None else self._mlp_norm(x), x)
            self._add(x, self._mlp_out_norm(made))

    def _add(self, x: Tensor, part: Tensor) -> None:
        """In place: keeps the type where a product is of a wider one."""
        x.add_(part if self._multiplier == 1 else part * self._multiplier)


def _transform(settings: BlockConfig, weights: TorchWeights, target: Target) -> Transform:
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
        raise ValueError("a block with neither an MLP nor experts")
    dense_out_norm, experts_out_norm = held.dense_out_norm or _same, held.out_norm or _same

    def both(normed: Tensor, stream: Tensor) -> Tensor:
        routed = normed if held.norm is None else held.norm(stream)
        return dense_out_norm(dense(normed)) + experts_out_norm(experts(routed, stream))

    return both


def _same(x: Tensor) -> Tensor:
    return x
