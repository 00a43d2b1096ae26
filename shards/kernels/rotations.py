"""Rotations of a batch's slices as the C kernels see them (``sn_rotation`` of ``csrc/block.h``)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..layers.kv_pool import BatchSlice
from ..layers.rope import Rope
from .library import address

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


class SnRotation(ctypes.Structure):
    _fields_ = (("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p))


class RotationArray:
    """A C array (kinds, slices) that grows as needed and is filled anew for each call."""

    def __init__(self, ropes: Sequence[Rope]) -> None:
        """``ropes``: of each kind."""
        self._ropes = tuple(ropes)
        self._held: list[tuple[Floats, Floats]] = []
        self.array = (SnRotation * 16)()

    def fill(self, slices: Sequence[BatchSlice]) -> None:
        """What ``array`` points at lives until the next call."""
        needed = len(slices) * len(self._ropes)
        if needed > len(self.array):
            self.array = (SnRotation * (2 * needed))()
        self._held.clear()
        end = max(part.start + part.count for part in slices)
        places = iter(self.array)
        for rope in self._ropes:
            tables = {long: self._table(rope, end, long) for long in {part.long_context for part in slices}}
            for part, rotation in zip(slices, places, strict=False):
                rotation.cos, rotation.sin = self._row(rope, part, tables[part.long_context])

    def _table(self, rope: Rope, end: int, long: bool) -> tuple[int, int, int] | None:
        """Where the table's cos and sin lie, and the bytes of a row."""
        table = rope.table(end, long)
        if table is None:
            return None
        self._held.append(table)
        cos, sin = table
        return address(cos), address(sin), cos.strides[0]

    def _row(self, rope: Rope, part: BatchSlice, table: tuple[int, int, int] | None) -> tuple[int, int]:
        if table is not None:
            cos, sin, row_bytes = table
            return cos + part.start * row_bytes, sin + part.start * row_bytes
        rows = rope.slice_rows(part.start, part.count, part.long_context)
        self._held.append(rows)
        return address(rows[0]), address(rows[1])
