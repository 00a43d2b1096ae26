"""The states of a batch's sessions in the slots of a pool: read where rows begin, kept where a page ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ....swarm.errors import LocalProtocolError
from ....swarm.protocol.field_types import PAGE_TOKENS
from ...formats.blocks.state import StateShape
from ...layers.kv_pool import BatchSlice
from ..tensors.kv_pool import TorchKvPool

State = tuple[Tensor, Tensor]
"""``heads`` matrices (heads, key_dim, value_dim) and the convolution's last inputs (rows, channels)."""
Advance = Callable[[slice, State], State]
"""``advance(rows, state)`` computes these rows of the batch, one after the other, and returns the state after
them."""


class PagedStates:
    """The states of one forward pass over ``slices``, whose ``states`` say where they are."""

    def __init__(self, pool: TorchKvPool, slices: Sequence[BatchSlice]) -> None:
        self._data, self._slices = pool.states, slices

    def advance(self, block: int, shape: StateShape, compute: Advance) -> None:
        """``compute`` all rows of the batch in block number ``block``, a page of a session at a time."""
        for part in self._slices:
            if part.states is None:
                raise LocalProtocolError(f"a slice without a state for block {block}")
            slots: Sequence[int] = part.states[block - part.first_block].tolist()
            state = self._begin(slots, part.start, shape)
            for page, rows in _pages(part):
                state = compute(rows, state)
                if (slot := slots[page]) >= 0:
                    self._keep(slot, shape, state)

    def _begin(self, slots: Sequence[int], start: int, shape: StateShape) -> State:
        if not start:
            flat = torch.zeros(shape.floats, device=self._data.device)
        elif (slot := slots[(start - 1) // PAGE_TOKENS]) < 0:
            raise LocalProtocolError(f"the state before position {start} was not kept")
        else:
            flat = self._data[slot, : shape.floats].clone()
        return (
            flat[: shape.matrices].view(shape.heads, shape.key_dim, shape.value_dim),
            flat[shape.matrices :].view(shape.rows, shape.channels),
        )

    def _keep(self, slot: int, shape: StateShape, state: State) -> None:
        held = self._data[slot]
        held[: shape.matrices] = state[0].flatten()
        held[shape.matrices : shape.floats] = state[1].flatten()


def _pages(part: BatchSlice) -> Iterator[tuple[int, slice]]:
    """The slice's pages, and the rows of the batch that are in each."""
    position, end = part.start, part.start + part.count
    while position < end:
        page = position // PAGE_TOKENS
        upto = min(end, (page + 1) * PAGE_TOKENS)
        first = part.row + position - part.start
        yield page, slice(first, first + upto - position)
        position = upto
