"""What the codecs of one byte a value have in common: a scale for each row, and its largest values exact.

With k = min(4, width) outliers a row takes 4 + 6·k + width bytes:

======  ==========  ===============================================================================
offset  type        meaning
======  ==========  ===============================================================================
0       float32     scale, finite, >= 0
4       k uint16    outlier channels, strictly ascending, each < width
4+2k    k float32   the values of those channels, exact and finite
4+6k    width byte  a code for each channel; what it stands for, times scale, is the value of a channel
                    that is no outlier. Written as 0 at outliers, where a reader ignores it
======  ==========  ===============================================================================

The writer takes the k channels of largest magnitude (the lower channel first among equals) as outliers, and
the scale with which the largest of the others has the largest code. Any other choice decodes as well: only
the table above binds.

Why so: a few channels carry values hundreds of times the median, and the first token's reach thousands, so
one scale for all would leave nothing for the rest. ``scripts/quality`` measures what each codec costs.
"""

from __future__ import annotations

import math
import struct
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from ..errors import RemoteProtocolError
from . import native
from .codec import Codec, Payload, bad_tensor, not_finite
from .scales import powers_of_two

OUTLIERS = 4
"""The values of this many channels of each token are kept exact. Part of the format."""
_SMALLEST_SCALED = np.float32(1e-30)
"""A scale is made of at least this magnitude, which keeps 1 / scale finite for rows of zeros."""
_ROWS_AT_ONCE = 64
"""This many rows are encoded together, so that their float32 temporaries stay in the second-level cache."""


