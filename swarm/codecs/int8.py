"""The codec int8: steps of one size in each row, laid out as in ``packed``.

A code is an int8 q, and stands for itself: the value of a channel is q · scale. The writer takes scale =
(largest magnitude beside the outliers) / 127 and q = round half to even(value / scale), so -127 to 127; a
reader takes -128 as it is.

On its own it is for peers that speak nothing better: where a row's largest channels are a hundred times the
median or more, as in Gemma 3, one step for all of them loses the small ones (decision 0050).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from . import native
from .packed import PackedCodec


@dataclass(frozen=True, slots=True)
class Int8Codec(PackedCodec):
    """Codes are multiples of the scale."""

    largest: ClassVar[float] = 127.0
    reach: ClassVar[float] = 128.0
    native_format: ClassVar[int] = native.INT8

    @staticmethod
    def _codes(values: np.ndarray) -> np.ndarray:
        return np.rint(values, out=values).astype(np.int8).view(np.uint8)

    @staticmethod
    def _values(codes: np.ndarray) -> np.ndarray:
        return codes.view(np.int8)
