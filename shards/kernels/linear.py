"""Linears for the C kernels (``csrc/linear*.c``): weights packed once, products in float32.

Integer weights keep the file's own groups and scales. Activations are not rounded to bfloat16, as torch's
packed kernels do, but to fixed point of one to three bytes (``ActivationPrecision``). A row of the output has
the same bits in any batch, on any thread and any CPU.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..formats.floats import narrow, widen
from ..formats.qtypes import DENSE, row_bytes
from ..layers.memory import lasting_zeros, zeros
from ..layers.quantize import GROUP, Int4Groups, Int8Groups
from .library import address, library

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.raw_tensor import RawTensor

TILE = 32
"""A kernel computes this many output rows together: packed rows are padded to a multiple of it."""
BLOCK_ROWS = 64
"""This many input rows are prepared at a time, so that scratch memory does not grow with the batch."""

_KIND_F32, _KIND_F16, _KIND_BF16, _KIND_INT8, _KIND_INT4, _KIND_INT6 = range(6)
_BASE = 15
"""The mask of the above in a kind."""
_FILE_KINDS = {
    "Q4_0": _KIND_INT4 | 1 << 4 | 1 << 6,
    "Q4_1": _KIND_INT4 | 1 << 4 | 1 << 7,
    "Q4_K": _KIND_INT4 | 3 << 4 | 1 << 7,
    "Q6_K": _KIND_INT6 | 3 << 4,
    "Q8_0": _KIND_INT8 | 1 << 4,
    "MXFP4": _KIND_INT4 | 2 << 4 | 1 << 8,
}
"""The kinds that GGUF's types are packed as, with their bytes unchanged: see ``sn_pack_file``."""
_FORMS = {_KIND_INT8: "int8", _KIND_INT4: "int4", _KIND_INT6: "int6"}
_SCALE_TYPES = {"float32": 0 << 4, "float16": 1 << 4, "bfloat16": 2 << 4}
_CENTRED, _MINIMUM = 1 << 6, 1 << 7
_DENSE_KINDS = {"f": _KIND_F32, "e": _KIND_F16, "H": _KIND_BF16}
"""By the character of numpy's type, which is uint16 for the bits of bfloat16."""


class ActivationPrecision(IntEnum):
    """Bytes of a fixed-point activation; errors are relative to the largest of its group of 32."""

    FAST = 1  # 2**-8
    CLOSE = 2  # 2**-16
    EXACT = 3  # 2**-24: as float32 sums


class SnLinear(ctypes.Structure):
    """``sn_linear`` of ``csrc/sn.h``."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("variant", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class NativeLinear:
    """``struct``: what C code takes; valid for as long as this object lives. For any thread."""

    def __init__(
        self, struct: SnLinear, weights: NDArray[np.uint8], bias: NDArray[np.float32] | None
    ) -> None:
        self._weights = weights
        self._bias = None if bias is None else padded_bias(bias)
        struct.weights = address(weights)
        struct.bias = None if self._bias is None else address(self._bias)
        self.struct = struct
        self.nbytes: int = weights.nbytes

    @property
    def is_int8(self) -> bool:
        return bool(self.struct.kind & _BASE == _KIND_INT8)

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
    """As kernels read it: zeros up to the end of the last tile."""
    padded = np.zeros(-(-len(bias) // TILE) * TILE, np.float32)
    padded[: len(bias)] = bias
    return padded


def file_struct(raws: Sequence[RawTensor], form: str, precision: ActivationPrecision) -> SnLinear | None:
    """For one linear of the rows of all ``raws`` (equal columns), held in ``form`` (as ``LoadPlan.form``
    has it) by moving the file's bytes alone. None where these would have to be decoded or rounded."""
    qtype, rows, cols = raws[0].qtype, sum(raw.shape[0] for raw in raws), raws[0].cols
    if any(raw.qtype != qtype or raw.cols != cols for raw in raws):
        return None
    if DENSE.get(qtype) == form:
        return SnLinear(list(DENSE).index(qtype), 0, rows, cols)
    kind = _FILE_KINDS.get(qtype, -1)
    return SnLinear(kind, precision, rows, cols) if _FORMS.get(kind & _BASE) == form else None


