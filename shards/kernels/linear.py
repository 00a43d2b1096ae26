"""Linears for the C kernels (``csrc/linear*.c``): weights packed once, products in float32.

Integer weights keep the file's own groups and scales. Activations are not rounded to bfloat16, as torch's
packed kernels do, but to fixed point of one to three bytes (``ActivationPrecision``). A row of the output has
the same bits in any batch, on any thread and any CPU.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..formats.floats import narrow, widen
from ..formats.qtypes import row_bytes
from ..formats.raw_tensor import RawTensor, check_exponents
from ..layers.memory import lasting_zeros, zeros
from ..layers.quantize import GROUP, Float8Rows, Int4Groups, Int8Groups
from .library import address, library

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.quantized.tensor import IntegerGroups

TILE = 32
"""A kernel computes this many output rows together: packed rows are padded to a multiple of it."""
BLOCK_ROWS = 64
"""This many input rows are prepared at a time, so that scratch memory does not grow with the batch."""

_F32, _F16, _BF16, _INT, _STACK, _FLOAT8 = range(6)
_BASE = 15
"""The mask of the above in a kind: see ``csrc/sn.h``."""
_SCALES = {"float32": 0 << 4, "float16": 1 << 4, "bfloat16": 2 << 4}
_K, _K4 = 3 << 4, 4 << 4
_HALVES, _MINIMUM, _CENTRED = 1 << 7, 1 << 8, 1 << 9
_FP4, _IQ4, _ZERO = 1 << 10, 2 << 10, 3 << 10
_BIT, _BITS = 1 << 12, 15 << 12
_COLS = 1 << 16
_DENSE_FORMS = ("float32", "float16", "bfloat16")
_DENSE_KINDS = {"f": _F32, "e": _F16, "H": _BF16}
"""By the character of numpy's type, which is uint16 for the bits of bfloat16."""
_INT8 = _INT | 8 * _BIT | _CENTRED
_INT4 = _INT | 4 * _BIT
_FILE_KINDS = {"F32": _F32, "F16": _F16, "BF16": _BF16} | {
    name: _INT | kind
    for name, kind in {
        "Q8_0": 8 * _BIT | _SCALES["float16"] | _CENTRED,
        "Q5_0": 5 * _BIT | _SCALES["float16"] | _CENTRED,
        "Q5_1": 5 * _BIT | _SCALES["float16"] | _MINIMUM,
        "Q4_0": 4 * _BIT | _SCALES["float16"] | _CENTRED,
        "Q4_1": 4 * _BIT | _SCALES["float16"] | _MINIMUM,
        "IQ4_NL": 4 * _BIT | _SCALES["float16"] | _IQ4,
        "MXFP4": 4 * _BIT | _SCALES["bfloat16"] | _FP4,
        "Q6_K": 6 * _BIT | _K | _CENTRED | _HALVES,
        "Q5_K": 5 * _BIT | _K | _MINIMUM,
        "Q4_K": 4 * _BIT | _K | _MINIMUM,
        "IQ4_XS": 4 * _BIT | _K | _IQ4,
        "Q3_K": 3 * _BIT | _K | _CENTRED | _HALVES,
        "Q2_K": 2 * _BIT | _K4 | _MINIMUM | _HALVES,
    }.items()
}
"""The kinds that GGUF's types are packed as by moving their bytes: see ``sn_pack_file``."""
_MOST_SHARING = (1 << 15) - 1
"""As many groups may share a scale: what the bits of a kind hold."""
_MOST_PARTS = 4
"""``SN_MOST_PARTS``: as many matrices as are ever stacked (q, k, v and a gate)."""


class ActivationPrecision(IntEnum):
    """Bytes of a fixed-point activation; errors are relative to the largest of its group of 32."""

    FAST = 1  # 2**-8
    CLOSE = 2  # 2**-16
    EXACT = 3  # 2**-24: as float32 sums


class SnPart(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("rows", ctypes.c_int32))


