"""Where the rows of a batch stand in the states of its sessions: begun from which slot, kept in which, and in
what chunks the rows are computed.

A chunk is the rows of a slice up to a place where its state is kept: the end of a page, its own end, or where
its saved state is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ....swarm.errors import LocalProtocolError
from ....swarm.protocol.field_types import PAGE_TOKENS
from ...layers.kv_pool import BatchSlice
from ..tensors.device import index
from ..tensors.kv_pool import MlxKvPool, State, fresh

if TYPE_CHECKING:
    from ...formats.blocks.state import StateShape

    Rows = mx.array | slice


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of the slices ``numbers`` of a batch, so many of each (``counts``), one slice after the other.

    ``rows``: (chunks, size) rows of the batch, padded with a chunk's last; ``valid`` (chunks, size, 1): which
    are no padding. ``rows`` None: all of the batch in their order; ``valid`` None: all are.
    """

    numbers: list[int]
    counts: tuple[int, ...]
    size: int
    rows: mx.array | None
    valid: mx.array | None

    def of(self, x: mx.array) -> mx.array:
        """``x`` (T, ...) → (chunks, size, ...)."""
        if self.rows is None:
            return x.reshape(-1, self.size, *x.shape[1:])
        return x[self.rows]


class PagedStates:
    """The states of one forward pass over ``slices``, whose rows follow each other. Nothing is written to
    ``pool`` before ``commit``. ``steps``: each has one row."""

    def __init__(self, pool: MlxKvPool, slices: Sequence[BatchSlice]) -> None:
        self._pool, self._slices = pool, slices
        self.steps = all(part.count == 1 for part in slices)
        self._firsts: list[int] = np.cumsum([0, *(part.count for part in slices)]).tolist()
        self._chunks = [part.chunks() for part in slices]
        self._new: dict[int, State] = {}
        self._inputs: dict[int, list[Rows]] = {}
        self._ends: dict[tuple[int, int, int], mx.array] = {}

    def begin(self, block: int, shape: StateShape) -> list[State]:
        """That of each slice before its first row, in block number ``block``. Raises LocalProtocolError for a
        slice that has none."""
        return [self._begin(part, block, shape) for part in self._slices]

    def kept(self, block: int) -> list[dict[int, int]]:
        """Of each slice: after which of its chunks the state is kept in which slot."""
        found = []
        for part, chunks in zip(self._slices, self._chunks, strict=True):
            first, last = part.start // PAGE_TOKENS, {}
            slots = _slots(part, block)[first : (part.start + part.count - 1) // PAGE_TOKENS + 1].tolist()
            for at, (row, rows) in enumerate(chunks):
                end = row + rows
                if part.saved is not None and end == part.again:
                    slot = int(part.saved[block - part.first_block])
                else:
                    slot = slots[(part.start + end - 1) // PAGE_TOKENS - first]
                if slot >= 0:
                    last[slot] = at
            found.append({at: slot for slot, at in last.items()})
        return found

    def keep(self, slot: int, state: State) -> None:
        self._new[slot] = state

    def pending(self) -> list[mx.array]:
        """What ``commit`` writes. Evaluate it before, together with the result."""
        return [part for state in self._new.values() for part in state]

    def commit(self) -> None:
        for slot, state in self._new.items():
            self._pool.states[slot] = state

    @cached_property
    def groups(self) -> list[Chunks]:
        """All rows, single ones and others apart."""
        groups = []
        for single in (True, False):
            numbers = [at for at, part in enumerate(self._slices) if (part.count == 1) == single]
            if numbers:
                groups.append(self._group(numbers))
        return groups

    @cached_property
    def order(self) -> mx.array | None:
        """Of the rows of all groups, padded as they are, those of the batch; None: they are the batch."""
        if len(self.groups) == 1 and self.groups[0].rows is None:
            return None
        places, begin = np.zeros(self._firsts[-1], np.int64), 0
        for group in self.groups:
            for row, rows in self._chunks_of(group.numbers):
                places[row : row + rows] = np.arange(begin, begin + rows)
                begin += group.size
        return index(places)

    def inputs(self, taps: int) -> list[Rows]:
        """For each of ``taps``: which inputs the rows have there, of all slices' windows, one after the
        other, and then the batch's rows."""
        if taps not in self._inputs:
            self._inputs[taps] = [self._tap(taps, tap) for tap in range(taps)]
        return self._inputs[taps]

    def ends(self, taps: int, number: int, chunk: int) -> mx.array:
        """The inputs, numbered as in ``inputs``, that are the window after a chunk of slice ``number``."""
        key = taps, number, chunk
        if key not in self._ends:
            first, rows = self._chunks[number][chunk]
            self._ends[key] = index(self._numbered(taps, number, np.arange(1 - taps, 0) + first + rows))
        return self._ends[key]

    def _begin(self, part: BatchSlice, block: int, shape: StateShape) -> State:
        if not part.start:
            return fresh(shape)
        if part.saved is not None and not part.again:
            slot = int(part.saved[block - part.first_block])
        else:
            slot = int(_slots(part, block)[(part.start - 1) // PAGE_TOKENS])
        if slot < 0:
            raise LocalProtocolError(f"the state before position {part.start} was not kept")
        return self._pool.state(slot, shape)

    def _tap(self, taps: int, tap: int) -> Rows:
        back = tap - (taps - 1)
        if len(self._slices) == 1:
            return slice(tap, tap + self._firsts[-1])
        rows = [
            self._numbered(taps, number, np.arange(part.count) + back)
            for number, part in enumerate(self._slices)
        ]
        return index(np.concatenate(rows))

    def _numbered(self, taps: int, number: int, rows: np.ndarray) -> np.ndarray:
        """``rows`` of slice ``number``, counted from its first; those before it are in its window."""
        window = taps - 1
        own = len(self._slices) * window + self._firsts[number] + rows
        return np.where(rows < 0, number * window + window + rows, own)

    def _group(self, numbers: list[int]) -> Chunks:
        firsts, lengths = np.array(self._chunks_of(numbers)).T[..., None]
        counts = tuple(len(self._chunks[number]) for number in numbers)
        size = 1 << (int(lengths.max()) - 1).bit_length()
        places = np.arange(size)
        rows = firsts + np.minimum(places, lengths - 1)
        whole = np.array_equal(rows.ravel(), np.arange(self._firsts[-1]))
        valid = places < lengths
        return Chunks(
            numbers,
            counts,
            size,
            None if whole else index(rows),
            None if valid.all() else mx.array(valid)[..., None],
        )

    def _chunks_of(self, numbers: list[int]) -> list[tuple[int, int]]:
        """The first row of each in the batch, and how many it has."""
        return [
            (self._firsts[number] + first, rows) for number in numbers for first, rows in self._chunks[number]
        ]


def _slots(part: BatchSlice, block: int) -> np.ndarray:
    if part.states is None:
        raise LocalProtocolError(f"a slice without a state for block {block}")
    return part.states[block - part.first_block]
