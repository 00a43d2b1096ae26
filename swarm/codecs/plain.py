"""The codecs that write every value as a float of 32 or 16 bits.

=====  =============  ===========================================================================
kind   bytes per row  a row
=====  =============  ===========================================================================
none   4 · width      float32 values
bf16   2 · width      bfloat16 values (the upper half of the float32, rounded to nearest even)
fp16   2 · width      IEEE binary16 values, so none beyond ±65504
=====  =============  ===========================================================================

There are models whose rows do not fit into fp16: the first token of Gemma 3 270M reaches 103,795. So nothing
takes it by itself, and its writer fails rather than send another value.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..errors import CodecRangeError
from .codec import Codec, Payload, bad_tensor, not_finite

logger = logging.getLogger(__name__)

TAKE_BF16 = "Take bf16 for this model: --wire-codec bf16."
NEAR_OVERFLOW = 32768.0
"""A magnitude above this, half of the largest, in fp16 is told: the next text may have one that does not
fit."""
_ROUNDS_TO_INFINITY = 0x7F7F8000
"""The bits of the smallest magnitude that bfloat16 rounds to infinity."""


@dataclass(frozen=True, slots=True)
class PlainCodec(Codec):
    """A float format, value by value."""

    def _row_bytes(self, width: int) -> int:
        return width * (4 if self.kind == "none" else 2)

    def _encode(self, rows: np.ndarray, size: int) -> bytes:
        if self.kind == "bf16":
            return _encode_bf16(rows)
        if not np.isfinite(rows).all():
            raise not_finite()
        if self.kind == "none":
            return rows.astype("<f4", copy=False).tobytes()
        with np.errstate(over="ignore"):
            halves = rows.astype("<f2")
        if (largest := float(np.abs(halves).max())) > NEAR_OVERFLOW:
            _warn_near_overflow()
        if math.isinf(largest):
            raise CodecRangeError(
                f"the computed activations reach {float(np.abs(rows).max()):,.0f}, and fp16 ends at 65,504",
                hint=TAKE_BF16,
            )
        return halves.tobytes()

    def _decode(self, payload: Payload, tokens: int, width: int, limit: float) -> np.ndarray:
        values = self._floats(payload)
        if not (values.max() <= limit and values.min() >= -limit):  # false for NaN too
            raise bad_tensor(f"activations hold values that are not finite or larger than {limit:g}")
        return values.reshape(tokens, width)

    def magnitudes(self, payload: Payload, tokens: int, width: int) -> list[float]:
        values = self._floats(payload).reshape(tokens, width)
        with np.errstate(over="ignore"):
            return [math.sqrt(float(np.dot(row, row)) / width) for row in values]

    def _floats(self, payload: Payload) -> np.ndarray:
        """All values as float32, in memory of their own."""
        if self.kind == "bf16":
            bits = np.frombuffer(payload, "<u2").astype(np.uint32)
            return np.left_shift(bits, 16, out=bits).view(np.float32)
        return np.frombuffer(payload, "<f2" if self.kind == "fp16" else "<f4").astype(np.float32)


@cache
def _warn_near_overflow() -> None:
    """Once: a model that does so does it in every session."""
    logger.warning(
        "event=fp16_near_overflow limit=65504 hint=%r",
        "activations reach more than half of what fp16 holds: clients should take bf16",
    )


def _encode_bf16(rows: np.ndarray) -> bytes:
    """The upper halves of the floats, rounded to nearest, or to even where both are as near."""
    bits = np.ascontiguousarray(rows).view(np.uint32)
    odd = np.right_shift(bits, 16)
    odd &= 1
    if (bits & 0x7FFFFFFF).max() >= _ROUNDS_TO_INFINITY:  # NaN too
        raise not_finite()
    rounded = np.add(bits, 0x7FFF)
    rounded += odd
    rounded >>= 16
    return rounded.astype("<u2").tobytes()
