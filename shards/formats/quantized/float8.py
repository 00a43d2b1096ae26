"""Matrices of floats of eight bits: ``X.weight`` of type F8_E4M3 or F8_E5M2, and a scale for the whole
matrix, for each row, for a group of columns, or for a block of rows and columns, which is multiplied by.

The scale is called ``X.weight_scale``, or ``X.weight_scale_inv`` where its inverse was what weights were
multiplied by. What activations would be rounded with (``input_scale``) is not used: they are not rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..qtypes import Quantization, float8_qtype
from ..raw_tensor import RawTensor
from ..tensors import TensorInfo, TensorSource
from .parts import Parts, sibling
from .scales import EXPONENTS, SCALE_TYPES, Scales, scales, scheme_of
from .tensor import quantized

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .tensor import Floats, Rows


def _e4m3() -> Floats:
    """The values of all bytes: a sign, four bits of exponent, three of mantissa; two are no numbers."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    small = np.ldexp(mantissa / 8, -6)
    values = np.where(exponent == 0, small, np.ldexp(1 + mantissa / 8, exponent - 7))
    values[codes & 127 == 127] = np.nan
    return np.where(codes > 127, -values, values).astype(np.float32)


E4M3 = _e4m3()
E5M2: Floats = (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)
"""The upper halves of float16."""
_TABLES = {"F8_E4M3": E4M3, "F8_E5M2": E5M2}


@dataclass(frozen=True, slots=True)
class Float8:
    """``stored`` uint8 (all rows, cols). ``scale``: each for ``group`` columns, the last one for what is
    left; 0: for all. ``table``: the values of all bytes."""

    stored: NDArray[np.uint8]
    scale: Scales
    group: int
    table: Floats = field(default_factory=lambda: E4M3)

    def values(self, rows: Rows, cols: int) -> Floats:
        scale = self.scale(rows)
        values = self.table[self.stored[rows]]
        values *= scale.repeat(self.group, 1)[:, :cols] if self.group else scale
        return values


@dataclass(frozen=True, slots=True)
class ScaledFloat8:
    """A ``Format``."""

    settings: Quantization

    def stored(self, name: str) -> tuple[str, ...]:
        return (name, sibling(name, "weight_scale_inv"), sibling(name, "weight_scale"))

    def found(self, parts: Parts) -> TensorInfo | None:
        name, inverse, plain = self.stored(parts.name)
        weight = parts.get(name)
        if weight is None or weight.qtype not in _TABLES:
            return None
        scale = parts.get(inverse) or parts.need(plain, name)
        scheme = scheme_of(parts.shape, scale.shape, 8, self.settings.schemes)
        if weight.shape != parts.shape or scale.qtype not in (*SCALE_TYPES, *EXPONENTS) or scheme is None:
            raise parts.misfit(weight, scale)
        qtype = float8_qtype(scheme.group, weight.qtype.removeprefix("F8_"))
        return parts.matrix(qtype, weight, scale, scheme=scheme)

    def tensor(self, info: TensorInfo, source: TensorSource) -> RawTensor:
        weight, inverse, plain = self.stored(info.name)
        stored, scale = source.tensor(weight), source.tensor(inverse if inverse in source.manifest else plain)
        divided = scales(scale, info.shape, 8, self.settings.schemes)
        numbers = Float8(stored.stored, *divided, _TABLES[stored.qtype])
        return quantized(info.name, info.shape, info.qtype, numbers, stored)
