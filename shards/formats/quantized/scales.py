"""Which scale belongs to which weight: one for a matrix, a row, a group of columns, or a block of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ..qtypes import DENSE, Scheme, groups_of
from ..raw_tensor import RawTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .tensor import Floats, Rows

SCALE_TYPES = (*DENSE, "F8_E8M0")
EXPONENTS = ("F8_E8M0", "U8")
"""Types of scales that are powers of two: bytes, 127 stands for 1."""

Shape = tuple[int, ...]


def scheme_of(shape: Shape, scale: Shape, bits: int, told: Sequence[Scheme]) -> Scheme | None:
    """How ``scale`` is divided among a matrix, or a stack of them, of ``shape``; None where it does not fit.

    ``told`` are tried first: shapes alone do not tell the size of a block."""
    usual = (Scheme(bits, 0, 0), Scheme(bits, 0))
    for scheme in (*(each for each in told if each.bits == bits), *usual):
        if _fits(shape, scale, scheme):
            return scheme
    groups = scale[-1] if scale else 0
    if scale[:-1] == shape[:-1] and groups and shape[-1] % groups == 0:
        return Scheme(bits, shape[-1] // groups)
    return None


def _fits(shape: Shape, scale: Shape, scheme: Scheme) -> bool:
    *stack, rows, cols = shape
    if scheme.rows == 0:
        return prod(scale) == prod(stack) and (len(scale) == 1 or scale[: len(stack)] == tuple(stack))
    divided = (*stack, -(-rows // scheme.rows))
    if scheme.group == 0:
        return scale in (divided, (*divided, 1))
    if scheme.rows == 1 and cols % scheme.group:
        return False
    return scale == (*divided, -(-cols // scheme.group))


@dataclass(frozen=True, slots=True)
class Scales:
    """``values`` float32 (all scales, groups). So many ``rows`` of a matrix share some; it has ``each``."""

    values: Floats
    rows: int
    each: int

    def __call__(self, rows: Rows) -> Floats:
        """Of stored rows: (rows, groups)."""
        blocks = -(-self.each // self.rows)
        return self.values[rows // self.each * blocks + rows % self.each // self.rows]

    def of(self, values: Floats) -> Scales:
        """Other values, divided in the same way."""
        return replace(self, values=values.reshape(self.values.shape))


def scales(raw: RawTensor, shape: Shape, bits: int, told: Sequence[Scheme]) -> tuple[Scales, int]:
    """Of a matrix of ``shape``, and how many columns share one (0: all): as ``scheme_of`` has found it."""
    scheme = scheme_of(shape, raw.shape, bits, told) or Scheme(bits, 0)
    values = whole_floats(raw).reshape(-1, groups_of(shape[-1], scheme.group))
    return Scales(values, scheme.rows or shape[-2], shape[-2]), scheme.group


def whole_floats(raw: RawTensor) -> Floats:
    """All values of a small tensor, float32 in its shape."""
    if raw.qtype in EXPONENTS:
        exponents = raw.stored.astype(np.int32) - 127
        powers = np.where(raw.stored == 255, np.nan, np.ldexp(1.0, exponents))
        return powers.astype(np.float32).reshape(raw.shape)
    return raw.values(slice(None)).reshape(raw.shape)


def whole_integers(raw: RawTensor) -> NDArray[np.int64]:
    """All values of a small tensor of whole numbers, in one row; none where it is of another type."""
    dtype = {"I64": np.int64, "I32": np.int32}.get(raw.qtype)
    if dtype is None:
        return np.empty(0, np.int64)
    return np.array(raw.stored, order="C").view(dtype).reshape(-1).astype(np.int64)
