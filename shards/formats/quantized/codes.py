"""Codes of four bits that a table turns into values, times a scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .tensor import Floats, Rows

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Floats of four bits: one of sign, two of exponent, one of mantissa."""


@dataclass(frozen=True, slots=True)
class Codes:
    """``table`` float32 (16). Of stored rows, and the number of columns: ``codes`` uint8 (rows, cols), and
    ``scale`` float32 (rows, groups), each of as many columns."""

    table: Floats
    codes: Callable[[Rows, int], NDArray[np.uint8]]
    scale: Callable[[Rows, int], Floats]

    def values(self, rows: Rows, cols: int) -> Floats:
        scale = self.scale(rows, cols)
        values: Floats = self.table[self.codes(rows, cols)]
        grouped = values.reshape(len(values), scale.shape[1], -1)
        grouped *= scale[..., None]
        return values
