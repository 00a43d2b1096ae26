"""Matrices quantized by GPTQ and AWQ: ``X.qweight``, ``X.qzeros`` and ``X.scales`` in the place of
``X.weight``. A value is ``(q - zero) * scale``.

All three lie transposed, with a column for each row of the matrix. GPTQ packs the integers of a row into
words of 32 bits, one below the other; AWQ, and both for zero points, those of neighbouring rows, and AWQ in
an order of its own. GPTQ's ``X.g_idx`` tells the group of each column. In its first version zero points are
stored less one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....swarm.errors import CheckpointError
from ..qtypes import DENSE, MIXED, ZEROS, Quantization, Scheme, integer_qtype
from ..raw_tensor import RawTensor
from ..tensors import TensorInfo, TensorSource
from .parts import Parts, sibling
from .scales import whole_integers
from .tensor import Integers, column_floats, quantized, unpacked, words

_BITS = (2, 3, 4, 8)
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
"""A word of integers of so many bits that are all 1."""
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which four bits of a word hold row 0, 1, … of eight."""


@dataclass(frozen=True, slots=True)
class Gptq:
    """A ``Format``."""

    settings: Quantization

    def stored(self, name: str) -> tuple[str, ...]:
        return tuple(sibling(name, part) for part in ("qweight", "qzeros", "scales", "g_idx", "bias"))

    def found(self, parts: Parts) -> TensorInfo | None:
        packed_name, zeros_name, scales_name, index_name, _ = self.stored(parts.name)
        packed, index = parts.get(packed_name), parts.get(index_name)
        if packed is None:
            return None
        zeros, scales = parts.need(zeros_name, packed_name), parts.need(scales_name, packed_name)
        rows, cols = parts.rows, parts.cols
        whole = (bits for bits in _BITS if cols * bits % 32 == 0)
        bits = next((bits for bits in whole if packed.shape == (cols * bits // 32, rows)), 0)
        group = _group(parts, packed, zeros, scales, bits)
        if not bits or group is None or not may_tell_groups(index, cols):
            raise parts.misfit(packed, zeros, scales, index)
        end = MIXED if self.settings.mixed else "" if bits < 8 or self.settings.symmetric else ZEROS
        qtype = integer_qtype(bits, group, end)
        return parts.matrix(qtype, packed, zeros, scales, index, scheme=Scheme(bits, group))

    def tensor(self, info: TensorInfo, source: TensorSource) -> RawTensor:
        names = self.stored(info.name)
        packed, zeros, scales = map(source.tensor, names[:3])
        rows, cols = info.shape
        bits, groups = packed.shape[0] * 32 // cols, scales.shape[0]
        stored = words(packed)
        group_of = groups_of_columns(names[3], source, groups, info)
        zero = self._zeros(words(zeros), bits, rows).T.astype(np.int16)
        numbers = Integers(
            *(bits, cols // groups, lambda some: _turned(stored, some)),
            scale=column_floats(scales),
            zero=zero,
            group_of=group_of,
        )
        end = MIXED if group_of is not None else ZEROS if bits == 8 and (zero != 128).any() else ""
        qtype = integer_qtype(bits, cols // groups if groups > 1 else 0, end)
        return quantized(info.name, info.shape, qtype, numbers, packed)

    def _zeros(self, stored: np.ndarray, bits: int, rows: int) -> np.ndarray:
        """uint8 (groups, rows). The first version's writers take one from each, word by word, so that it may
        borrow from the next."""
        offset = self.settings.zero_offset
        if bits in _ONES:
            return unpacked((stored + np.uint32(offset * _ONES[bits])).view(np.uint8), bits, rows)
        return unpacked(stored.view(np.uint8), bits, rows) + np.uint8(offset) & (1 << bits) - 1


class Awq:
    """A ``Format``: of AWQ's gemm version."""

    def stored(self, name: str) -> tuple[str, ...]:
        return tuple(sibling(name, part) for part in ("qweight", "qzeros", "scales", "bias"))

    def found(self, parts: Parts) -> TensorInfo | None:
        packed_name, zeros_name, scales_name, _ = self.stored(parts.name)
        packed = parts.get(packed_name)
        if packed is None:
            return None
        zeros, scales = parts.need(zeros_name, packed_name), parts.need(scales_name, packed_name)
        group = _group(parts, packed, zeros, scales, 4)
        if group is None or parts.rows % 8 or packed.shape != (parts.cols, parts.rows // 8):
            raise parts.misfit(packed, zeros, scales)
        qtype = integer_qtype(4, group)
        return parts.matrix(qtype, packed, zeros, scales, scheme=Scheme(4, group))

    def tensor(self, info: TensorInfo, source: TensorSource) -> RawTensor:
        packed, zeros, scales = map(source.tensor, self.stored(info.name)[:3])
        rows, cols = info.shape
        stored = words(packed)

        def nibbles(some: np.ndarray) -> np.ndarray:
            q = _awq(stored, some)
            return q[:, ::2] | q[:, 1::2] << 4

        zero = _awq(words(zeros), np.arange(rows)).astype(np.int16)
        numbers = Integers(4, cols // scales.shape[0], nibbles, column_floats(scales), zero)
        return quantized(info.name, info.shape, info.qtype, numbers, packed)


def _group(parts: Parts, packed: TensorInfo, zeros: TensorInfo, scales: TensorInfo, bits: int) -> int | None:
    """Columns that share a scale, 0 for all; None where zero points and scales do not fit the matrix."""
    rows, groups = parts.rows, scales.shape[0] if scales.shape else 0
    sound = (
        packed.qtype == zeros.qtype == "I32"
        and scales.qtype in DENSE
        and len(parts.shape) == 2
        and scales.shape == (groups, rows)
        and zeros.shape == (groups, -(-rows * bits // 32))
        and groups > 0
        and parts.cols % groups == 0
    )
    if not sound:
        return None
    return parts.cols // groups if groups > 1 else 0


def _awq(stored: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Words (n, all rows / 8) → the integers of ``rows``, uint8 (rows, n)."""
    which, at = np.unique(rows // 8, return_inverse=True)
    turned = _turned(stored, which)  # four bytes of a word, two integers in each
    q = np.empty((len(which), 8, len(stored)), np.uint8)
    for row, place in enumerate(_AWQ_PLACES):
        q[:, row] = turned[:, place // 2 :: 4] >> 4 * (place % 2) & 15
    return q[at, rows % 8]


def _turned(stored: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Words (n, all rows) → uint8 (rows, 4 n)."""
    return np.ascontiguousarray(stored[:, rows].T).view(np.uint8)


def may_tell_groups(index: TensorInfo | None, cols: int) -> bool:
    """Whether a tensor, if there is one, can be the numbers of the groups of ``cols`` columns."""
    return index is None or (index.qtype in ("I32", "I64") and index.shape == (cols,))


def groups_of_columns(name: str, source: TensorSource, groups: int, info: TensorInfo) -> np.ndarray | None:
    """The group of each column, by tensor ``name``; None where there is no such, or groups are neighbours."""
    if name not in source.manifest:
        return None
    index = source.tensor(name)
    found = whole_integers(index)
    if found.min() < 0 or found.max() >= groups:
        raise CheckpointError(
            f"tensor {index.name} names group {found.min() if found.min() < 0 else found.max()}, "
            f"but {info.name} has {groups}",
            hint="The file is damaged: download it again.",
        )
    in_order = np.array_equal(found, np.arange(len(found)) // (len(found) // groups))
    return None if in_order else found
