"""Causal attention of a packed batch over paged keys and values, in plain torch: grouped queries, a window or
chunks, softcap, sinks, values that are part of the keys, and only the tokens that an indexer chose.

Works on any device and for any head size. It is the path of devices other than the CPU, of machines without
a compiler, and what ``csrc/attention.c`` is tested against. A loop over sessions that gathers each one's
pages beats padding and nested tensors at the batch sizes a peer sees. On devices other than the CPU the
tables are copied once a batch and nothing else crosses over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ....swarm.errors import LocalProtocolError
from ....swarm.protocol.field_types import PAGE_TOKENS
from ...layers.kv_pool import BatchSlice
from ..tensors.kv_pool import TorchKvPart, TorchKvPool

if TYPE_CHECKING:
    from ...formats.blocks.attention import AttentionConfig, KvShape

QUERY_ROWS = 128
"""On CPU this many prompt rows are attended at once. Its SDPA computes masked keys too, so cutting a chunk
into rows that see only the keys before their own end saves up to a third of the time (512 rows, 2 threads:
4.2 against 3.3 ms a block); fewer rows a call cost more in calls than they save."""
SCORE_VALUES = 1 << 24
"""Where SDPA does not serve, at most this many scores are held at once: 64 MiB."""

At = TypeVar("At", int, Tensor)


class Scores(NamedTuple):
    """How a block's queries and keys become weights: see ``AttentionConfig``. ``sinks``: (heads) float32."""

    kv: KvShape
    scale: float
    softcap: float = 0.0
    window: int = 0
    chunk: int = 0
    sinks: Tensor | None = None

    @classmethod
    def of(cls, settings: AttentionConfig, sinks: Tensor | None) -> Scores:
        return cls(settings.kv, settings.scale, settings.softcap, settings.window, settings.chunk, sinks)

    def first_seen(self, position: At) -> At:
        """The first position that a token at ``position`` sees; it may be below 0."""
        if self.chunk:
            return position // self.chunk * self.chunk
        return position - self.window + 1 if self.window else position * 0

    def weights(self, scores: Tensor, sinks: Tensor | None) -> Tensor:
        """``scores`` (..., keys), -inf for what is not seen, and ``sinks`` (..., 1) → shares (..., keys)."""
        if sinks is None:
            return scores.softmax(-1)
        return torch.cat((scores, sinks.to(scores.dtype)), -1).softmax(-1)[..., :-1]

    def capped(self, scores: Tensor) -> Tensor:
        return (scores / self.softcap).tanh_().mul_(self.softcap)


@dataclass(slots=True)
class _Seen:
    """What of a slice's keys its rows see, in blocks of one window or chunk. ``first_page``: the first that
    any row sees; keys are counted from there. ``mask`` (rows, keys) is additive. No mask: rows go one by one,
    and ``rows`` has the keys, start to end, that each sees."""

    first_page: int
    mask: Tensor | None = None
    rows: Sequence[tuple[int, int]] = ()


_Chosen = Tensor | list[Tensor | None] | None
"""Which tokens the rows of a slice see: (rows, keys) of bool; or of each row by itself their numbers,
ascending int64, None where it sees all; None: all rows see all."""


