"""Causal attention of a packed batch over paged keys and values, by MLX's fused kernel where it can.

A prompt's rows are attended by themselves. Decode steps of several sessions go through one kernel, as long as
their contexts differ at most ``MOST_PADDING``-fold: the shorter ones are padded, and a mask hides that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ....swarm.errors import LocalProtocolError
from ....swarm.protocol.field_types import PAGE_TOKENS
from ....swarm.types import Span
from ...layers.kv_pool import BatchSlice
from ..tensors.device import index
from ..tensors.kv_pool import MlxKvPool, Stored
from .scores import Mask, Scores

if TYPE_CHECKING:
    from ...formats.blocks.attention import KvShape

MOST_PADDING = 2
"""The longest context of a group may be this many times as long as the shortest."""


@dataclass(slots=True)
class _Group:
    """Rows ``first`` to ``first + rows``, one a slice; or one slice's rows."""

    slices: list[BatchSlice]
    first: int
    rows: int


@dataclass(slots=True)
class _View:
    """What blocks of one kind see of a group.

    ``slots``: (blocks, slices, pages) from the page of the first token that is seen, padded with pages of the
    slice's own. ``bases``: (slices) positions of these pages' first tokens. ``places``: (slices) each, the
    number and the place in its pages of a slice's last token.
    """

    slots: mx.array
    bases: list[int]
    places: tuple[mx.array, mx.array]
    mask: Mask


