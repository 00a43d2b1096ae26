"""Causal grouped-query attention of a packed batch over paged keys and values, by MLX's fused kernel.

A prompt's rows are attended by themselves. Decode steps of several sessions go through one kernel, as long as
their contexts differ at most ``MOST_PADDING``-fold: the shorter ones are padded, and a mask hides that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ...swarm.errors import LocalProtocolError
from ...swarm.protocol.field_types import PAGE_TOKENS
from ...swarm.types import Span
from ..layers.kv_pool import BatchSlice
from .device import index
from .pool import MlxKvPool, Stored

if TYPE_CHECKING:
    from ..formats.block_config import AttentionConfig

MOST_PADDING = 2
"""The longest context of a group may be this many times as long as the shortest."""


@dataclass(slots=True)
class _Group:
    """Rows ``first`` to ``first + len(slices)``, one a slice; or one slice's rows.

    ``slots``: (blocks, slices, pages), padded with pages of the slice's own. ``mask``: (1, heads, 1, tokens),
    True where a key is seen; None for a single slice.
    """

    slices: list[BatchSlice]
    first: int
    slots: mx.array
    places: tuple[mx.array, mx.array]  # (slices,) each: number and position of a slice's new token
    mask: mx.array | None

    @property
    def rows(self) -> int:
        return sum(part.count for part in self.slices)


class PagedAttention:
    """The ``attend`` function of one forward pass through ``span``.

    ``order``: the batch's rows as the blocks shall see them, or None for as they are; ``slices`` are in the
    order that the blocks see. Nothing is written to ``pool`` before ``commit``, so that all that is read was
    complete before the pass began.
    """

    def __init__(
        self,
        settings: AttentionConfig,
        pool: MlxKvPool,
        slices: Sequence[BatchSlice],
        span: Span,
        scale: float,
    ) -> None:
        """Raises LocalProtocolError for slices that do not hold ``span``."""
        self._pool, self._span, self._scale = pool, span, scale
        self._heads, self._kv_heads, self._head_dim = settings.heads, settings.kv_heads, settings.head_dim
        self._groups: list[_Group] = []
        self._new: list[Stored] = []
        self._stacked: list[mx.array] = []
        for part in slices:
            if part.first_block > span.start or part.first_block + len(part.table) < span.end:
                raise LocalProtocolError(f"a slice that does not hold blocks {span}")
        first = 0
        for together in _groups(slices):
            self._groups.append(self._group(together, first))
            first += self._groups[-1].rows
        self.slices = [part for group in self._groups for part in group.slices]
        rows = [row for part in self.slices for row in range(part.row, part.row + part.count)]
        self.order = None if rows == list(range(len(rows))) else np.array(rows)

    def __call__(self, block: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """``q`` (T, heads, head_dim), ``k`` and ``v`` (T, kv_heads, head_dim) → (T, heads * head_dim).

        ``block`` is absolute. Call it once for each block of the span, in their order.
        """
        rows = mx.concatenate([k, v], axis=1).swapaxes(0, 1)  # (2 * kv_heads, T, head_dim)
        stored = self._pool.narrow(rows)
        self._new.append(stored)
        new = self._pool.widen(stored, q.dtype)
        outs = []
        for group in self._groups:
            own = slice(group.first, group.first + group.rows)
            attend = self._alone if group.mask is None else self._together
            outs.append(attend(group, block - self._span.start, q[own], new[:, own]))
        return outs[0] if len(outs) == 1 else mx.concatenate(outs)

    def pending(self) -> list[mx.array]:
        """What ``commit`` writes. Evaluate it before, together with the result."""
        self._stacked = [mx.stack(list(parts)) for parts in zip(*self._new, strict=True)]
        return self._stacked

    def commit(self) -> None:
        """Write the new keys and values, which ``pending`` gave and which are evaluated."""
        rows = [np.array(part, copy=False) for part in self._stacked]  # (blocks, 2 * kv_heads, T, ...)
        at = 0
        for part in self.slices:
            table = _table(part, self._span)
            position, end = part.start, part.start + part.count
            while position < end:
                page, offset = divmod(position, PAGE_TOKENS)
                count = min(end - position, PAGE_TOKENS - offset)
                self._pool.write(table[:, page], offset, rows, at, at + count)
                at += count
                position += count

    def _group(self, slices: list[BatchSlice], first: int) -> _Group:
        ends = [part.start + part.count for part in slices]
        pages = -(-max(ends) // PAGE_TOKENS)
        tables = []
        for part, end in zip(slices, ends, strict=True):
            own = -(-end // PAGE_TOKENS)
            # Padding repeats a page of its own: memory that is sure to be there.
            tables.append(np.pad(_table(part, self._span)[:, :own], ((0, 0), (0, pages - own)), mode="edge"))
        slots = index(np.stack(tables, 1))  # (blocks, slices, pages)
        mask = None
        if len(slices) > 1:
            seen = np.arange(pages * PAGE_TOKENS) < np.array(ends)[:, None]  # (slices, tokens)
            shape = (self._kv_heads, len(slices), self._heads // self._kv_heads, seen.shape[1])
            wide = mx.broadcast_to(mx.array(seen)[None, :, None], shape)
            mask = wide.reshape(1, -1, 1, seen.shape[1])
        places = index(range(len(slices))), index([end - 1 for end in ends])
        return _Group(slices, first, slots, places, mask)

    def _alone(self, group: _Group, at: int, q: mx.array, new: mx.array) -> mx.array:
        """One slice: ``q`` (n, heads, head_dim), ``new`` (2 * kv_heads, n, head_dim)."""
        part, kv_heads = group.slices[0], self._kv_heads
        end = part.start + part.count
        if part.start:
            pages = self._pool.gather(group.slots[at, 0], q.dtype)
            held = pages.reshape(2 * kv_heads, -1, self._head_dim)
            held[:, part.start : end] = new
            held = held[:, :end]
        else:
            held = new
        out = mx.fast.scaled_dot_product_attention(
            q.swapaxes(0, 1)[None],
            held[None, :kv_heads],
            held[None, kv_heads:],
            scale=self._scale,
            mask="causal" if part.count > 1 else None,
        )  # (1, heads, n, head_dim)
        return out[0].swapaxes(0, 1).reshape(part.count, -1)

    def _together(self, group: _Group, at: int, q: mx.array, new: mx.array) -> mx.array:
        """One token of each of N slices: ``q`` (N, heads, head_dim), ``new`` (2 * kv_heads, N, head_dim).

        A slice's KV heads become KV heads of one sequence beside those of the others: nothing is moved for
        that, and the kernel needs no batches of its own.
        """
        n, kv_heads, head_dim = len(group.slices), self._kv_heads, self._head_dim
        held = self._pool.gather(group.slots[at], q.dtype)  # (2 * kv_heads, N, pages, PAGE_TOKENS, head_dim)
        held = held.reshape(2 * kv_heads, n, -1, head_dim)
        numbers, positions = group.places
        held[:, numbers, positions] = new
        held = held.reshape(1, 2 * kv_heads * n, -1, head_dim)
        queries = q.reshape(n, kv_heads, -1, head_dim).swapaxes(0, 1).reshape(1, -1, 1, head_dim)
        out = mx.fast.scaled_dot_product_attention(
            queries, held[:, : kv_heads * n], held[:, kv_heads * n :], scale=self._scale, mask=group.mask
        )  # (1, kv_heads * N * group, 1, head_dim)
        return out.reshape(kv_heads, n, -1, head_dim).swapaxes(0, 1).reshape(n, -1)


def _groups(slices: Sequence[BatchSlice]) -> list[list[BatchSlice]]:
    """Slices to be attended together: each prompt alone, decode steps by the length of their context."""
    groups = [[part] for part in slices if part.count > 1]
    decode = sorted((part for part in slices if part.count == 1), key=lambda part: part.start)
    shortest = -1
    for part in decode:
        pages = part.start // PAGE_TOKENS + 1
        if shortest < 0 or pages > MOST_PADDING * shortest:
            groups.append([])
            shortest = pages
        groups[-1].append(part)
    return groups


def _table(part: BatchSlice, span: Span) -> np.ndarray:
    """(blocks of ``span``, pages) of slots."""
    return part.table[span.start - part.first_block : span.end - part.first_block]