class SnLinear(ctypes.Structure):
    """``sn_linear`` of ``csrc/sn.h``."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("variant", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("parts", SnPart * _MOST_PARTS),
    )


class NativeLinear:
    """``struct``: what C code takes; valid for as long as this object lives. For any thread."""

    def __init__(
        self, struct: SnLinear, weights: NDArray[np.uint8], bias: NDArray[np.float32] | None
    ) -> None:
        self.weights = weights
        self._bias = None if bias is None else padded_bias(bias)
        struct.weights = address(weights)
        struct.bias = None if self._bias is None else address(self._bias)
        self.struct = struct
        self.nbytes: int = weights.nbytes

    @property
    def is_int8(self) -> bool:
        return bool(self.struct.kind & (_BASE | _BITS) == _INT8 & (_BASE | _BITS))

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """``x`` (T, in) float32 → (T, out) float32."""
        rows, cols = x.shape
        if cols != self.struct.cols or x.dtype != np.float32:
            raise ValueError(f"{x.shape} of {x.dtype} times a matrix of {self.struct.cols} columns")
        x = np.ascontiguousarray(x)
        out = np.empty((rows, self.struct.rows), np.float32)
        kernels = _kernels()
        scratch = _scratch.take(kernels.sn_linear_scratch(self.struct, min(rows, BLOCK_ROWS)))
        kernels.sn_linear_forward(
            self.struct, address(x), cols, rows, address(out), out.shape[1], 0, address(scratch)
        )
        return out


def padded_bias(bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """As kernels read it: with zeros up to the end of a last tile."""
    return np.concatenate((bias, np.zeros(TILE, np.float32)))


def file_form(qtype: str) -> str | None:
    """The form (``LoadPlan.form``) that a type is held in by moving the file's bytes alone; None: by none."""
    kind = _FILE_KINDS.get(qtype)
    if kind is None:
        return None
    return _DENSE_FORMS[kind] if kind & _BASE != _INT else f"int{(kind & _BITS) // _BIT}"


def file_struct(raws: Sequence[RawTensor], precision: ActivationPrecision) -> SnLinear:
    """One linear of the rows of all ``raws`` (equal columns), each of a type that has a ``file_form``."""
    if any(raw.cols != raws[0].cols for raw in raws):
        raise ValueError("the parts of a linear differ in columns")
    return _stack([(_FILE_KINDS[raw.qtype], raw.shape[0]) for raw in raws], raws[0].cols, precision)


def native_file(
    raws: Sequence[RawTensor], bias: NDArray[np.float32] | None, precision: ActivationPrecision
) -> NativeLinear:
    """The same with its weights: exactly those of the file, in about as many bits as there."""
    if any(raw.stored.shape != (raw.shape[0], row_bytes(raw.qtype, raw.cols)) for raw in raws):
        raise ValueError("rows of a linear are not of its columns")
    struct = file_struct(raws, precision)
    packed = _memory(struct)
    row = 0
    for raw in raws:
        check_exponents(raw.name, raw.qtype, raw.stored)
        _pack_rows(struct, row, raw.stored, raw.row_order, raw.name, packed)
        row += len(raw.stored)
    return NativeLinear(struct, packed, bias)


def native_stack(linears: Sequence[NativeLinear], bias: NDArray[np.float32] | None) -> NativeLinear:
    """One linear of the rows of all (equal columns), whose own biases do not count. Copies the weights of
    several."""
    first = linears[0].struct
    if len(linears) == 1:
        return NativeLinear(first, linears[0].weights, bias)
    if any(linear.struct.cols != first.cols for linear in linears):
        raise ValueError("the parts of a linear differ in columns")
    parts = [part for linear in linears for part in _parts(linear.struct)]
    precision = max(linear.struct.variant for linear in linears)
    struct = _stack(parts, first.cols, precision, merge=False)
    packed = _memory(struct)
    np.concatenate([linear.weights for linear in linears], out=packed)
    return NativeLinear(struct, packed, bias)


