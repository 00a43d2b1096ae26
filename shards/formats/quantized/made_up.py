"""Matrices of any of our types with numbers that mean nothing, for measuring what a machine can do."""

from __future__ import annotations

import numpy as np

from ..qtypes import CODES, E5M2_FLOAT8, FLOAT8, INTEGERS, MIXED, groups_of
from ..tensors import TensorInfo
from .codes import E2M1, Codes
from .float8 import E4M3, E5M2, Float8
from .scales import Scales
from .tensor import Integers, Numbers, QuantizedTensor, quantized, unpacked

_SCALE = np.float32(0.01)


def made_up(info: TensorInfo, stored: np.ndarray) -> QuantizedTensor:
    """``stored`` uint8 (rows, bytes of a row): its first bytes are the numbers, and all scales are equal."""
    cols = info.shape[-1]
    numbers: Numbers
    if info.qtype in INTEGERS:
        bits, group, _ = INTEGERS[info.qtype]
        group = group or cols
        columns = np.arange(cols) // group if info.qtype.endswith(MIXED) else None
        scales = _scales(len(stored), cols // group)
        numbers = Integers(bits, group, lambda some: stored[some], scales, 1 << bits - 1, group_of=columns)
    elif (found := FLOAT8.get(info.qtype) or E5M2_FLOAT8.get(info.qtype)) is not None:
        scales = _scales(len(stored), groups_of(cols, found.group))
        numbers = Float8(stored[:, :cols], scales, found.group, E4M3 if info.qtype in FLOAT8 else E5M2)
    else:
        groups = groups_of(cols, CODES[info.qtype].group)
        scales = _scales(len(stored), groups if cols % groups == 0 else 1)
        numbers = Codes(
            E2M1, lambda some, cols: unpacked(stored[some], 4, cols), lambda some, _: scales(some)
        )
    return quantized(info.name, info.shape, info.qtype, numbers, None)


def _scales(rows: int, groups: int) -> Scales:
    return Scales(np.full((rows, groups), _SCALE), 1, rows)
