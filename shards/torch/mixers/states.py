"""The states of a batch's sessions in the slots of a pool: read where rows begin, kept where a page ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ....swarm.errors import LocalProtocolError
from ....swarm.protocol.field_types import PAGE_TOKENS
from ...layers.kv_pool import BatchSlice
from ..tensors.kv_pool import TorchKvPool

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...formats.blocks.state import StateShape

TOGETHER = 1 << 19
"""On the CPU, states of at most so many values (2 MiB) are computed together: they stay in its caches. Eight
sessions of one row each, ms a block one by one and together: 1.8 and 0.6 with 4 heads of 64 by 64, 1.9 and
1.1 with 16, 3.7 and 6.8 with 32 of 128 by 128."""
RUN_ON_CPU, RUN = 1, 16
"""Pages of a session that are computed together, on the CPU and elsewhere: one page stays in its caches."""


class PagedStates:
    """The states of one forward pass over ``slices``, whose ``states`` say where they are.

    ``rowwise``: each session is computed by itself, in memory of its own.
    """

    def __init__(self, pool: TorchKvPool, slices: Sequence[BatchSlice], *, rowwise: bool = False) -> None:
        self._data, self._slices, self._rowwise = pool.states, slices, rowwise
        self._groups: dict[StateShape, list[Group]] = {}

    def groups(self, shape: StateShape) -> Sequence[Group]:
        """The sessions that are computed together, in all blocks of that ``shape``.

        Raises LocalProtocolError where a slice has no table of states.
        """
        if shape not in self._groups:
            self._groups[shape] = [
                Group(self._data, parts, shape, in_place=not self._rowwise) for parts in self._alike(shape)
            ]
        return self._groups[shape]

    def _alike(self, shape: StateShape) -> list[list[BatchSlice]]:
        if self._rowwise:
            return [[part] for part in self._slices]
        most = len(self._slices)
        if self._data.device.type == "cpu":
            most = max(1, TOGETHER // max(1, shape.floats))
        alike: dict[tuple[int, ...], list[BatchSlice]] = {}
        for part in self._slices:
            alike.setdefault(_cuts(part), []).append(part)
        return [each[at : at + most] for each in alike.values() for at in range(0, len(each), most)]


class Group:
    """Sessions of a batch that are cut alike.

    ``rows``: theirs of the batch, one session after the other. ``cuts``: rows of a session up to each place
    where its state is kept; all of them together are its rows. ``ends``: rows of a session before each cut's
    end.
    """

    def __init__(
        self, data: Tensor, parts: Sequence[BatchSlice], shape: StateShape, *, in_place: bool
    ) -> None:
        self._most = RUN_ON_CPU if data.device.type == "cpu" else RUN
        self._data, self._shape, self._in_place = data, shape, in_place and len(parts) == 1
        self.cuts, self.sessions = _cuts(parts[0]), len(parts)
        self.ends = [*accumulate(self.cuts)]
        rows = np.concatenate([np.arange(part.row, part.row + part.count) for part in parts])
        self.rows: slice | Tensor = slice(parts[0].row, parts[0].row + len(rows))
        if rows[-1] + 1 != self.rows.stop:  # others are between them
            self.rows = torch.from_numpy(rows).to(data.device)
        self._first = max(part.first_block for part in parts)
        self._fresh = np.array([part.start == 0 for part in parts])
        self._begun_here = torch.from_numpy(np.flatnonzero(self._fresh)).to(data.device)
        self._starts = [part.start for part in parts]
        # (blocks, 1 + cuts, sessions): where states are read, and where those after each cut go.
        self._slots = np.stack([self._of(part) for part in parts], 2)
        self._tables = torch.from_numpy(self._slots.clip(0)).to(data.device)

    def _of(self, part: BatchSlice) -> NDArray[np.int64]:
        """(blocks, 1 + cuts)"""
        ends = part.start + np.array((0, *self.ends))
        if part.states is None:
            raise LocalProtocolError("a slice without a table for blocks that keep a state")
        first = self._first - part.first_block
        slots = part.states[first:, np.maximum(0, ends - 1) // PAGE_TOKENS].astype(np.int64)
        if part.saved is not None:
            slots[:, (0, *self.ends).index(part.again)] = part.saved[first:]
        return slots

    def runs(self) -> Iterator[tuple[int, int]]:
        """First row and end of each run of equal cuts that are computed together."""
        first = 0
        for size, same in groupby(self.cuts):
            count = len([*same])
            for at in range(0, count, self._most):
                end = first + min(self._most, count - at) * size
                yield first, end
                first = end

    def begin(self, block: int) -> tuple[Tensor, Tensor]:
        """Matrices (sessions * heads, key_dim, value_dim), which the caller changes, and the last inputs of
        the convolution (sessions, rows, channels)."""
        shape, slots = self._shape, self._slots[block - self._first]
        read, kept = slots[0], slots[1:]
        if ((read < 0) & ~self._fresh).any():
            position = self._starts[int(np.argmax((read < 0) & ~self._fresh))]
            raise LocalProtocolError(f"the state before position {position} in block {block} was not kept")
        if self._in_place and (kept == kept[0]).all() and kept[0] >= 0:
            # Its slot alone is written: there is no other state to be left as it is.
            slot = int(kept[0, 0])
            held = self._data[slot : slot + 1, : shape.floats]
            if self._fresh[0]:
                held.zero_()
            elif read[0] != slot:
                held.copy_(self._data[int(read[0]) : int(read[0]) + 1, : shape.floats])
            return self._parts(held[:, : shape.matrices], held[:, shape.matrices :])
        if self._fresh.all():
            zeros = self._data.new_zeros
            return self._parts(
                zeros(self.sessions, shape.matrices), zeros(self.sessions, shape.floats - shape.matrices)
            )
        table = self._tables[block - self._first, 0]
        parts = self._data[:, : shape.matrices], self._data[:, shape.matrices : shape.floats]
        matrices, window = (part.index_select(0, table) for part in parts)
        if self._fresh.any():
            matrices[self._begun_here] = window[self._begun_here] = 0.0
        return self._parts(matrices, window)

    def _parts(self, matrices: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        """Both (sessions, values), as ``begin`` gives them."""
        shape = self._shape
        dims = (self.sessions * shape.heads, shape.key_dim, shape.value_dim)
        return matrices.view(dims), window.unflatten(1, (shape.rows, shape.channels))

    def keep(self, block: int, cut: int, matrices: Tensor, window: Tensor) -> None:
        """The state after cut number ``cut``, as ``begin`` gives it."""
        shape, at = self._shape, block - self._first
        table = self._tables[at, 1 + cut]
        matrices, window = matrices.view(self.sessions, shape.matrices), window.flatten(1)
        if (missing := self._slots[at, 1 + cut] < 0).any():
            chosen = torch.from_numpy(np.flatnonzero(~missing)).to(table.device)
            table, matrices, window = table[chosen], matrices[chosen], window[chosen]
        own = self._in_place and matrices.data_ptr() == self._data[self._slots[at, 1 + cut, 0]].data_ptr()
        if not own:
            self._data[:, : shape.matrices].index_copy_(0, table, matrices)
        self._data[:, shape.matrices : shape.floats].index_copy_(0, table, window)


def _cuts(part: BatchSlice) -> tuple[int, ...]:
    """Rows of ``part`` up to each place where its state is kept."""
    return tuple(rows for _, rows in part.chunks())
