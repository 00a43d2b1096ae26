"""From queries and keys to weights of values: which keys a row sees, and what a block makes of q·k."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..tensors.device import Function, fused

if TYPE_CHECKING:
    from ...formats.blocks.attention import AttentionConfig
    from ...layers.kv_pool import BatchSlice

MOST_SCORES = 1 << 27
"""A prompt's rows are attended so many at a time that there are at most this many scores: not every size of
head has a kernel that holds none."""

Mask = mx.array | str | None
"""True where a key is seen, broadcast to (1, heads, rows, keys); "causal": the last row sees all keys, each
row before it one less; None: all are seen."""


class Scores:
    """Of the blocks with these ``settings``. ``scale`` multiplies q·k; ``sinks`` (heads)."""

    def __init__(self, settings: AttentionConfig, scale: float, sinks: mx.array | None = None) -> None:
        self.kv, self.heads = settings.kv, settings.heads
        self.reach = settings.window, settings.chunk
        self._scale, self._softcap, self._sinks = scale, settings.softcap, sinks

    def first_seen(self, position: int) -> int:
        """The first position that a row at ``position`` sees."""
        window, chunk = self.reach
        if chunk:
            return position - position % chunk
        return max(0, position - window + 1) if window else 0

    def mask(self, part: BatchSlice) -> Mask:
        """Of the rows of ``part`` and the keys from the first that any of them sees to the last row's own."""
        end, first = part.start + part.count, self.first_seen(part.start)
        if part.count == 1:
            return None
        if self.first_seen(end - 1) == first:
            return "causal"
        rows, keys = np.arange(part.start, end)[:, None], np.arange(first, end)
        window, chunk = self.reach
        near = keys // chunk == rows // chunk if chunk else keys > rows - window
        return mx.array((keys <= rows) & near)

    def attend(self, q: mx.array, held: mx.array, mask: Mask, sequences: int = 1) -> mx.array:
        """``q`` (1, heads, n, key_dim) and ``held`` (1, keys' heads and then values' heads, m, key_dim) → (1,
        heads, n, value_dim). Of several ``sequences`` each head's lie side by side, in q in groups."""
        if self.kv.shared:
            keys, values = held, held[..., : self.kv.value_dim]
            if q.shape[2] == 1:
                # The heads of a sequence are rows of one product: 6 times as fast on a CPU.
                q = q.reshape(1, sequences, self.heads, -1)
                mask = mask.reshape(1, sequences, self.heads, -1) if isinstance(mask, mx.array) else mask
                return self._weighted(q, keys, values, mask, None).reshape(1, -1, 1, self.kv.value_dim)
        else:
            half = held.shape[1] // 2
            keys, values = held[:, :half], held[:, half:]
        sinks = self._sinks
        if sinks is not None and sequences > 1:
            shape = (self.kv.heads, sequences, self.heads // self.kv.heads)
            sinks = mx.broadcast_to(sinks.reshape(self.kv.heads, 1, -1), shape).reshape(-1)
        count, most = q.shape[2], max(1, MOST_SCORES // (q.shape[1] * keys.shape[2]))
        if count <= most:
            return self._weighted(q, keys, values, mask, sinks)
        outs = []
        for first in range(0, count, most):
            end = min(first + most, count)
            seen = keys.shape[2] - (count - end) if isinstance(mask, str) else keys.shape[2]
            part = mask[first:end] if isinstance(mask, mx.array) else mask
            outs.append(
                self._weighted(q[:, :, first:end], keys[:, :, :seen], values[:, :, :seen], part, sinks)
            )
        return mx.concatenate(outs, axis=2)

    def _weighted(
        self, q: mx.array, keys: mx.array, values: mx.array, mask: Mask, sinks: mx.array | None
    ) -> mx.array:
        if self._softcap:
            return self._capped(q, keys, values, mask, sinks)
        return mx.fast.scaled_dot_product_attention(
            q, keys, values, scale=self._scale, mask=mask, sinks=sinks
        )

    def _capped(
        self, q: mx.array, keys: mx.array, values: mx.array, mask: Mask, sinks: mx.array | None
    ) -> mx.array:
        """MLX's kernel has no softcap."""
        (heads, count), (kv_heads, seen) = q.shape[1:3], keys.shape[1:3]
        grouped = (q * self._scale).reshape(kv_heads, -1, count, q.shape[3])
        scores = grouped @ keys[0, :, None].swapaxes(-1, -2)  # (kv_heads, group, n, m)
        scores = _softcap(self._softcap)(scores.astype(mx.float32))
        if isinstance(mask, str):
            mask = mx.tri(count, seen, seen - count, dtype=mx.bool_)
        if mask is not None:
            wide = mask if mask.ndim == 2 else mask.reshape(kv_heads, -1, *mask.shape[2:])
            scores = mx.where(wide, scores, -mx.inf)
        if sinks is not None:
            column = sinks.astype(mx.float32).reshape(kv_heads, -1, 1, 1)
            scores = mx.concatenate([scores, mx.broadcast_to(column, (*scores.shape[:3], 1))], axis=-1)
        weights = mx.softmax(scores, axis=-1)[..., :seen].astype(q.dtype)
        return (weights @ values[0, :, None]).reshape(1, heads, count, -1)


@cache
def _softcap(cap: float) -> Function:
    return fused(lambda scores: cap * mx.tanh(scores * (1 / cap)))
