"""Products with one way to compute a row, independent of the rows beside it.

Products on torch's kernels depend on how many rows they have, as the library picks another kernel for each
shape. So dense products always have ROW_TILE rows here, missing ones being zeros: every row of one shape is
computed alike (found by trying; ``models.determinism_check`` proves it on the loaded weights).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .linear import PACKED_ROWS_INT8, Linear

ROW_TILE = 16
"""Every dense product has this many rows. 3072x576 in float32 on one core, milliseconds: 1 row 0.31, a tile
of 8 0.90, of 16 0.97, of 32 1.23, 512 rows 13.9. So one session's token costs three times as much and a
prompt twice."""
PACKED_ROWS = min(ROW_TILE, PACKED_ROWS_INT8)
"""torch's packed kernels get this many rows at a time: few enough that the weights are never unpacked."""


class RowTiles:
    """``linear`` given at most ROW_TILE rows at a time. ``pad``: always exactly that many.

    torch's packed kernels for int8 and int4 take each row the same way in any number, so these are only cut.
    """

    def __init__(self, linear: Linear, *, pad: bool) -> None:
        self._linear = linear
        self._pad = pad

    @property
    def nbytes(self) -> int:
        return self._linear.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if not self._pad:
            return torch.cat([self._linear(tile) for tile in x.split(PACKED_ROWS)])
        return torch.cat([self._padded(tile) for tile in x.split(ROW_TILE)])

    def _padded(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        if count == ROW_TILE:
            return self._linear(x.contiguous())
        tile = x.new_zeros(ROW_TILE, x.shape[1])
        tile[:count] = x
        return self._linear(tile)[:count]
