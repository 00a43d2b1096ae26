"""Causal grouped-query attention of a packed batch over paged keys and values, in plain torch.

Works on any device and for any head size. It is the path of devices other than the CPU, of machines without
a compiler, and what ``csrc/attention.c`` is tested against. A loop over sessions that gathers each one's
pages beats padding and nested tensors at the batch sizes a peer sees. On devices other than the CPU the
tables are copied once a batch and nothing else crosses over.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...swarm.errors import LocalProtocolError
from ...swarm.protocol.field_types import PAGE_TOKENS
from ..layers.kv_pool import BatchSlice
from .kv_pool import TorchKvPart

QUERY_ROWS = 128
"""On CPU this many prompt rows are attended at once. Its SDPA computes masked keys too, so cutting a chunk
into rows that see only the keys before their own end saves up to a third of the time (512 rows, 2 threads:
4.2 against 3.3 ms a block); fewer rows a call cost more in calls than they save."""


class PagedAttention:
    """The ``attend`` function of one forward pass over ``slices``: stores keys and values, then attends.

    The slices, in their order, are the rows of the batch. Index tensors and masks are built once and shared
    by all blocks. ``rowwise``: each row is attended as one token that is decoded, page by page from the
    first, so that its bits depend on its own past alone.
    """

    def __init__(
        self, pool: TorchKvPart, slices: Sequence[BatchSlice], dtype: torch.dtype, *, rowwise: bool = False
    ) -> None:
        device = pool.device
        self._pool, self._slices = pool, slices
        # The CPU's kernels are fastest in float32 even with the conversion (512 rows, 1 thread: 5.6 against
        # 7.8 ms).
        self._dtype = torch.float32 if device.type == "cpu" else dtype
        # Blocks that every slice holds, so that one table serves the whole batch.
        self._first_block = max(part.first_block for part in slices)
        end_block = min(part.first_block + len(part.table) for part in slices)
        slots, offsets, self._pages, self._masks = [], [], [], []
        for part in slices:
            end = part.start + part.count
            blocks = slice(self._first_block - part.first_block, end_block - part.first_block)
            pages = part.table[blocks, : -(-end // PAGE_TOKENS)].astype(np.int64)
            table = torch.from_numpy(pages).to(device)  # (blocks, pages)
            positions = torch.arange(part.start, end, device=device)
            slots.append(table[:, positions // PAGE_TOKENS])
            offsets.append(positions % PAGE_TOKENS)
            self._pages.append(table)
            self._masks.append(
                None
                if rowwise or part.count == 1
                else _causal_mask(part.start, part.count, self._dtype, device)
            )
        self._slots = torch.cat(slots, 1)  # (blocks, rows of all slices in their order)
        self._offsets = torch.cat(offsets)

    def __call__(self, block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``q`` (T, heads, head_dim), ``k`` and ``v`` (T, kv_heads, head_dim) → (T, heads * head_dim).

        ``block`` is absolute and held by every slice. Raises LocalProtocolError when the slices are not T
        rows.
        """
        rows, heads, head_dim = q.shape
        at = block - self._first_block
        if len(self._offsets) != rows:
            raise LocalProtocolError(f"slices of {len(self._offsets)} rows for a batch of {rows}")
        self._pool.store(self._slots[at], self._offsets, k, v)
        out = q.new_empty((rows, heads, head_dim))
        for part, pages, mask in zip(self._slices, self._pages, self._masks, strict=True):
            end = part.start + part.count
            queries = q[part.row : part.row + part.count].to(self._dtype)
            attended = out[part.row : part.row + part.count]
            if mask is None:
                keys, values = self._pool.pages(pages[at], self._dtype)
                # From the last row to the first: each clears the values behind its own place.
                for row in range(part.count - 1, -1, -1):
                    seen = part.start + row + 1
                    used = -(-seen // PAGE_TOKENS)
                    attended[row] = _decode(queries[row], keys[:used], values[:used], seen)
            else:
                keys, values = self._pool.gather(pages[at], self._dtype)  # (kv_heads, whole pages, head_dim)
                _prefill(queries, keys[:, :end], values[:, :end], mask, attended)
        return out.view(rows, heads * head_dim)


def _decode(q: Tensor, keys: Tensor, values: Tensor, end: int) -> Tensor:
    """One row, ``q`` (heads, head_dim), that sees the first ``end`` tokens of keys and values as
    ``TorchKvPart.pages`` gives them → (heads, head_dim).

    Page by page, so that no page is moved. The query heads of a KV head stand in as the rows of one product.
    """
    heads, head_dim = q.shape
    pages, kv_heads = keys.shape[:2]
    scaled = (q * head_dim**-0.5).view(kv_heads, heads // kv_heads, head_dim)
    scores = torch.matmul(scaled, keys)  # (pages, kv_heads, group, PAGE_TOKENS)
    unseen = pages * PAGE_TOKENS - end
    if unseen:
        scores[-1, ..., PAGE_TOKENS - unseen :] = float("-inf")
        values[-1, :, PAGE_TOKENS - unseen :] = 0.0  # what was never written may not even be finite
    weights = scores.permute(1, 2, 0, 3).flatten(2).softmax(-1)  # (kv_heads, group, all tokens)
    weights = weights.unflatten(-1, (pages, PAGE_TOKENS)).permute(2, 0, 1, 3)
    return torch.matmul(weights, values).sum(0).view(heads, head_dim)


def _prefill(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, out: Tensor) -> None:
    """``q`` (n, heads, head_dim) against keys and values (kv_heads, end, head_dim) → ``out`` as ``q``.

    ``mask`` (n, end) is additive. The query heads of a KV head stand in as a batch dimension: ``enable_gqa``
    is several times slower.
    """
    count, heads, head_dim = q.shape
    kv_heads, end, _ = keys.shape
    group = heads // kv_heads
    queries = q.reshape(count, kv_heads, group, head_dim).permute(1, 2, 0, 3)  # (kv_heads, group, n, hd)
    wide_keys = keys[:, None].expand(kv_heads, group, end, head_dim)
    wide_values = values[:, None].expand(kv_heads, group, end, head_dim)
    grouped_out = out.view(count, kv_heads, group, head_dim)
    rows = QUERY_ROWS if q.device.type == "cpu" else count
    for first in range(0, count, rows):
        last = min(first + rows, count)
        seen = end - count + last
        attended = F.scaled_dot_product_attention(
            queries[:, :, first:last],
            wide_keys[:, :, :seen],
            wide_values[:, :, :seen],
            attn_mask=mask[first:last, :seen],
        )
        grouped_out[first:last] = attended.permute(2, 0, 1, 3)


def _causal_mask(start: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(count, start + count): 0 where row i may see key j (j <= start + i), -inf elsewhere."""
    mask = torch.full((count, start + count), float("-inf"), dtype=dtype, device=device)
    return mask.triu_(start + 1)
