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
from .scores import MOST_SCORES, Mask, Scores

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
        self._new: dict[tuple[KvShape, bool], dict[int, Stored]] = {}
        self._stacked: list[tuple[KvShape | None, list[int], list[mx.array]]] = []
        self._chosen: list[mx.array | None] = []
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

    def choose(
        self, block: int, scores: Scores, top: int, q: mx.array, k: mx.array, weights: mx.array
    ) -> None:
        """Chooses for each row the ``top`` tokens that it will see, by ``q`` (T, index heads, index_dim),
        ``weights`` (T, index heads) and the index keys, of which those of the rows are ``k`` (T, 1,
        index_dim): in ``block``, whose scores are ``scores``, and in those after it without an indexer."""
        at, kv, shape = block - self._span.start, scores.kv, scores.kv.index
        if shape is None:
            raise LocalProtocolError(f"block {block} keeps no index keys")
        made = self._new.setdefault((kv, True), {})
        made[at] = self._pool.narrow(k.swapaxes(0, 1))
        new = self._pool.widen(made[at], mx.float32)[0]  # (T, index_dim)
        q, weights = q.astype(mx.float32), weights.astype(mx.float32)
        self._chosen = []
        for group, view in zip(self._groups, self._seen(scores), strict=True):
            if max(part.start + part.count for part in group.slices) <= top:
                self._chosen.append(None)
                continue
            own = slice(group.first, group.first + group.rows)
            keys = self._pool.gather(view.slots[at], shape, mx.float32, kv)
            keys = keys.reshape(len(group.slices), -1, shape.key_dim)  # from position 0 on
            if len(group.slices) > 1:
                keys[view.places] = new[own]
                found = _index_scores(q[own, None], keys, weights[own, None])[:, 0]  # (N, tokens)
                ends = np.array([part.start + 1 for part in group.slices])[:, None]
                seen = mx.array(np.arange(keys.shape[1]) < ends)
                self._chosen.append(_best(mx.where(seen, found, -mx.inf), top) & seen)
            else:
                start, end = group.slices[0].start, group.slices[0].start + group.rows
                keys[0, start:end] = new[own]
                self._chosen.append(_chosen_of(q[own], keys[0, :end], weights[own], start, top))

    def __call__(
        self,
        block: int,
        scores: Scores,
        q: mx.array,
        k: mx.array | None,
        v: mx.array | None = None,
        *,
        indexed: bool = False,
    ) -> mx.array:
        """``q`` (T, heads, key_dim), ``k`` and ``v`` (T, kv_heads, key_dim) → (T, heads * value_dim). Without
        ``v``, values are shared with keys. Without ``k``, they are those that ``block`` has made already.
        ``indexed``: rows see what was chosen last.

        ``block`` is absolute. Call it with keys once for each block of the span, in their order.
        """
        if indexed and not self._chosen:
            raise LocalProtocolError(f"no indexer before block {block} has chosen what it sees")
        at, made = block - self._span.start, self._new.setdefault((scores.kv, False), {})
        if k is not None:
            rows = k if v is None else mx.concatenate([k, v], axis=1)
            made[at] = self._pool.narrow(rows.swapaxes(0, 1))  # (vectors, T, key_dim)
        new = self._pool.widen(made[at], q.dtype)
        outs = []
        every = self._chosen if indexed else [None] * len(self._groups)
        for group, view, chosen in zip(self._groups, self._seen(scores), every, strict=True):
            own = slice(group.first, group.first + group.rows)
            attend = self._alone if len(group.slices) == 1 else self._together
            mask = view.mask if chosen is None else _wide(chosen, scores, len(group.slices))
            outs.append(attend(group, view, at, scores, q[own], new[:, own], mask))
        return outs[0] if len(outs) == 1 else mx.concatenate(outs)

    def pending(self) -> list[mx.array]:
        """What ``commit`` writes. Evaluate it before, together with the result."""
        self._stacked = []
        for (kv, is_index), new in self._new.items():
            arrays = [mx.stack(list(parts)) for parts in zip(*new.values(), strict=True)]
            self._stacked.append((kv if is_index else None, [*new], arrays))
        return [array for *_, arrays in self._stacked for array in arrays]

    def commit(self) -> None:
        """Write the new keys and values, which ``pending`` gave and which are evaluated."""
        for behind, blocks, arrays in self._stacked:
            rows = [np.array(part, copy=False) for part in arrays]  # (blocks, vectors, T, ...)
            at = 0
            for part in self.slices:
                table = _table(part, self._span)[blocks]
                position, end = part.start, part.start + part.count
                while position < end:
                    page, offset = divmod(position, PAGE_TOKENS)
                    count = min(end - position, PAGE_TOKENS - offset)
                    self._pool.write(table[:, page], offset, rows, at, at + count, behind)
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
        self, group: _Group, view: _View, at: int, scores: Scores, q: mx.array, new: mx.array, mask: Mask
    ) -> mx.array:
        """One slice: ``q`` (n, heads, key_dim), ``new`` (vectors, n, key_dim)."""
        part, held = group.slices[0], new
        first, end, base = scores.first_seen(part.start), part.start + part.count, view.bases[0]
        if first < part.start:
            pages = self._pool.gather(view.slots[at, 0], scores.kv, q.dtype)
            held = pages.reshape(len(new), -1, new.shape[-1])
            held[:, part.start - base : end - base] = new
            held = held[:, first - base : end - base]
        out = scores.attend(q.swapaxes(0, 1)[None], held[None], mask)  # (1, heads, n, value_dim)
        return out[0].swapaxes(0, 1).reshape(part.count, -1)

    def _together(
        self, group: _Group, view: _View, at: int, scores: Scores, q: mx.array, new: mx.array, mask: Mask
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
        out = scores.attend(queries, held, mask, n)  # (1, kv_heads * N * group, 1, value_dim)
        return out.reshape(kv_heads, n, -1).swapaxes(0, 1).reshape(n, -1)


def _index_scores(q: mx.array, keys: mx.array, weights: mx.array) -> mx.array:
    """``q`` (..., n, heads, dim), ``keys`` (..., m, dim), ``weights`` (..., n, heads) → (..., n, m)."""
    found = mx.maximum(q @ keys[..., None, :, :].swapaxes(-1, -2), 0)  # (..., n, heads, m)
    return (weights[..., None, :] @ found)[..., 0, :]


def _chosen_of(q: mx.array, keys: mx.array, weights: mx.array, start: int, top: int) -> mx.array:
    """Of rows from position ``start`` on, whose last sees all ``keys`` (m, dim) → (n, m)."""
    rows = max(1, MOST_SCORES // (q.shape[1] * len(keys)))
    parts = []
    for first in range(0, len(q), rows):
        part = slice(first, first + rows)
        ends = np.arange(start, start + len(q))[part, None]
        seen = mx.array(np.arange(len(keys)) <= ends)
        found = mx.where(seen, _index_scores(q[part], keys, weights[part]), -mx.inf)
        parts.append(_best(found, top) & seen)
    return mx.concatenate(parts)


def _best(scores: mx.array, top: int) -> mx.array:
    """Whether each of ``scores`` (n, m) is among the ``top`` largest of its row; of equal ones the first."""
    if scores.shape[1] <= top:
        return mx.ones(scores.shape, mx.bool_)
    least = mx.topk(scores, top, axis=-1).min(-1, keepdims=True)
    larger, equal = scores > least, scores == least
    room = top - larger.sum(-1, keepdims=True)
    return larger | (equal & (mx.cumsum(equal.astype(mx.int32), axis=-1) <= room))


def _wide(chosen: mx.array, scores: Scores, sequences: int) -> Mask:
    """``chosen`` (rows, tokens) as ``Scores`` takes it: of rows of one sequence, or one each of several."""
    if sequences == 1 and len(chosen) > 1:
        return chosen
    wide = mx.broadcast_to(chosen[:, None], (len(chosen), scores.heads, chosen.shape[1]))
    return wide.reshape(1, -1, 1, chosen.shape[1])


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
