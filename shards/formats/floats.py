"""Plain floats as buffers. numpy has no bfloat16: such values are held as their bits, uint16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}
"""The type of array that holds values of each type of float."""


def widen(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """``values`` of type ``dtype``, as STORED has them → the same numbers as float32."""
    if dtype != "bfloat16":
        return values.astype(np.float32, copy=False)
    bits = values.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def narrow(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """float32 → ``dtype`` as STORED has it, rounded to nearest, half to even. What is too large becomes
    infinite, as IEEE 754 has it; what is not a number stays so."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return values.astype(STORED[dtype], copy=False)
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += bits
    rounded += 0x7FFF
    rounded >>= 16
    narrowed = rounded.astype(np.uint16)
    if np.isnan(values).any():
        narrowed[np.isnan(values)] = 0x7FC0
    return narrowed
