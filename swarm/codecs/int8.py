"""The int8 codec: one scale a row, and the largest values exact.

With k = min(4, width) outliers a row takes 4 + 6·k + width bytes:

======  =========  ================================================================================
offset  type       meaning
======  =========  ================================================================================
0       float32    scale, finite, >= 0
4       k uint16   outlier channels, strictly ascending, each < width
4+2k    k float32  the values of those channels, exact and finite
4+6k    width i8   q; the value of a channel that is no outlier is q · scale. Written as -127 to 127,
                   as 0 at outliers; a reader takes -128 as it is and ignores q at outliers
======  =========  ================================================================================

The writer takes the k channels of largest magnitude (the lower channel first among equals) as outliers, and
scale = (largest magnitude of the others) / 127, q = round half to even(value / scale). Any other choice
decodes as well: only the table above binds.

Why so: a few channels carry values hundreds of times the median, and the first token's reach thousands, so
one scale for all would leave nothing for the rest. ``scripts/quality`` measures what each codec costs.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import RemoteProtocolError
from . import native
from .codec import Codec, Payload, bad_tensor, not_finite

OUTLIERS = 4
"""The values of this many channels of each token are kept exact. Part of the format."""
_SMALLEST_SCALED = 1e-30
"""A scale is made of at least this magnitude, which keeps 1 / scale finite for rows of zeros."""
_ROWS_AT_ONCE = 64
"""This many rows are encoded together, so that their float32 temporaries stay in the second-level cache."""


@dataclass(frozen=True, slots=True)
class Int8Codec(Codec):
    """Steps of one size a row."""

    @property
    def scale_bytes(self) -> int:
        return 4

    def _row_bytes(self, width: int) -> int:
        return 4 + 6 * min(OUTLIERS, width) + width

    def _encode(self, rows: np.ndarray, size: int) -> memoryview:
        if (kernels := native.loaded()) is not None:
            if (payload := kernels.encode_int8(rows, size)) is None:
                raise not_finite()
            return payload
        out = np.empty(len(rows), row_type(rows.shape[1]))
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            _encode_rows(rows[first : first + _ROWS_AT_ONCE], out[first : first + _ROWS_AT_ONCE])
        return out.view(np.uint8).data

    def _decode(self, payload: Payload, tokens: int, width: int, limit: float) -> np.ndarray:
        if (kernels := native.loaded()) is None:
            return _decode_rows(payload, tokens, width, limit)
        if isinstance(rows := kernels.decode_int8(payload, tokens, width, limit), int):
            raise _bad_row(rows, width)
        return rows

    def magnitudes(self, payload: Payload, tokens: int, width: int) -> list[float]:
        """Of a row only its head is read: what it gives is no less than the row's, and was up to 7 times as
        much in SmolLM2, or sqrt(width) at worst."""
        if tokens == 1:
            scale, *outliers = _row_head(width).unpack_from(payload)
            squares = 0.0
            for value in outliers:
                squares += value * value
            return [_envelope(scale, squares, width)]
        rows = np.frombuffer(payload, row_type(width))
        squares = np.square(rows["value"], dtype=np.float64).sum(axis=1)
        return [
            _envelope(*each, width) for each in zip(rows["scale"].tolist(), squares.tolist(), strict=True)
        ]


@lru_cache(maxsize=16)
def row_type(width: int) -> np.dtype[np.void]:
    """One row, packed as the module's docstring says."""
    k = min(OUTLIERS, width)
    return np.dtype([("scale", "<f4"), ("channel", "<u2", k), ("value", "<f4", k), ("q", "i1", width)])


@lru_cache(maxsize=16)
def _row_head(width: int) -> struct.Struct:
    """A row's scale and outliers' values."""
    k = min(OUTLIERS, width)
    return struct.Struct(f"<f{2 * k}x{k}f")


def _envelope(scale: float, outliers_squared: float, width: int) -> float:
    """With all other channels at their largest."""
    return math.sqrt(outliers_squared / width + (127 * scale) ** 2)


def _encode_rows(x: np.ndarray, out: np.ndarray) -> None:
    rows, width = x.shape
    x = np.ascontiguousarray(x)
    scratch = np.abs(x)  # (rows, width)
    flat = scratch.reshape(-1)
    row_starts = np.arange(0, rows * width, width)
    k = min(OUTLIERS, width)
    channels = np.empty((k, rows), np.intp)
    for i in range(k):  # a few passes over the cache beat a partial sort; argmax finds NaN first
        channels[i] = scratch.argmax(axis=1)
        flat[channels[i] + row_starts] = -1.0  # below any magnitude: never taken again
    channels.sort(axis=0)
    places = channels + row_starts  # (k, rows) into the flat rows
    values = x.reshape(-1)[places]
    scale = np.maximum(np.maximum.reduce(scratch, axis=1), _SMALLEST_SCALED) / np.float32(127)
    if not np.isfinite(values).all():  # whatever is not finite is among the largest
        raise not_finite()
    with np.errstate(over="ignore"):  # at outliers, which are set to 0
        np.multiply(x, (np.float32(1) / scale)[:, None], out=scratch)
    flat[places] = 0.0
    np.rint(scratch, out=scratch)
    out["scale"] = scale
    out["channel"] = channels.T
    out["value"] = values.T
    out["q"] = scratch


def _decode_rows(payload: Payload, tokens: int, width: int, limit: float) -> np.ndarray:
    """(tokens, width) float32, every magnitude at most ``limit``."""
    rows = np.frombuffer(payload, row_type(width))
    scale, channels, values = rows["scale"], rows["channel"], rows["value"]
    if not (np.maximum.reduce(scale) <= limit / 128 and np.minimum.reduce(scale) >= 0):  # false for NaN too
        raise _bad_row(native.BAD_SCALE, width)
    if not np.maximum.reduce(np.abs(values), axis=None) <= limit:
        raise _bad_row(native.BAD_VALUE, width)
    if np.maximum.reduce(channels[:, -1]) >= width or (channels[:, 1:] <= channels[:, :-1]).any():
        raise _bad_row(native.BAD_CHANNEL, width)
    x = np.multiply(rows["q"], scale[:, None], dtype=np.float32)
    x.reshape(-1)[channels + np.arange(0, tokens * width, width)[:, None]] = values
    return x


def _bad_row(complaint: int, width: int) -> RemoteProtocolError:
    """For one of the numbers in ``native``."""
    if complaint == native.BAD_SCALE:
        return bad_tensor("an int8 row's scale is negative, not finite or too large")
    if complaint == native.BAD_VALUE:
        return bad_tensor("an int8 row's outlier is not finite or too large")
    return bad_tensor(f"an int8 row's outlier channels are not strictly ascending below {width}")
