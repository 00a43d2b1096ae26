"""Weights to integers: what the packed kernels hold, made from files' own groups or by rounding.

Scales made here are bfloat16 values from the start, because the packed CPU kernels take bfloat16 scales: the
rounding of a scale is then part of the choice of integers and costs nothing afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..formats.dequantize import INTEGER_QTYPES, integer_rows
from ..formats.floats import narrow, widen
from ..formats.qtypes import (
    AFFINE_BITS,
    AFFINE_GROUPS,
    CODE_BLOCKS,
    FLOAT8,
    INTEGER_BITS,
    INTEGERS,
    ZEROS,
    affine_qtype,
    code_qtype,
    integer_qtype,
)
from ..formats.quantized.codes import E2M1, Codes
from ..formats.quantized.float8 import E4M3, Float8
from ..formats.quantized.tensor import IntegerGroups, QuantizedTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.raw_tensor import RawTensor

    Floats = NDArray[np.float32]

GROUP = 32
"""This many values share a scale in int4, as in GGUF's Q4_0 and Q4_1."""
_LARGEST = 0x7E
"""The largest float of type e4m3fn: 448."""
_NOT_NUMBERS = (b"\x7f", b"\xff")
_AT_ONCE = 1 << 20
"""As many values of a file are looked at or taken apart at a time."""
_TWICE_E2M1 = (2 * E2M1).astype(np.int8)
_TINY = np.float32(2.0**-126)
"""The smallest normal number of bfloat16, and of float32."""


_PACKED = tuple(
    (bits, integer_qtype(bits, group)) for bits, group, _ in INTEGERS.values() if group % GROUP == 0
)
"""Bits and types of integers that quantizers of HuggingFace checkpoints write."""
_AFFINE = tuple(
    (bits, affine_qtype(bits, group, wide))
    for bits in AFFINE_BITS
    for group in AFFINE_GROUPS
    for wide in (False, True)
)
"""The same of those that MLX writes, with a minimum."""


INT4_SOURCES = (
    *("Q4_0", "Q4_1", "Q4_K"),
    *(qtype for bits, qtype in _AFFINE if bits <= 4),
    *dict.fromkeys(qtype for bits, qtype in _PACKED if bits <= 4),
)
"""File types that are integers of up to four bits with scale and minimum for 32 of them or more:
``file_groups``."""


