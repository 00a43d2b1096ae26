"""Memory of a backend for sessions that no engine keeps: to measure, to check, to compute in one process."""

from __future__ import annotations

from typing import Any, Generic

import numpy as np

from ...swarm.protocol.field_types import PAGE_TOKENS
from ..layers.kv_pool import BatchSlice
from .backend import Memory, SpanBackend


class OwnMemory(Generic[Memory]):
    """For ``sessions`` sessions of up to ``tokens`` tokens each, over all blocks of ``model``.

    They may go back where no block keeps a state, which has one slot a session, or with ``borders``: then
    each page's end keeps its own, and they may go back to any of them.
    """

    def __init__(
        self,
        model: SpanBackend[Memory],
        kv_dtype: str,
        tokens: int,
        sessions: int = 1,
        *,
        borders: bool = False,
    ) -> None:
        span, pages = model.span, -(-tokens // PAGE_TOKENS)
        shape = (sessions, len(span), pages)
        keeps = any(block.state is not None for block in model.config.blocks[span.start : span.end])
        slots = shape if borders else (sessions, len(span), 1)
        self._first = span.start
        self._tables = _numbered(shape)
        self._states = np.ascontiguousarray(np.broadcast_to(_numbered(slots), shape)) if keeps else None
        self.pool: Memory = model.new_pool(self._tables.size, kv_dtype, slots_of(slots) if keeps else 0)

    def slice(
        self, start: int, count: int, *, row: int = 0, session: int = 0, long_context: bool = False
    ) -> BatchSlice:
        """Rows ``row`` to ``row + count`` of a batch are those of ``session`` from position ``start`` on."""
        states = None if self._states is None else self._states[session]
        return BatchSlice(self._tables[session], self._first, row, start, count, long_context, states)


def slots_of(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _numbered(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.arange(slots_of(shape), dtype=np.int32).reshape(shape)