class PagedAttention:
    """The attention of one forward pass through ``span``.

    ``order``: the batch's rows as the blocks shall see them, or None for as they are; ``slices`` are in the
    order that the blocks see. Nothing is written to ``pool`` before ``commit``, so that all that is read was
    complete before the pass began.
    """

    def __init__(self, pool: MlxKvPool, slices: Sequence[BatchSlice], span: Span) -> None:
        """Raises LocalProtocolError for slices that do not hold ``span``."""
        self._pool, self._span = pool, span
        self._groups: list[_Group] = []
        self._views: dict[tuple[int, ...], list[_View]] = {}
        self._new: dict[KvShape, dict[int, Stored]] = {}
        self._stacked: list[tuple[list[int], list[mx.array]]] = []
        for part in slices:
            if part.first_block > span.start or part.first_block + len(part.table) < span.end:
                raise LocalProtocolError(f"a slice that does not hold blocks {span}")
        first = 0
        for together in _groups(slices):
            self._groups.append(_Group(together, first, sum(part.count for part in together)))
            first += self._groups[-1].rows
        self.slices = [part for group in self._groups for part in group.slices]
        rows = [row for part in self.slices for row in range(part.row, part.row + part.count)]
        self.order = None if rows == list(range(len(rows))) else np.array(rows)

    def __call__(
        self, block: int, scores: Scores, q: mx.array, k: mx.array | None, v: mx.array | None = None
    ) -> mx.array:
        """``q`` (T, heads, key_dim), ``k`` and ``v`` (T, kv_heads, key_dim) → (T, heads * value_dim). Without
        ``v``, values are shared with keys. Without ``k``, they are those that ``block`` has made already.

        ``block`` is absolute. Call it with keys once for each block of the span, in their order.
        """
        at, made = block - self._span.start, self._new.setdefault(scores.kv, {})
        if k is not None:
            rows = k if v is None else mx.concatenate([k, v], axis=1)
            made[at] = self._pool.narrow(rows.swapaxes(0, 1))  # (vectors, T, key_dim)
        new = self._pool.widen(made[at], q.dtype)
        outs = []
        for group, view in zip(self._groups, self._seen(scores), strict=True):
            own = slice(group.first, group.first + group.rows)
            attend = self._alone if len(group.slices) == 1 else self._together
            outs.append(attend(group, view, at, scores, q[own], new[:, own]))
        return outs[0] if len(outs) == 1 else mx.concatenate(outs)

    def pending(self) -> list[mx.array]:
        """What ``commit`` writes. Evaluate it before, together with the result."""
        self._stacked = []
        for new in self._new.values():
            arrays = [mx.stack(list(parts)) for parts in zip(*new.values(), strict=True)]
            self._stacked.append(([*new], arrays))
        return [array for _, arrays in self._stacked for array in arrays]

    def commit(self) -> None:
        """Write the new keys and values, which ``pending`` gave and which are evaluated."""
        for blocks, arrays in self._stacked:
            rows = [np.array(part, copy=False) for part in arrays]  # (blocks, vectors, T, ...)
            at = 0
            for part in self.slices:
                table = _table(part, self._span)[blocks]
                position, end = part.start, part.start + part.count
                while position < end:
                    page, offset = divmod(position, PAGE_TOKENS)
                    count = min(end - position, PAGE_TOKENS - offset)
                    self._pool.write(table[:, page], offset, rows, at, at + count)
                    at += count
                    position += count

    def _seen(self, scores: Scores) -> list[_View]:
        """Of each group, made once for all blocks of one kind."""
        kind = *scores.reach, scores.heads, scores.kv.heads
        if kind not in self._views:
            self._views[kind] = [self._view(group.slices, scores) for group in self._groups]
        return self._views[kind]

    def _view(self, slices: list[BatchSlice], scores: Scores) -> _View:
        firsts = [scores.first_seen(part.start) for part in slices]
        ends = [part.start + part.count for part in slices]
        ranges = [
            slice(first // PAGE_TOKENS, -(-end // PAGE_TOKENS))
            for first, end in zip(firsts, ends, strict=True)
        ]
        pages = max(own.stop - own.start for own in ranges)
        tables = []
        for part, own in zip(slices, ranges, strict=True):
            table = _table(part, self._span)[:, own]
            # Padding repeats a page of its own: memory that is sure to be there.
            tables.append(np.pad(table, ((0, 0), (0, pages - table.shape[1])), mode="edge"))
        slots = index(np.stack(tables, 1))  # (blocks, slices, pages)
        bases = np.array([own.start * PAGE_TOKENS for own in ranges])
        places = index(range(len(slices))), index(np.array(ends) - 1 - bases)
        if len(slices) == 1:
            return _View(slots, bases.tolist(), places, scores.mask(slices[0]))
        positions = np.arange(pages * PAGE_TOKENS) + bases[:, None]
        seen = (positions >= np.array(firsts)[:, None]) & (positions < np.array(ends)[:, None])
        shape = (scores.kv.heads, len(slices), scores.heads // scores.kv.heads, seen.shape[1])
        wide = mx.broadcast_to(mx.array(seen)[None, :, None], shape)
        return _View(slots, bases.tolist(), places, wide.reshape(1, -1, 1, seen.shape[1]))

    def _alone(
        self, group: _Group, view: _View, at: int, scores: Scores, q: mx.array, new: mx.array
    ) -> mx.array:
        """One slice: ``q`` (n, heads, key_dim), ``new`` (vectors, n, key_dim)."""
        part, held = group.slices[0], new
        first, end, base = scores.first_seen(part.start), part.start + part.count, view.bases[0]
        if first < part.start:
            pages = self._pool.gather(view.slots[at, 0], scores.kv, q.dtype)
            held = pages.reshape(len(new), -1, new.shape[-1])
            held[:, part.start - base : end - base] = new
            held = held[:, first - base : end - base]
        out = scores.attend(q.swapaxes(0, 1)[None], held[None], view.mask)  # (1, heads, n, value_dim)
        return out[0].swapaxes(0, 1).reshape(part.count, -1)

    def _together(
        self, group: _Group, view: _View, at: int, scores: Scores, q: mx.array, new: mx.array
    ) -> mx.array:
        """One token of each of N slices: ``q`` (N, heads, key_dim), ``new`` (vectors, N, key_dim).

        A slice's KV heads become KV heads of one sequence beside those of the others: nothing is moved for
        that, and the kernel needs no batches of its own.
        """
        n, kv_heads, key_dim = len(group.slices), scores.kv.heads, new.shape[-1]
        pages = self._pool.gather(view.slots[at], scores.kv, q.dtype)
        held = pages.reshape(len(new), n, -1, key_dim)
        numbers, places = view.places
        held[:, numbers, places] = new
        held = held.reshape(1, len(new) * n, -1, key_dim)
        queries = q.reshape(n, kv_heads, -1, key_dim).swapaxes(0, 1).reshape(1, -1, 1, key_dim)
        out = scores.attend(queries, held, view.mask, n)  # (1, kv_heads * N * group, 1, value_dim)
        return out.reshape(kv_heads, n, -1).swapaxes(0, 1).reshape(n, -1)


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