HALVED_INT8 = (
    *("IQ2_XS", "IQ2_S", "IQ1_M", "NVFP4"),
    code_qtype("E2M1", GROUP // 2),
    *(integer_qtype(bits, GROUP // 2) for bits in INTEGER_BITS),
)
"""File types whose values are a scale for 16 columns times integers of up to eight bits."""


INT8_SOURCES = (
    *("Q8_0", "Q5_0"),
    *(qtype for qtype in INTEGER_QTYPES if qtype not in HALVED_INT8),
    *dict.fromkeys(qtype for bits, qtype in _PACKED if bits > 4),
    *(code_qtype("E2M1", block) for block in CODE_BLOCKS if block % GROUP == 0),
)
"""File types that are integers of up to eight bits with a scale for 32 or more: ``file_int8_groups``."""


UNSIGNED_INT8 = (
    *(qtype for bits, qtype in _AFFINE if bits > 4),
    *(qtype for qtype, (_, group, _) in INTEGERS.items() if qtype.endswith(ZEROS) and group % GROUP == 0),
)
"""File types that are integers of up to eight bits with a minimum or a zero point, which our kernels alone
hold."""


SHARED_SCALES = frozenset(qtype for _, qtype in (*_PACKED, *_AFFINE)) | frozenset(UNSIGNED_INT8)
"""File types whose integers and scales ``file_integers`` gives, the scales for 32 columns or more."""


FLOAT8_SOURCES = tuple(qtype for qtype, (_, group, _) in FLOAT8.items() if group % GROUP == 0)
"""File types that are floats of eight bits with a scale for 32 columns or more: ``file_float8``."""


KEPT_NUMBERS = {
    "int2": ("Q2_K",),
    "int3": ("Q3_K",),
    "int4": (*INT4_SOURCES, "MXFP4", "IQ4_NL", "IQ4_XS"),
    "int5": ("Q5_0", "Q5_1", "Q5_K"),
    "int6": ("Q6_K",),
    "int8": (*(qtype for qtype in INT8_SOURCES if qtype != "Q5_0"), *HALVED_INT8, *UNSIGNED_INT8),
    "float8": FLOAT8_SOURCES,
}
"""The file types whose numbers our kernels hold as they are, by ``LoadPlan.form``."""
OWN_FORM = {qtype: form for form, qtypes in KEPT_NUMBERS.items() for qtype in qtypes}
"""The same by file type."""


class Int4Groups(NamedTuple):
    """``weight = q * scale + minimum``. ``q`` uint8 0..15 (rows, cols), others float32 (rows, cols // 32)."""

    q: NDArray[np.uint8]
    scale: Floats
    minimum: Floats

    def dequantize(self) -> Floats:
        """(rows, cols) float32."""
        grouped = _grouped(self.q).astype(np.float32)
        grouped *= self.scale[..., None]
        grouped += self.minimum[..., None]
        return grouped.reshape(self.q.shape)


class Int8Rows(NamedTuple):
    """``weight = q * scale``. ``q`` int8 (rows, cols), ``scale`` float32 (rows,), exact in bfloat16."""

    q: NDArray[np.int8]
    scale: Floats

    def dequantize(self) -> Floats:
        """(rows, cols) float32."""
        return self.q.astype(np.float32) * self.scale[:, None]


class Int8Groups(NamedTuple):
    """``weight = q * scale``. ``q`` int8 (rows, cols), ``scale`` float32 (rows, cols // 32 or // 16)."""

    q: NDArray[np.int8]
    scale: Floats

    def dequantize(self) -> Floats:
        """(rows, cols) float32."""
        grouped = self.q.reshape(*self.scale.shape, -1).astype(np.float32)
        grouped *= self.scale[..., None]
        return grouped.reshape(self.q.shape)


class Float8Rows(NamedTuple):
    """``weight = float * scale``. ``q`` uint8 (rows, cols), floats of type e4m3fn that are numbers. ``scale``
    float32 (rows, groups), each for ``group`` columns: a multiple of 32, or all; the last may be shorter."""

    q: NDArray[np.uint8]
    scale: Floats
    group: int

    def dequantize(self) -> Floats:
        """(rows, cols) float32."""
        values: Floats = E4M3[self.q]
        values *= self.scale.repeat(self.group, 1)[:, : values.shape[1]]
        return values


@np.errstate(all="ignore")
def to_int4(weight: Floats) -> Int4Groups:
    """Round to nearest between each group's minimum and maximum. ``weight`` (rows, cols) float32,
    cols % 32 == 0."""
    groups = _grouped(weight)
    low, high = groups.min(-1), groups.max(-1)
    scale = np.maximum(_bf16((high - low) / 15), _TINY)
    # The kernel's form is (q - 8) * scale + centre, with a bfloat16 centre.
    centre = _bf16(low + 8 * scale)
    q = groups - centre[..., None]
    q /= scale[..., None]
    np.rint(q, out=q)
    q += 8
    return Int4Groups(q.clip(0, 15, out=q).astype(np.uint8).reshape(weight.shape), scale, centre - 8 * scale)


def as_torch_holds(groups: Int4Groups) -> Int4Groups:
    """``groups`` with the scales and centres of torch's packed kernel, which are bfloat16."""
    scale = _bf16(groups.scale)
    return Int4Groups(groups.q, scale, _bf16(groups.minimum + 8 * groups.scale) - 8 * scale)


@np.errstate(all="ignore")
def to_int8(weight: Floats) -> Int8Rows:
    """Round to nearest, symmetric, one scale a row. ``weight`` (rows, cols) float32."""
    largest = np.abs(weight).max(-1)
    scale = _bf16(largest / 127)
    # Rounding to nearest may land up to 2**-9 short, which would clip the row's largest values.
    scale = np.where(scale * 127 < largest, _bf16(scale * np.float32(1 + 2.0**-7)), scale)
    scale = np.maximum(scale, _TINY)
    q = weight / scale[:, None]
    return Int8Rows(np.rint(q, out=q).clip(-127, 127, out=q).astype(np.int8), scale)


@np.errstate(all="ignore")
def to_int8_groups(weight: Floats) -> Int8Groups:
    """Round to nearest, symmetric, float16 scales: as GGUF's Q8_0. ``weight`` as for ``to_int4``."""
    groups = _grouped(weight)
    scale = widen(narrow(np.abs(groups).max(-1) / 127, "float16"), "float16")
    # A group too small for float16 becomes zeros, one whose scale was rounded down keeps 127 for its largest.
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    q = groups * inverse[..., None]
    np.rint(q, out=q)
    return Int8Groups(q.clip(-127, 127, out=q).astype(np.int8).reshape(weight.shape), scale)


def _grouped(x: NDArray[Any]) -> NDArray[Any]:
    """(rows, cols) → (rows, groups, GROUP)."""
    rows, cols = x.shape
    if cols % GROUP:
        raise ValueError(f"{cols} columns do not divide into groups of {GROUP}")
    return x.reshape(rows, cols // GROUP, GROUP)


def _bf16(x: Floats) -> Floats:
    return widen(narrow(x, "bfloat16"), "bfloat16")


def file_groups(raw: RawTensor) -> Int4Groups:
    """The file's own integers and scales, for a ``raw`` matrix whose ``qtype`` is in INT4_SOURCES."""
    if isinstance(raw, QuantizedTensor):
        q, scale, minimum, _ = file_integers(raw, 4)
        times = raw.cols // GROUP // scale.shape[1]
        return Int4Groups(q, scale.repeat(times, 1), minimum.repeat(times, 1))
    if raw.qtype == "Q4_K":
        return q4_k_groups(raw.data)
    return Int4Groups(*raw.blocks())


def file_integers(raw: RawTensor, bits: int) -> IntegerGroups:
    """The file's own integers, moved so that ``bits`` have their zero in the middle where the file has fewer
    and zero points; for a ``raw`` matrix in SHARED_SCALES."""
    if not (isinstance(raw, QuantizedTensor) and raw.integers is not None):
        raise ValueError(f"tensor {raw.name} is {raw.qtype}, not integers in groups")
    q, scale, minimum, zero = raw.groups()
    if zero is not None and raw.integers.bits < bits:
        middle = 1 << bits - 1
        q = q + (middle - zero).astype(np.uint8).repeat(raw.cols // zero.shape[1], 1)
        zero, minimum = np.full_like(zero, middle), scale * np.float32(-middle)
    return IntegerGroups(q, scale, minimum, zero)


def file_int8_groups(raw: RawTensor) -> Int8Groups:
    """The file's own integers and scales, for a ``raw`` matrix in INT8_SOURCES or HALVED_INT8."""
    if isinstance(raw, QuantizedTensor):
        q, scale = _integers(raw)
        groups = raw.cols // (GROUP // 2 if raw.qtype in HALVED_INT8 else GROUP)
        return Int8Groups(q, scale.repeat(groups // scale.shape[1], 1))
    if raw.qtype == "Q5_0":
        return q5_0_groups(raw.data)
    if raw.qtype in INTEGER_QTYPES:
        return _of_integers(raw)
    q, scale, _ = raw.blocks()
    return Int8Groups(q, scale)


def _integers(raw: QuantizedTensor) -> tuple[NDArray[np.int8], Floats]:
    """With a scale for each of the file's groups."""
    if isinstance(raw.numbers, Codes):
        scale = raw.numbers.scale(raw.taken, raw.cols) / np.float32(2)
        raw.check_finite(scale * _TWICE_E2M1.max())
        return _TWICE_E2M1[raw.numbers.codes(raw.taken, raw.cols)], scale
    unsigned, scale, _, zero = raw.groups()
    at_zero = np.int16(0) if zero is None else zero.repeat(raw.cols // zero.shape[1], 1)
    return (unsigned - at_zero).astype(np.int8), scale


def _of_integers(raw: RawTensor) -> Int8Groups:
    """Some rows at a time, as what a type's integers are made from takes several times their memory."""
    rows, cols = raw.shape
    data, groups = raw.data, cols // (GROUP // 2 if raw.qtype in HALVED_INT8 else GROUP)
    q, scale = np.empty((rows, cols), np.int8), np.empty((rows, groups), np.float32)
    step = max(1, _AT_ONCE // max(1, cols))
    for start in range(0, rows, step):
        some = slice(start, start + step)
        q[some], factors = integer_rows(data[some], raw.qtype)
        scale[some] = factors.repeat(groups // factors.shape[1], 1)
    return Int8Groups(q, scale)


def file_float8(raw: RawTensor) -> Float8Rows:
    """The file's own floats and scales, for a ``raw`` matrix in FLOAT8_SOURCES. CheckpointError where a
    weight is not a finite number."""
    if not (isinstance(raw, QuantizedTensor) and isinstance(raw.numbers, Float8)):
        raise ValueError(f"tensor {raw.name} is {raw.qtype}, not floats of eight bits")
    q, scale = raw.numbers.stored[raw.taken], raw.numbers.scale(raw.taken)
    raw.check_finite(scale * E4M3[_LARGEST])
    step = max(1, _AT_ONCE // max(1, raw.cols))
    for start in range(0, len(q), step):
        piece = q[start : start + step].tobytes()
        if any(byte in piece for byte in _NOT_NUMBERS):
            raw.check_finite(E4M3[q[start : start + step]])
    return Float8Rows(q, scale, raw.numbers.group or raw.cols)


def q5_0_groups(data: np.ndarray) -> Int8Groups:
    """Q5_0 rows, uint8 (rows, bytes), taken apart (layout: ``block_q5_0`` of ggml): a float16 scale, the
    fifth bits of 32 integers, and their lower four; 16 stands for 0."""
    rows = data.shape[0]
    groups = np.ascontiguousarray(data).reshape(rows, -1, 22)
    scale = np.ascontiguousarray(groups[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    high = np.unpackbits(groups[..., 2:6], axis=-1, bitorder="little")
    low = np.concatenate((groups[..., 6:] & 15, groups[..., 6:] >> 4), -1)
    q = (low | high << 4).view(np.int8) - np.int8(16)
    return Int8Groups(q.reshape(rows, -1), scale)


def q4_k_groups(data: np.ndarray) -> Int4Groups:
    """Q4_K rows, uint8 (rows, bytes), taken apart (layout: ``block_q4_K`` of ggml).

    A super-block of 256 values has 8 groups of 32, with 6-bit scales and minima times a float16 each; their
    products are exact in float32.
    """
    rows = data.shape[0]
    blocks = np.ascontiguousarray(data).reshape(rows, -1, 144)
    count = blocks.shape[1]
    factors = np.ascontiguousarray(blocks[..., :4]).view(np.float16).astype(np.float32)  # (rows, blocks, 2)
    packed = blocks[..., 4:16].reshape(
        rows, count, 3, 4
    )  # four scales, four minima, their upper and lower rests
    first, second, rest = packed[:, :, 0], packed[:, :, 1], packed[:, :, 2]
    scale = np.concatenate((first & 63, (rest & 15) | (first >> 6 << 4)), -1).astype(np.float32)
    minimum = np.concatenate((second & 63, (rest >> 4) | (second >> 6 << 4)), -1).astype(np.float32)
    nibbles = blocks[..., 16:].reshape(rows, count, 4, 1, 32)
    q = np.concatenate((nibbles & 15, nibbles >> 4), axis=3)  # (rows, blocks, 4, 2, 32): groups in order
    return Int4Groups(
        q.reshape(rows, -1),
        (scale * factors[..., :1]).reshape(rows, -1),
        (minimum * -factors[..., 1:]).reshape(rows, -1),
    )
