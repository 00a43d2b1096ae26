"""A matrix that lies in several stored tensors: which of its rows are taken, and how they become numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from ..floats import STORED, widen
from ..qtypes import DENSE, row_bytes
from ..raw_tensor import RawTensor, not_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Rows = NDArray[np.int64]

_CHUNK_VALUES = 1 << 22
"""This many integers are unpacked at a time."""


class Numbers(Protocol):
    """What the stored tensors of a matrix of ``cols`` columns say. ``rows``: numbers of stored rows."""

    def values(self, rows: Rows, cols: int) -> Floats:
        """(rows, cols)"""
        ...


class IntegerGroups(NamedTuple):
    """``weight = q * scale + minimum``; and where ``zero`` is not None, ``(q - zero) * scale``.

    ``q`` uint8 (rows, cols), of as many bits as the type says; ``scale``, ``minimum`` float32 and ``zero``
    int16 (rows, groups)."""

    q: NDArray[np.uint8]
    scale: Floats
    minimum: Floats
    zero: NDArray[np.int16] | None


@dataclass(frozen=True, slots=True)
class Integers:
    """Integers of ``bits``, ``group`` columns with a scale. ``packed``: of stored rows, uint8 (rows, bytes);
    a row is one string of bits, the lowest of the first integer first. ``scale``: of stored rows, float32
    (rows, groups). ``zero``: which integer stands for 0, uint8 or int16 (all rows, groups), or one for all;
    or ``bias``: what is added, as ``scale``.

    ``group_of``: int64 (cols), where a group's columns are not neighbours.
    """

    bits: int
    group: int
    packed: Callable[[Rows], NDArray[np.uint8]]
    scale: Callable[[Rows], Floats]
    zero: NDArray[np.int16] | int = 0
    bias: Callable[[Rows], Floats] | None = None
    group_of: Rows | None = None

    def groups(self, rows: Rows, cols: int) -> IntegerGroups:
        q = np.empty((len(rows), cols), np.uint8)
        step = max(1, _CHUNK_VALUES // max(1, cols))
        for start in range(0, len(rows), step):
            q[start : start + step] = unpacked(self.packed(rows[start : start + step]), self.bits, cols)
        scale = self.scale(rows)
        if self.bias is not None:
            return IntegerGroups(q, scale, self.bias(rows), None)
        zero = np.broadcast_to(self.zero if isinstance(self.zero, int) else self.zero[rows], scale.shape)
        zero = zero.astype(np.int16)
        return IntegerGroups(q, scale, -zero.astype(np.float32) * scale, zero)

    def values(self, rows: Rows, cols: int) -> Floats:
        q, scale, minimum, zero = self.groups(rows, cols)
        if self.group_of is not None:
            zeros = 0 if zero is None else zero[:, self.group_of]
            return (q - zeros).astype(np.float32) * scale[:, self.group_of]
        grouped = q.reshape(len(q), scale.shape[1], -1).astype(np.float32)
        if zero is not None:
            grouped -= zero[..., None]
        grouped *= scale[..., None]
        if zero is None:
            grouped += minimum[..., None]
        return grouped.reshape(q.shape)


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor(RawTensor):
    """``taken``: which stored rows of the matrix these are, in order. ``stored`` is empty: a row's bytes do
    not lie together."""

    taken: Rows = field(kw_only=True)
    numbers: Numbers = field(kw_only=True)

    def part(self, name: str, shape: tuple[int, ...], rows: slice | np.ndarray) -> RawTensor:
        return replace(self, name=name, shape=shape, taken=self.taken[rows])

    def named(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        return replace(self, name=name, shape=shape)

    @property
    def nbytes(self) -> int:
        return len(self.taken) * row_bytes(self.qtype, self.cols)

    def values(self, rows: slice | np.ndarray) -> Floats:
        with np.errstate(all="ignore"):
            values = self.numbers.values(self.taken[rows], self.cols)
        self.check_finite(values)
        return values

    @property
    def integers(self) -> Integers | None:
        """Where that is what they are, in groups of neighbours."""
        numbers = self.numbers
        return numbers if isinstance(numbers, Integers) and numbers.group_of is None else None

    def groups(self) -> IntegerGroups:
        """Of all rows, where ``integers`` is not None."""
        integers = self._integers()
        with np.errstate(all="ignore"):
            groups = integers.groups(self.taken, self.cols)
            largest = np.abs(groups.scale) * np.float32(2**integers.bits) + np.abs(groups.minimum)
        self.check_finite(largest)
        return groups

    def packed(self) -> NDArray[np.uint8]:
        """(rows, cols * bits / 8) where ``integers`` is not None: ``Integers.packed`` of all rows."""
        integers = self._integers()
        return integers.packed(self.taken)[:, : self.cols * integers.bits // 8]

    def _integers(self) -> Integers:
        if self.integers is None:
            raise ValueError(f"tensor {self.name} is {self.qtype}, not integers in groups")
        return self.integers

    def check_finite(self, values: Floats) -> None:
        """CheckpointError where some of its values are not."""
        if not np.isfinite(values).all():
            raise not_finite(self.name)


def quantized(
    name: str, shape: tuple[int, ...], qtype: str, numbers: Numbers, stored: RawTensor | None
) -> QuantizedTensor:
    """The whole matrix, or stack of matrices. ``stored``: one of its tensors, where it is in a file."""
    taken = np.arange(prod(shape[:-1]))
    check = None if stored is None else stored.check
    return QuantizedTensor(name, shape, qtype, _NOTHING, check=check, taken=taken, numbers=numbers)


_NOTHING = np.empty((0, 0), np.uint8)


def unpacked(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """uint8 (..., bytes) → uint8 (..., count): the first integers of ``bits`` of each string of bits."""
    if bits == 8:
        return packed[..., :count]
    lead = packed.shape[:-1]
    if bits in (2, 4):
        parts = [packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
        return np.stack(parts, -1).reshape(*lead, -1)[..., :count]
    digits = np.unpackbits(packed, axis=-1, count=count * bits, bitorder="little")
    return np.packbits(digits.reshape(*lead, count, bits), axis=-1, bitorder="little")[..., 0]


def row_floats(raw: RawTensor) -> Callable[[Rows], Floats]:
    """Of a tensor with a row for each row of the matrix: ``Integers.scale``."""
    stored, dtype = raw.stored.reshape(raw.rows, -1), DENSE[raw.qtype]
    return lambda rows: widen(np.ascontiguousarray(stored[rows]).view(STORED[dtype]), dtype)


def column_floats(raw: RawTensor) -> Callable[[Rows], Floats]:
    """Of a tensor with a column for each row of the matrix."""
    stored, dtype = raw.stored.view(STORED[DENSE[raw.qtype]]), DENSE[raw.qtype]
    return lambda rows: widen(np.ascontiguousarray(stored[:, rows].T), dtype)


def words(raw: RawTensor) -> NDArray[np.uint32]:
    """A matrix of words of 32 bits."""
    found: NDArray[np.uint32] = raw.stored.view(np.uint32)
    return found


def signed_bytes(stored: NDArray[np.uint8]) -> Callable[[Rows], NDArray[np.uint8]]:
    """``Integers.packed`` of integers from -128 to 127, which begin at 0 then: 128 stands for 0."""
    return lambda rows: stored[rows] ^ np.uint8(128)
