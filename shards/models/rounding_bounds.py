"""How far products with rounded weights can be from the exact ones: a bound for each row of a matrix.

A row w of the file is held as v. For an input x, |w.x - v.x| <= |w - v| |x| (norms; Cauchy-Schwarz), and what
a kernel makes of v.x is off by its own rounding. For eight bits in groups of 32 the bound is about a half of
a percent of |w| |x|.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..kernels.linear import ActivationPrecision
from ..layers.quantize import GROUP

_STEPS = {
    ActivationPrecision.FAST: 127.0,
    ActivationPrecision.CLOSE: 32639.0,
    ActivationPrecision.EXACT: 8355700.0,
}
"""The number of steps to a group's largest activation, as in ``csrc/linear_int.c``."""


class RowErrors(NamedTuple):
    """Of some rows: the norms of what rounding did to each, and of the rows. Both (rows,) float32."""

    errors: np.ndarray
    norms: np.ndarray

    @classmethod
    def of(cls, weight: np.ndarray, held: np.ndarray) -> RowErrors:
        """Rows as the file has them and as they are held: both (rows, cols) float32."""
        return cls(np.linalg.norm(weight - held, axis=1), np.linalg.norm(weight, axis=1))


@dataclass(frozen=True, slots=True)
class Rounding:
    """The error that a kernel adds to that of the weights. ``of_input``: times the norms of row and input;
    ``of_output``: times the magnitude of the product."""

    of_input: float
    of_output: float = 0.0


def native_rounding(precision: ActivationPrecision, cols: int) -> Rounding:
    """The rounding of the C kernels: activations to fixed point, at most half a step of their group's
    largest, which is at most the group's norm; sums in float32, exact within a group."""
    return Rounding(GROUP**0.5 / (2 * _STEPS[precision]) + (cols / GROUP + 32) * 2.0**-24)


def torch_rounding(cols: int) -> Rounding:
    """The rounding of torch's packed kernels: activations, and in four bits weights, to bfloat16; sums in
    float32; the product to bfloat16."""
    return Rounding(2 * 2.0**-9 + (cols + 32) * 2.0**-24, 2.0**-8)


class RoundingBounds:
    """Collects the errors of a matrix whose rows are rounded piece by piece; ``bounds`` in the end."""

    def __init__(self) -> None:
        self._errors: list[np.ndarray] = []
        self._norms: list[np.ndarray] = []

    @property
    def known(self) -> bool:
        """Whether any rows were rounded."""
        return bool(self._errors)

    def add(self, rows: RowErrors) -> None:
        """The next rows."""
        self._errors.append(rows.errors)
        self._norms.append(rows.norms)

    def bounds(self, rounding: Rounding) -> np.ndarray:
        """(rows,) float32: times the norm of an input, how far each row's product can be off, apart from
        ``rounding.of_output``."""
        errors, norms = np.concatenate(self._errors), np.concatenate(self._norms)
        return (errors + rounding.of_input * (norms + errors)) * (1 + 1e-4)  # norms are rounded as well