def native_int4(
    parts: Sequence[Int4Groups], bias: NDArray[np.float32] | None, precision: ActivationPrecision
) -> NativeLinear:
    """One linear of the rows of all ``parts`` (equal columns), packed without loss."""
    scale_type, flags = _int4_form(parts)
    centred = flags == _CENTRED | _MINIMUM
    struct = _struct(_INT4 | _SCALES[scale_type] | flags, precision, [part.q for part in parts])
    packed = _memory(struct)
    row = 0
    for q, scale, minimum in parts:
        if centred:
            minimum = _centre(scale, minimum)
        _pack_int(struct, row, q, scale, minimum, packed)
        row += len(q)
    return NativeLinear(struct, packed, bias)


def native_int8(
    parts: Sequence[Int8Groups], bias: NDArray[np.float32] | None, precision: ActivationPrecision
) -> NativeLinear:
    """One linear of the rows of all ``parts`` (equal columns and groups), packed without loss."""
    groups = {part.q.shape[1] // part.scale.shape[1] for part in parts}
    if groups not in ({GROUP}, {GROUP // 2}):
        raise ValueError(f"groups of {sorted(groups)} columns")
    kind = _INT8 | _SCALES[_narrowest(part.scale for part in parts)] | (0 if groups == {GROUP} else _HALVES)
    struct = _struct(kind, precision, [part.q for part in parts])
    packed = _memory(struct)
    row = 0
    for q, scale in parts:
        _pack_int(struct, row, q.view(np.uint8), scale, None, packed)
        row += len(q)
    return NativeLinear(struct, packed, bias)


def native_integers(
    parts: Sequence[IntegerGroups],
    bits: int,
    bias: NDArray[np.float32] | None,
    precision: ActivationPrecision,
) -> NativeLinear:
    """One linear of the rows of all ``parts`` (equal columns; all with zero points, or none), packed without
    loss: integers of 4 or 8 ``bits``, and scales for as many columns as in the finest."""
    cols = parts[0].q.shape[1]
    group = math.gcd(*(cols // part.scale.shape[1] for part in parts))
    if group % GROUP:
        raise ValueError(f"groups of {group} columns")
    if group // GROUP > _MOST_SHARING:
        group = GROUP
    middle = 1 << bits - 1
    kind = _INT | bits * _BIT | group // GROUP * _COLS
    if any(part.zero is None for part in parts):
        kind |= (
            _MINIMUM | _SCALES[_narrowest(array for part in parts for array in (part.scale, part.minimum))]
        )
    else:
        centred = all(np.all(part.zero == middle) for part in parts)
        kind |= (_CENTRED if centred else _ZERO) | _SCALES[_narrowest(part.scale for part in parts)]
    struct = _struct(kind, precision, [part.q for part in parts])
    packed = _memory(struct)
    row = 0
    for q, scale, minimum, zero in parts:
        each = cols // group // scale.shape[1]
        if kind & _CENTRED and bits == 8:
            q = q ^ np.uint8(middle)
        _pack_int(
            *(struct, row, q, scale.repeat(each, 1), minimum.repeat(each, 1), packed),
            None if zero is None else zero.astype(np.uint8).repeat(each, 1),
        )
        row += len(q)
    return NativeLinear(struct, packed, bias)


def native_int8_pieces(
    pieces: Iterable[Int8Groups],
    rows: int,
    cols: int,
    bias: NDArray[np.float32] | None,
    precision: ActivationPrecision,
) -> NativeLinear:
    """One linear of ``rows`` that come in pieces, each packed when it comes, so that they are never held
    twice. Their scales are float16 values, as ``quantize.to_int8_groups`` makes them."""
    if cols % GROUP:
        raise ValueError(f"{cols} columns do not divide into groups of {GROUP}")
    struct = SnLinear(_INT8 | _SCALES["float16"], precision, rows, cols)
    packed = _memory(struct)
    row = 0
    for q, scale in pieces:
        if q.shape[1] != cols or row + len(q) > rows:
            raise ValueError(f"pieces {tuple(q.shape)} of {rows} rows of {cols} columns")
        _pack_int(struct, row, q.view(np.uint8), scale, None, packed)
        row += len(q)
    if row != rows:
        raise ValueError(f"{row} rows came of {rows}")
    return NativeLinear(struct, packed, bias)


def native_dense(parts: Sequence[NDArray[Any]], bias: NDArray[np.float32] | None) -> NativeLinear:
    """One linear of the rows of all ``parts`` (equal columns), all float32, float16 or bits of bfloat16."""
    struct = _struct(_DENSE_KINDS[parts[0].dtype.char], 0, parts)
    packed = _memory(struct)
    row = 0
    for part in parts:
        _pack_rows(struct, row, np.ascontiguousarray(part).view(np.uint8), None, "", packed)
        row += len(part)
    return NativeLinear(struct, packed, bias)


def native_float8(parts: Sequence[Float8Rows], bias: NDArray[np.float32] | None) -> NativeLinear:
    """One linear of the rows of all ``parts`` (equal columns), with the groups of the finest."""
    cols = parts[0].q.shape[1]
    whole = -(-cols // GROUP) * GROUP
    sizes = [part.group if part.group < cols else whole for part in parts]
    group = math.gcd(*sizes)
    if group % GROUP:
        raise ValueError(f"groups of {sizes} columns")
    groups = -(-cols // group)
    scales = [
        np.repeat(part.scale, size // group, axis=1)[:, :groups]
        for part, size in zip(parts, sizes, strict=True)
    ]
    kind = _FLOAT8 | _SCALES[_narrowest(scales)] | (0 if group == whole else group // GROUP * _COLS)
    struct = _struct(kind, 0, [part.q for part in parts])
    packed = _memory(struct)
    row = 0
    for part, scale in zip(parts, scales, strict=True):
        q, scale = np.ascontiguousarray(part.q, np.uint8), np.ascontiguousarray(scale, np.float32)
        if scale.shape != (len(q), groups):
            raise ValueError(f"{part.scale.shape} scales for {q.shape} floats in groups of {part.group}")
        _kernels().sn_pack_float8(struct, row, len(q), address(q), address(scale), address(packed))
        row += len(q)
    return NativeLinear(struct, packed, bias)


class _Scratch(threading.local):
    """Memory for prepared activations, one piece a thread."""

    def __init__(self) -> None:
        self._held = zeros(0, np.uint8)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        if nbytes > len(self._held):
            self._held = zeros(nbytes, np.uint8)
        return self._held


_scratch = _Scratch()


@cache
def _kernels() -> ctypes.CDLL:
    kernels = library()
    pointer, address, number = ctypes.POINTER(SnLinear), ctypes.c_void_p, ctypes.c_int64
    kernels.sn_linear_scratch.restype = kernels.sn_packed_bytes.restype = ctypes.c_int64
    kernels.sn_linear_scratch.argtypes = (pointer, number)
    kernels.sn_packed_bytes.argtypes = (pointer,)
    kernels.sn_linear_forward.restype = None
    kernels.sn_linear_forward.argtypes = (
        *(pointer, address, number, number),
        *(address, number, ctypes.c_int32, address),
    )
    kernels.sn_pack_int.restype = kernels.sn_pack_file.restype = kernels.sn_pack_float8.restype = None
    kernels.sn_pack_float8.argtypes = (pointer, number, number, address, address, address)
    kernels.sn_pack_int.argtypes = (pointer, number, number, *(address,) * 5)
    kernels.sn_pack_file.argtypes = (pointer, number, number, address, number, address, address)
    return kernels


def _struct(kind: int, precision: int, parts: Sequence[NDArray[Any]]) -> SnLinear:
    rows, cols = sum(len(part) for part in parts), parts[0].shape[1]
    if any(part.shape[1] != cols or part.dtype != parts[0].dtype for part in parts):
        raise ValueError("the parts of a linear differ in columns or type")
    if kind & _BASE == _INT and cols % GROUP:
        raise ValueError(f"{cols} columns do not divide into groups of {GROUP}")
    return SnLinear(kind, precision, rows, cols)


def _stack(parts: Sequence[tuple[int, int]], cols: int, precision: int, *, merge: bool = True) -> SnLinear:
    """A linear of (kind, rows), one below the other; ``merge``: those of one kind are one part."""
    kept: list[tuple[int, int]] = []
    for kind, rows in parts:
        if merge and kept and kept[-1][0] == kind:
            rows += kept.pop()[1]
        kept.append((kind, rows))
    precision = precision if any(kind & _BASE == _INT for kind, _ in kept) else 0
    total = sum(rows for _, rows in kept)
    if len(kept) == 1:
        return SnLinear(kept[0][0], precision, total, cols)
    if len(kept) > _MOST_PARTS:
        raise ValueError(f"{len(kept)} kinds of weights in one linear; there may be {_MOST_PARTS}")
    return SnLinear(
        _STACK, precision, total, cols, parts=(SnPart * _MOST_PARTS)(*(SnPart(*part) for part in kept))
    )


def _parts(struct: SnLinear) -> list[tuple[int, int]]:
    """Kind and rows of each."""
    if struct.kind != _STACK:
        return [(struct.kind, struct.rows)]
    return [(part.kind, part.rows) for part in struct.parts if part.rows]


def _pack_rows(
    struct: SnLinear,
    row: int,
    stored: np.ndarray,
    order: np.ndarray | None,
    name: str,
    packed: NDArray[np.uint8],
) -> None:
    """Rows of a file, uint8 (rows, bytes of a row), in ``order`` or as they lie, to ``row`` and below."""
    stored = np.ascontiguousarray(stored)
    if order is not None:
        order = np.ascontiguousarray(order, dtype=np.int64)
        if not (len(order) == len(stored) and 0 <= order.min() <= order.max() < len(stored)):
            raise ValueError(f"the row order of {name} is not one of its rows")
    _kernels().sn_pack_file(
        *(struct, row, len(stored), address(stored), stored.shape[1]),
        *(None if order is None else address(order), address(packed)),
    )


def _memory(struct: SnLinear) -> NDArray[np.uint8]:
    return lasting_zeros(_kernels().sn_packed_bytes(struct))


def _pack_int(
    struct: SnLinear,
    row: int,
    q: NDArray[np.uint8],
    scale: NDArray[np.float32],
    minimum: NDArray[np.float32] | None,
    packed: NDArray[np.uint8],
    zero: NDArray[np.uint8] | None = None,
) -> None:
    q, scale = np.ascontiguousarray(q), np.ascontiguousarray(scale, np.float32)
    minimum = None if minimum is None else np.ascontiguousarray(minimum, np.float32)
    _kernels().sn_pack_int(
        struct,
        *(row, len(q), address(q), address(scale)),
        *(None if minimum is None else address(minimum), None if zero is None else address(zero)),
        address(packed),
    )


def _int4_form(parts: Sequence[Int4Groups]) -> tuple[str, int]:
    """The fewest bytes that hold scales and minima exactly: their type, and flags of the kind."""
    if all(np.array_equal(part.minimum, -8 * part.scale) for part in parts):
        return _narrowest(part.scale for part in parts), _CENTRED
    plain = _narrowest(array for part in parts for array in part[1:])
    if plain == "float32":  # weights that we quantized: (q - 8) * scale + centre, both bfloat16
        centres = [_centre(part.scale, part.minimum) for part in parts]
        same = all(
            np.array_equal(centre - 8 * part.scale, part.minimum)
            for centre, part in zip(centres, parts, strict=True)
        )
        if same and _exact(centres, "bfloat16") and _exact((p.scale for p in parts), "bfloat16"):
            return "bfloat16", _CENTRED | _MINIMUM
    return plain, _MINIMUM


def _centre(scale: NDArray[np.float32], minimum: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ``quantize.to_int4`` made the minimum from; elsewhere an approximation that callers check."""
    return widen(narrow(minimum + 8 * scale, "bfloat16"), "bfloat16")


def _narrowest(arrays: Iterable[NDArray[np.float32]]) -> str:
    """The narrowest type that holds all values exactly."""
    held = list(arrays)
    return next((dtype for dtype in ("float16", "bfloat16") if _exact(held, dtype)), "float32")


def _exact(arrays: Iterable[NDArray[np.float32]], dtype: str) -> bool:
    return all(np.array_equal(widen(narrow(array, dtype), dtype), array) for array in arrays)