class PagedAttention:
    """The ``attend`` function of one forward pass over ``slices``: stores keys and values, then attends.

    The slices, in their order, are the rows of the batch. Index tensors and masks are built once and shared
    by all blocks that see as far. ``rowwise``: each row is attended as one token that is decoded, page by
    page from the first it sees, so that its bits depend on its own past alone.
    """

    def __init__(
        self, pool: TorchKvPool, slices: Sequence[BatchSlice], dtype: torch.dtype, *, rowwise: bool = False
    ) -> None:
        device = pool.device
        self._pool, self._slices, self._rowwise = pool, slices, rowwise
        # The CPU's kernels are fastest in float32 even with the conversion (512 rows, 1 thread: 5.6 against
        # 7.8 ms).
        self._dtype = torch.float32 if device.type == "cpu" else dtype
        self._seen: dict[tuple[int, int], list[_Seen]] = {}
        self._chosen: list[_Chosen] = []
        # Blocks that every slice holds, so that one table serves the whole batch.
        self._first_block = max(part.first_block for part in slices)
        end_block = min(part.first_block + len(part.table) for part in slices)
        slots, offsets, self._pages = [], [], []
        for part in slices:
            end = part.start + part.count
            blocks = slice(self._first_block - part.first_block, end_block - part.first_block)
            pages = part.table[blocks, : -(-end // PAGE_TOKENS)].astype(np.int64)
            table = torch.from_numpy(pages).to(device)  # (blocks, pages)
            positions = torch.arange(part.start, end, device=device)
            slots.append(table[:, positions // PAGE_TOKENS])
            offsets.append(positions % PAGE_TOKENS)
            self._pages.append(table)
        self._slots = torch.cat(slots, 1)  # (blocks, rows of all slices in their order)
        self._offsets = torch.cat(offsets)

    def choose(self, block: int, kv: KvShape, top: int, q: Tensor, k: Tensor, weights: Tensor) -> None:
        """Stores the index keys ``k`` (T, 1, index_dim), and chooses for each row the ``top`` tokens that it
        will see, by ``q`` (T, index heads, index_dim) and ``weights`` (T, index heads): in ``block``, whose
        shape is ``kv``, and in those after it that have no indexer of their own."""
        at = block - self._first_block
        held = self._pool.index(kv)
        held.store(self._slots[at], self._offsets, k, k)
        self._chosen = []
        for part, pages in zip(self._slices, self._pages, strict=True):
            rows = slice(part.row, part.row + part.count)
            chosen: _Chosen = [None] * part.count
            if part.start + part.count > top:
                own = q[rows].float(), weights[rows].float()
                chooses = _chosen_row_by_row if self._rowwise or part.count == 1 else _chosen_together
                chosen = chooses(*own, held, pages[at], part.start, top)
            self._chosen.append(chosen)

    def __call__(
        self,
        block: int,
        scores: Scores,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        *,
        indexed: bool = False,
    ) -> Tensor:
        """``q`` (T, heads, key_dim), ``k`` (T, kv_heads, key_dim), ``v`` (T, kv_heads, value_dim) → (T, heads
        * value_dim). Where ``scores.kv`` is shared, ``v`` is not read. No ``k``: the block's keys and values
        of these rows are there already. ``indexed``: rows see what was chosen last.

        ``block`` is absolute and held by every slice. Raises LocalProtocolError when the slices are not T
        rows, or nothing was chosen.
        """
        rows, heads, _ = q.shape
        at = block - self._first_block
        if len(self._offsets) != rows:
            raise LocalProtocolError(f"slices of {len(self._offsets)} rows for a batch of {rows}")
        held = self._pool.part(scores.kv)
        if k is not None and v is not None:
            held.store(self._slots[at], self._offsets, k, v)
        out = q.new_empty((rows, heads, scores.kv.value_dim))
        reach = (scores.window, scores.chunk)
        if reach not in self._seen:
            self._seen[reach] = [self._see(part, scores) for part in self._slices]
        if indexed and not self._chosen:
            raise LocalProtocolError(f"no indexer before block {block} has chosen what it sees")
        every: list[_Chosen] = self._chosen if indexed else [None] * len(self._slices)
        for part, pages, seen, chosen in zip(
            self._slices, self._pages, self._seen[reach], every, strict=True
        ):
            queries = q[part.row : part.row + part.count].to(self._dtype)
            attended = out[part.row : part.row + part.count]
            used = pages[at, seen.first_page :]
            if seen.mask is None:
                self._attend_rows(queries, held, used, seen, chosen, attended, scores)
            else:
                keys, values = held.gather(used, self._dtype)  # (kv_heads, whole pages, dim)
                start = part.start - seen.first_page * PAGE_TOKENS
                mask = seen.mask
                if isinstance(chosen, Tensor):
                    mask = mask.masked_fill(~chosen, float("-inf"))
                _prefill(queries, keys, values, mask, attended, scores, start)
        return out.view(rows, heads * scores.kv.value_dim)

    def _attend_rows(
        self,
        q: Tensor,
        held: TorchKvPart,
        pages: Tensor,
        seen: _Seen,
        chosen: _Chosen,
        out: Tensor,
        settings: Scores,
    ) -> None:
        """Row by row: ``q`` (n, heads, key_dim) → ``out`` (n, heads, value_dim)."""
        alone = [None] * len(q) if chosen is None or isinstance(chosen, Tensor) else chosen
        keys = values = None
        # From the last row to the first: each clears the values behind its own place.
        for row in range(len(q) - 1, -1, -1):
            tokens = alone[row]
            if tokens is not None:
                found = held.tokens(pages[tokens // PAGE_TOKENS], tokens % PAGE_TOKENS, self._dtype)
                out[row] = _decode_chosen(q[row], *found, settings)
                continue
            if keys is None or values is None:
                keys, values = held.pages(pages, self._dtype)
            out[row] = _decode(q[row], keys, values, *seen.rows[row], settings)

    def _see(self, part: BatchSlice, scores: Scores) -> _Seen:
        first_page = max(0, scores.first_seen(part.start)) // PAGE_TOKENS
        first, end, device = first_page * PAGE_TOKENS, part.start + part.count, self._pool.device
        if self._rowwise or part.count == 1:
            places = range(part.start, end)
            rows = [(max(0, scores.first_seen(at)) - first, at + 1 - first) for at in places]
            return _Seen(first_page, rows=rows)
        positions = torch.arange(part.start, end, device=device)[:, None]
        keys = torch.arange(first, end, device=device)
        hidden = (keys > positions).logical_or_(keys < scores.first_seen(positions))
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=device)
        return _Seen(first_page, mask.masked_fill_(hidden, float("-inf")))


def _decode(q: Tensor, keys: Tensor, values: Tensor, start: int, end: int, settings: Scores) -> Tensor:
    """One row, ``q`` (heads, key_dim), that sees tokens ``start`` to ``end`` of keys and values as
    ``TorchKvPart.pages`` gives them → (heads, value_dim).

    Page by page, so that no page is moved. The query heads of a KV head stand in as the rows of one product.
    """
    first_page, end_page = start // PAGE_TOKENS, -(-end // PAGE_TOKENS)
    keys, values = keys[first_page:end_page], values[first_page:end_page]
    heads, key_dim = q.shape
    pages, kv_heads = keys.shape[:2]
    scaled = (q * settings.scale).view(kv_heads, heads // kv_heads, key_dim)
    scores = torch.matmul(scaled, keys)  # (pages, kv_heads, group, PAGE_TOKENS)
    if settings.softcap:
        scores = settings.capped(scores)
    unseen = end_page * PAGE_TOKENS - end
    if unseen:
        scores[-1, ..., PAGE_TOKENS - unseen :] = float("-inf")
        values[-1, :, PAGE_TOKENS - unseen :] = 0.0  # what was never written may not even be finite
    if start > first_page * PAGE_TOKENS:
        scores[0, ..., : start - first_page * PAGE_TOKENS] = float("-inf")
    scores = scores.permute(1, 2, 0, 3).flatten(2)  # (kv_heads, group, all tokens)
    sinks = settings.sinks
    weights = settings.weights(scores, None if sinks is None else sinks.view(kv_heads, -1, 1))
    weights = weights.unflatten(-1, (pages, PAGE_TOKENS)).permute(2, 0, 1, 3)
    return torch.matmul(weights, values).sum(0).view(heads, -1)


def _decode_chosen(q: Tensor, keys: Tensor, values: Tensor, settings: Scores) -> Tensor:
    """One row, ``q`` (heads, key_dim), that sees all of ``keys`` (kv_heads, key_dim, n) and ``values``
    (kv_heads, n, value_dim) → (heads, value_dim)."""
    kv_heads = len(keys)
    scores = torch.matmul((q * settings.scale).unflatten(0, (kv_heads, -1)), keys)
    scores = settings.capped(scores) if settings.softcap else scores
    sinks = None if settings.sinks is None else settings.sinks.view(kv_heads, -1, 1)
    return torch.matmul(settings.weights(scores, sinks), values).flatten(0, 1)


def _chosen_row_by_row(
    q: Tensor, weights: Tensor, held: TorchKvPart, pages: Tensor, start: int, top: int
) -> list[Tensor | None]:
    """Of rows from position ``start`` on, ``q`` (n, heads, dim), ``weights`` (n, heads), with index keys in
    ``pages``. A row's bits depend on itself and its past alone."""
    keys = held.keys(pages, torch.float32)  # (pages, 1, dim, PAGE_TOKENS)
    chosen: list[Tensor | None] = []
    for row, end in enumerate(range(start + 1, start + len(q) + 1)):
        if end <= top:
            chosen.append(None)
            continue
        found = torch.matmul(q[row, None], keys[: -(-end // PAGE_TOKENS)]).relu_()  # (pages, 1, heads, …)
        scores = torch.matmul(weights[row, None, None], found).flatten()[:end]
        chosen.append(best(scores[None], top)[0].nonzero()[:, 0])
    return chosen


def _chosen_together(
    q: Tensor, weights: Tensor, held: TorchKvPart, pages: Tensor, start: int, top: int
) -> Tensor:
    """As ``_chosen_row_by_row``, for all rows at once."""
    end = start + len(q)
    keys = held.keys(pages, torch.float32)[:, 0].transpose(1, 2).flatten(0, 1)[:end].T  # (dim, end)
    chosen = keys.new_empty((len(q), end), dtype=torch.bool)
    rows = max(1, SCORE_VALUES // (q.shape[1] * end))
    positions = torch.arange(end, device=keys.device)
    for first in range(0, len(q), rows):
        part = slice(first, first + rows)
        found = torch.matmul(q[part], keys).relu_()  # (rows, heads, end)
        scores = torch.matmul(weights[part, None], found)[:, 0]
        own = positions[start : start + len(q)][part, None]
        chosen[part] = best(scores.masked_fill_(positions > own, float("-inf")), top)
    return chosen


def best(scores: Tensor, top: int) -> Tensor:
    """``scores`` (rows, keys), at least ``top`` keys → whether each is among the ``top`` largest of its row;
    of equal ones the earlier."""
    least = scores.topk(top).values[:, -1:]
    larger, equal = scores > least, scores == least
    room = top - larger.sum(-1, keepdim=True)
    return larger | (equal & (equal.cumsum(-1) <= room))


def _prefill(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, out: Tensor, settings: Scores, start: int
) -> None:
    """``q`` (n, heads, key_dim), of which the first is key number ``start``, against keys (kv_heads, keys,
    key_dim) and values (kv_heads, keys, value_dim) → ``out`` (n, heads, value_dim). ``mask``: (n, keys).

    The query heads of a KV head stand in as a batch dimension: ``enable_gqa`` is several times slower.
    """
    count, heads, key_dim = q.shape
    kv_heads = len(keys)
    queries = q.reshape(count, kv_heads, -1, key_dim).permute(1, 2, 0, 3)  # (kv_heads, group, n, key_dim)
    grouped_out = out.unflatten(1, (kv_heads, -1))
    plain = not settings.softcap and settings.sinks is None and settings.kv.key_dim == settings.kv.value_dim
    rows = QUERY_ROWS if q.device.type == "cpu" else count
    if not plain:
        rows = min(rows, max(1, SCORE_VALUES // (heads * mask.shape[1])))
    for first in range(0, count, rows):
        last = min(first + rows, count)
        end = start + last
        seen = slice(max(0, settings.first_seen(start + first)), end) if settings.window else slice(end)
        part = queries[:, :, first:last], keys[:, seen], values[:, seen], mask[first:last, seen]
        attended = _fused(*part, settings) if plain else _written_out(*part, settings)
        grouped_out[first:last] = attended.permute(2, 0, 1, 3)


def _fused(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, settings: Scores) -> Tensor:
    """``q`` (kv_heads, group, n, key_dim), keys (kv_heads, seen, key_dim), values (kv_heads, seen,
    value_dim), ``mask`` (n, seen) → (kv_heads, group, n, value_dim)."""
    keys, values = (part[:, None].expand(-1, q.shape[1], -1, -1) for part in (keys, values))
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=settings.scale)


def _written_out(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, settings: Scores) -> Tensor:
    """As ``_fused``, with a softcap, sinks, and values of another size than keys; scores are float32."""
    kv_heads, group, rows, _ = q.shape
    scores = torch.bmm(q.flatten(1, 2) * settings.scale, keys.transpose(1, 2)).float()
    scores = scores.view(kv_heads, group, rows, -1)
    scores = (settings.capped(scores) if settings.softcap else scores) + mask
    sinks = settings.sinks
    if sinks is not None:
        sinks = sinks.view(kv_heads, group, 1, 1).expand(-1, -1, rows, 1)
    weights = settings.weights(scores, sinks).to(values.dtype)
    return torch.bmm(weights.flatten(1, 2), values).view(kv_heads, group, rows, -1)