def native_file(
    raws: Sequence[RawTensor], bias: NDArray[np.float32] | None, precision: ActivationPrecision
) -> NativeLinear | None:
    """One linear of the rows of all ``raws`` (equal columns), without loss, in about as many bits as there.

    None if their types are not all the same one of Q4_0, Q4_1, Q4_K, Q6_K, Q8_0, MXFP4.
    """
    qtype = raws[0].qtype
    if qtype not in _FILE_KINDS or any(raw.qtype != qtype for raw in raws):
        return None
    rows, cols = sum(raw.shape[0] for raw in raws), raws[0].cols
    if any(raw.stored.shape != (raw.shape[0], row_bytes(qtype, cols)) for raw in raws):
        raise ValueError("the parts of a linear differ in columns")
    struct = SnLinear(_FILE_KINDS[qtype], precision, rows, cols)
    packed = _memory(struct)
    row = 0
    for raw in raws:
        stored = np.ascontiguousarray(raw.stored)
        order = None if raw.row_order is None else np.ascontiguousarray(raw.row_order, dtype=np.int64)
        if order is not None and not (
            len(order) == len(stored) and 0 <= order.min() <= order.max() < len(stored)
        ):
            raise ValueError(f"the row order of {raw.name} is not one of its rows")
        _kernels().sn_pack_file(
            *(struct, row, len(stored), address(stored), stored.shape[1]),
            *(None if order is None else address(order), address(packed)),
        )
        row += len(stored)
    return NativeLinear(struct, packed, bias)


def native_int4(
    parts: Sequence[Int4Groups], bias: NDArray[np.float32] | None, precision: ActivationPrecision
) -> NativeLinear:
    """One linear of the rows of all ``parts`` (equal columns), packed without loss."""
    scale_type, flags = _int4_form(parts)
    centred = flags == _CENTRED | _MINIMUM
    struct = _struct(_KIND_INT4 | _SCALE_TYPES[scale_type] | flags, precision, [part.q for part in parts])
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
    """One linear of the rows of all ``parts`` (equal columns), packed without loss."""
    scale_type = _narrowest(part.scale for part in parts)
    struct = _struct(_KIND_INT8 | _SCALE_TYPES[scale_type], precision, [part.q for part in parts])
    packed = _memory(struct)
    row = 0
    for q, scale in parts:
        _pack_int(struct, row, q.view(np.uint8), scale, None, packed)
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
    struct = SnLinear(_KIND_INT8 | _SCALE_TYPES["float16"], precision, rows, cols)
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
        part = np.ascontiguousarray(part)
        _kernels().sn_pack_dense(struct, row, len(part), address(part), address(packed))
        row += len(part)
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
    kernels.sn_pack_int.restype = kernels.sn_pack_dense.restype = None
    kernels.sn_pack_int.argtypes = (pointer, number, number, address, address, address, address)
    kernels.sn_pack_file.restype = None
    kernels.sn_pack_file.argtypes = (pointer, number, number, address, number, address, address)
    kernels.sn_pack_dense.argtypes = (pointer, number, number, address, address)
    return kernels


def _struct(kind: int, precision: int, parts: Sequence[NDArray[Any]]) -> SnLinear:
    rows, cols = sum(len(part) for part in parts), parts[0].shape[1]
    if any(part.shape[1] != cols or part.dtype != parts[0].dtype for part in parts):
        raise ValueError("the parts of a linear differ in columns or type")
    if kind & _BASE in (_KIND_INT8, _KIND_INT4) and cols % GROUP:
        raise ValueError(f"{cols} columns do not divide into groups of {GROUP}")
    return SnLinear(kind, precision, rows, cols)


def _memory(struct: SnLinear) -> NDArray[np.uint8]:
    return lasting_zeros(_kernels().sn_packed_bytes(struct))


def _pack_int(
    struct: SnLinear,
    row: int,
    q: NDArray[np.uint8],
    scale: NDArray[np.float32],
    minimum: NDArray[np.float32] | None,
    packed: NDArray[np.uint8],
) -> None:
    q, scale = np.ascontiguousarray(q), np.ascontiguousarray(scale, np.float32)
    minimum = None if minimum is None else np.ascontiguousarray(minimum, np.float32)
    _kernels().sn_pack_int(
        struct,
        *(row, len(q), address(q), address(scale)),
        *(None if minimum is None else address(minimum), address(packed)),
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
