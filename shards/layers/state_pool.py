"""Memory for the states of blocks that keep one: arrays only. ``node/`` keeps which slot belongs to which
session, in ints.

A slot is the memory of one block's state at one position. Blocks of different ``StateShape`` share a pool:
each lays out its own from the first byte of a slot, which holds the largest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..formats.blocks.block import BlockConfig
from ..formats.blocks.state import StateShape
from .memory import zeros

if TYPE_CHECKING:
    from numpy.typing import NDArray


class StatePool:
    """``n_slots`` slots for states of ``shapes``, in the host's memory, committed as they are first written.

    ``data``: (n_slots, floats) float32.
    """

    def __init__(self, n_slots: int, shapes: Iterable[StateShape]) -> None:
        """Raises MemoryError where there is not enough."""
        self.shapes = frozenset(shapes)
        self.n_slots = n_slots
        self.data: NDArray[np.float32] = zeros((n_slots, slot_floats(self.shapes)), np.float32)

    @property
    def slot_bytes(self) -> int:
        return self.data.shape[1] * self.data.itemsize


def slot_floats(shapes: Iterable[StateShape]) -> int:
    """Values of a slot that holds a state of any of ``shapes``."""
    return max((shape.floats for shape in shapes), default=0)


def state_shapes(blocks: Iterable[BlockConfig]) -> frozenset[StateShape]:
    return frozenset(block.state.state for block in blocks if block.state is not None)


def largest_state(blocks: Iterable[BlockConfig]) -> int:
    """Bytes of a slot that any of ``blocks`` can use; 0 where none keeps a state."""
    return max((shape.nbytes for shape in state_shapes(blocks)), default=0)