@dataclass(frozen=True, slots=True)
class PackedCodec(Codec):
    """``largest``: the largest magnitude that a code is written for, in scales; ``reach``: that one may be
    read for. ``native_format``: how the kernels in C call it."""

    largest: ClassVar[float]
    reach: ClassVar[float]
    native_format: ClassVar[int]

    @property
    def scale_bytes(self) -> int:
        return 4

    @staticmethod
    @abstractmethod
    def _codes(values: np.ndarray) -> np.ndarray:
        """The codes of ``values`` (rows, width) float32, in scales, which may be overwritten; of magnitudes
        above ``largest``, where they are outliers, any code."""

    @staticmethod
    @abstractmethod
    def _values(codes: np.ndarray) -> np.ndarray:
        """What ``codes`` (rows, width) stand for, exactly."""

    @staticmethod
    def _steps(codes: np.ndarray) -> np.ndarray:
        """How far from the values of ``codes`` (rows, width) the next ones are, float32."""
        return np.ones(codes.shape, np.float32)

    def noise(self, payload: Payload, width: int) -> np.ndarray:
        """Rounding to steps is off by any part of half a step alike, so its mean square is step² / 12."""
        rows = np.frombuffer(payload, row_type(width))
        steps = self._steps(rows["code"]) * rows["scale"][:, None]
        if self.exponents:
            steps *= powers_of_two(self.exponents, 1)
        np.put_along_axis(steps, rows["channel"].astype(np.intp), 0, axis=1)
        return np.square(steps, out=steps) / np.float32(12)

    def _row_bytes(self, width: int) -> int:
        return width + (4 + 6 * OUTLIERS if width >= OUTLIERS else 4 + 6 * width)

    def _encode(self, rows: np.ndarray, size: int) -> memoryview:
        if (kernels := native.loaded()) is not None:
            if (payload := kernels.encode(self.native_format, rows, size, self.exponents)) is None:
                raise not_finite()
            return payload
        return self.plain_payload(rows)

    def plain_payload(self, rows: np.ndarray) -> memoryview:
        """The payload of ``rows`` (tokens, width) float32 as numpy makes it: the kernels make the same."""
        out = np.empty(len(rows), row_type(rows.shape[1]))
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            self._encode_rows(rows[first : first + _ROWS_AT_ONCE], out[first : first + _ROWS_AT_ONCE])
        return out.view(np.uint8).data

    def _decode(self, payload: Payload, tokens: int, width: int, limit: float) -> np.ndarray:
        if (kernels := native.loaded()) is None:
            return self._decode_rows(payload, tokens, width, limit)
        rows = kernels.decode(self.native_format, payload, tokens, width, limit, self.exponents)
        if isinstance(rows, int):
            raise self._bad_row(rows, width)
        return rows

    def magnitudes(self, payload: Payload, tokens: int, width: int) -> list[float]:
        """Of a row only its head is read: what it gives is no less than the row's, and was up to 7 times as
        much in SmolLM2, or sqrt(width) at worst."""
        if tokens == 1:
            scale, *outliers = _row_head(width).unpack_from(payload)
            squares = 0.0
            for value in outliers:
                squares += value * value
            return [self._envelope(scale, squares, width)]
        rows = np.frombuffer(payload, row_type(width))
        squares = np.square(rows["value"], dtype=np.float64).sum(axis=1)
        heads = zip(rows["scale"].tolist(), squares.tolist(), strict=True)
        return [self._envelope(*head, width) for head in heads]

    def _envelope(self, scale: float, outliers_squared: float, width: int) -> float:
        """With all other channels at their largest."""
        return math.hypot(math.sqrt(outliers_squared / width), self.largest * scale)

    # Without kernels in C.

    def _encode_rows(self, x: np.ndarray, out: np.ndarray) -> None:
        rows, width = x.shape
        x = np.ascontiguousarray(x)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            scaled = x * powers_of_two(self.exponents, -1) if self.exponents else x
        scratch = np.abs(scaled)  # (rows, width)
        flat = scratch.reshape(-1)
        row_starts = np.arange(0, rows * width, width)
        k = min(OUTLIERS, width)
        channels = np.empty((k, rows), np.intp)
        for i in range(k):  # a few passes over the cache beat a partial sort; argmax finds NaN first
            channels[i] = scratch.argmax(axis=1)
            flat[channels[i] + row_starts] = -1.0  # below any magnitude: never taken again
        channels.sort(axis=0)
        places = channels + row_starts  # (k, rows) into the flat rows
        scale = np.maximum(np.maximum.reduce(scratch, axis=1), _SMALLEST_SCALED) / np.float32(self.largest)
        if not np.isfinite(scaled.reshape(-1)[places]).all():  # whatever is not finite is among the largest
            raise not_finite()
        with np.errstate(over="ignore", under="ignore"):  # over: at outliers
            np.multiply(scaled, (np.float32(1) / scale)[:, None], out=scratch)
        flat[places] = 0.0
        out["scale"] = scale
        out["channel"] = channels.T
        out["value"] = x.reshape(-1)[places].T
        out["code"] = self._codes(scratch)

    def _decode_rows(self, payload: Payload, tokens: int, width: int, limit: float) -> np.ndarray:
        """(tokens, width) float32, every magnitude at most ``limit``."""
        rows = np.frombuffer(payload, row_type(width))
        scale, channels, values = rows["scale"], rows["channel"], rows["value"]
        # Behind powers of two it is not the scale alone that says how large values are.
        most = np.float32(limit) / np.float32(self.reach)
        if self.exponents:
            most = np.finfo(np.float32).max
        if not (np.maximum.reduce(scale) <= most and np.minimum.reduce(scale) >= 0):  # false for NaN too
            raise self._bad_row(native.BAD_SCALE, width)
        if not np.maximum.reduce(np.abs(values), axis=None) <= limit:
            raise self._bad_row(native.BAD_VALUE, width)
        if np.maximum.reduce(channels[:, -1]) >= width or (channels[:, 1:] <= channels[:, :-1]).any():
            raise self._bad_row(native.BAD_CHANNEL, width)
        with np.errstate(over="ignore", under="ignore"):
            x = np.multiply(self._values(rows["code"]), scale[:, None], dtype=np.float32)
            if self.exponents:
                x *= powers_of_two(self.exponents, 1)
        x.reshape(-1)[channels + np.arange(0, tokens * width, width)[:, None]] = values
        if self.exponents and not np.abs(x).max() <= limit:
            raise self._bad_row(native.BAD_SCALE, width)
        return x

    def _bad_row(self, complaint: int, width: int) -> RemoteProtocolError:
        """For one of the numbers in ``native``."""
        if complaint == native.BAD_SCALE:
            return bad_tensor(f"the scale of a row in {self.kind} is negative, not finite or too large")
        if complaint == native.BAD_VALUE:
            return bad_tensor(f"an outlier of a row in {self.kind} is not finite or too large")
        return bad_tensor(
            f"the outlier channels of a row in {self.kind} are not strictly ascending below {width}"
        )


@lru_cache(maxsize=16)
def row_type(width: int) -> np.dtype[np.void]:
    """One row, packed as the module's docstring says."""
    k = min(OUTLIERS, width)
    return np.dtype([("scale", "<f4"), ("channel", "<u2", k), ("value", "<f4", k), ("code", "u1", width)])


@lru_cache(maxsize=16)
def _row_head(width: int) -> struct.Struct:
    """A row's scale and outliers' values."""
    k = min(OUTLIERS, width)
    return struct.Struct(f"<f{2 * k}x{k}f")
