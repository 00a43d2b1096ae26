"""The codec f8: a small float for each value, laid out as in ``packed``. It needs to know nothing of the
model.

A code has a sign (its highest bit), 3 bits of exponent e and 4 of fraction f, and stands for ± f if e is 0,
else for ± (16 + f) · 2^(e-1): 0 to 32 in steps of 1, and from there in 16 steps to each power of two, up to
1984. There is no code for infinity or NaN. The writer takes scale = (largest magnitude beside the outliers) /
1984, the nearest code (the even one where two are as near), and the value's sign, also that of a zero.

A value below the largest by a factor of up to 124 is off by at most 1/33 of itself, one below that by half
of the scale. int8 is off by the same amount everywhere: more exact for large values, and for small ones not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import native
from .packed import PackedCodec

_FRACTION_BITS = 4
_DROPPED = 23 - _FRACTION_BITS
"""Bits of a float32's fraction that a code does not have."""
_SMALLEST_NORMAL = np.float32(16)
_BIAS = (127 + _FRACTION_BITS - 1) << _FRACTION_BITS
"""What the upper bits of a float32 are above the code of the same value."""


def _value_of(code: int) -> float:
    exponent, fraction = code >> _FRACTION_BITS & 7, code & 15
    magnitude = fraction if not exponent else (16 + fraction) << (exponent - 1)
    return -float(magnitude) if code & 0x80 else float(magnitude)


VALUES = np.array([_value_of(code) for code in range(256)], np.float32)
"""(256,): what each code stands for."""
STEPS = np.array([1 << max(0, (code >> _FRACTION_BITS & 7) - 1) for code in range(256)], np.float32)
"""(256,): how far from a code's value the next one is."""


@dataclass(frozen=True, slots=True)
class F8Codec(PackedCodec):
    """Codes are floats of 8 bits, times the scale."""

    largest: ClassVar[float] = 1984.0
    reach: ClassVar[float] = 1984.0
    native_format: ClassVar[int] = native.F8

    @staticmethod
    def _codes(values: np.ndarray) -> np.ndarray:
        sign = np.signbit(values).astype(np.uint8) << 7
        magnitude = np.minimum(np.abs(values, out=values), np.float32(F8Codec.largest), out=values)
        bits = magnitude.view(np.uint32)
        half = np.uint32((1 << _DROPPED - 1) - 1)
        normal = (bits + half + (bits >> _DROPPED & 1) >> _DROPPED) - np.uint32(_BIAS)
        small = np.rint(magnitude).astype(np.uint8)
        return np.where(magnitude < _SMALLEST_NORMAL, small, normal.astype(np.uint8)) | sign

    @staticmethod
    def _steps(codes: np.ndarray) -> np.ndarray:
        return STEPS[codes]

    @staticmethod
    def _values(codes: np.ndarray) -> np.ndarray:
        return VALUES[codes]
