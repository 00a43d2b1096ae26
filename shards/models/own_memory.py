"""Memory of a backend for sessions that no engine keeps: to measure, to check, to compute in one process."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic

import numpy as np

from ...swarm.protocol.field_types import PAGE_TOKENS
from ..layers.kv_pool import BatchSlice
from .backend import Memory, SpanBackend

if TYPE_CHECKING:
    from numpy.typing import NDArray


class OwnMemory(Generic[Memory]):
    """For ``sessions`` sessions of up to ``tokens`` tokens each, over all blocks of ``model``.

    Where blocks keep a state, a session has ``states`` slots in each, which its pages take in turn: it may go
    back as ``start`` says.

    ``tables`` and ``states``, None where no block keeps one: (sessions, blocks of ``model``, pages) of slots,
    as ``BatchSlice`` has them.

    ``shared``: all blocks use the same slots for keys and values, as costs little. Times are what they are
    otherwise, results are not.
    """

    def __init__(
        self,
        model: SpanBackend[Memory],
        kv_dtype: str,
        tokens: int,
        sessions: int = 1,
        *,
        states: int = 1,
        shared: bool = False,
    ) -> None:
        span, pages = model.span, -(-tokens // PAGE_TOKENS)
        blocks = model.config.blocks[span.start : span.end]
        self._first, self._slots = span.start, states
        own = (sessions, 1 if shared else len(span), pages)
        tables = np.arange(math.prod(own), dtype=np.int32).reshape(own)
        self.tables = np.broadcast_to(tables, (sessions, len(span), pages)).copy()
        self.states: NDArray[np.int32] | None = None
        if any(block.state is not None for block in blocks):
            first = np.arange(0, sessions * len(span) * states, states, dtype=np.int32)
            self.states = first.reshape(sessions, len(span), 1) + np.arange(pages, dtype=np.int32) % states
        self._live = [0] * sessions  # the position that the slot of a session's last page holds
        self._furthest = [0] * sessions  # up to which pages have taken slots of earlier ones
        n_states = 0 if self.states is None else sessions * len(span) * states
        self.pool: Memory = model.new_pool(tables.size, kv_dtype, n_states)

    def start(self, position: int, *, session: int = 0) -> int:
        """Where a session that is to go on at ``position`` must be fed from: less than a page before it, or
        from the beginning where no slot holds what was there."""
        if self.states is None or position == self._live[session]:
            return position
        whole = position // PAGE_TOKENS
        last = (self._furthest[session] - 1) // PAGE_TOKENS
        return whole * PAGE_TOKENS if last - (whole - 1) < self._slots else 0

    def slice(
        self, start: int, count: int, *, row: int = 0, session: int = 0, long_context: bool = False
    ) -> BatchSlice:
        """Rows ``row`` to ``row + count`` of a batch are those of ``session`` from position ``start`` on, and
        are computed next."""
        end = self._live[session] = start + count
        self._furthest[session] = max(self._furthest[session], end) if start else end
        states = None if self.states is None else self.states[session]
        return BatchSlice(self.tables[session], self._first, row, start, count, long_context, states)

    def repeat(self, pages: int) -> None:
        """Fill what follows the first ``pages`` pages with copies of them, in every table."""
        for row in np.unique(self.tables.reshape(-1, self.tables.shape[-1]), axis=0).tolist():
            sources = [row[index % pages] for index in range(pages, len(row))]
            self.pool.copy_slots(sources, row[pages:])
