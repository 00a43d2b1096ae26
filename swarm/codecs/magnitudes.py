"""How large the rows of a payload are, found without decoding it."""

from __future__ import annotations

import math
import struct
from functools import lru_cache

import numpy as np

from .activations import OUTLIERS, floats, row_type

SMALLEST_MAGNITUDE = 1e-29
"""``magnitudes`` gives at most this for a row of zeros, because in int8 such a row has a scale too."""


def magnitudes(codec: str, payload: bytes | bytearray | memoryview, tokens: int, hidden: int) -> list[float]:
    """The root mean square of each row of a payload of the right size, without decoding it; NaN or infinite
    where a value is.

    Of an int8 row only its head is read: what it gives is no less than the row's, and was up to 7 times as
    much in SmolLM2, or sqrt(hidden) at worst.
    """
    if codec != "int8":
        values = floats(codec, payload).reshape(tokens, hidden)
        with np.errstate(over="ignore"):
            return [math.sqrt(float(np.dot(row, row)) / hidden) for row in values]
    if tokens == 1:
        scale, *outliers = _row_head(hidden).unpack_from(payload)
        squares = 0.0
        for value in outliers:
            squares += value * value
        return [_envelope(scale, squares, hidden)]
    rows = np.frombuffer(payload, row_type(hidden))
    squares = np.square(rows["value"], dtype=np.float64).sum(axis=1)
    return [_envelope(*each, hidden) for each in zip(rows["scale"].tolist(), squares.tolist(), strict=True)]


def _envelope(scale: float, outliers_squared: float, hidden: int) -> float:
    """With all other channels at their largest."""
    return math.sqrt(outliers_squared / hidden + (127 * scale) ** 2)


@lru_cache(maxsize=16)
def _row_head(hidden: int) -> struct.Struct:
    """An int8 row's scale and outliers' values."""
    k = min(OUTLIERS, hidden)
    return struct.Struct(f"<f{2 * k}x{k}f")
