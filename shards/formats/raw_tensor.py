"""One tensor as it lies in the file: raw bytes with a type, and the ways out of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...swarm.errors import CheckpointError, UnsupportedModelError
from .dequantize import dequantize_rows, has_finite_scales
from .floats import STORED, narrow, widen
from .qtypes import DENSE, row_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK_VALUES = 1 << 22
"""This many values are dequantized at a time (16 MiB in float32), so that a big matrix never has a whole
float32 copy."""


_MXFP4_BYTES = 17
"""Of 32 weights: their exponent is the first."""
_LARGEST_EXPONENT = 252
"""With greater exponents of MXFP4 than this one's, weights may be beyond float32; 255 is no number."""


class Blocks(NamedTuple):
    """A 32-group quantized matrix taken apart: ``value = q * scale + minimum``, exactly.

    ``q``: (rows, cols), uint8 0..15 for Q4_0 and Q4_1, int8 for Q8_0.
    ``scale``, ``minimum``: (rows, cols // 32) float32. ``minimum`` is -8 * scale for Q4_0, 0 for Q8_0.
    """

    q: NDArray[Any]
    scale: NDArray[np.float32]
    minimum: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """``stored``: uint8 (rows, bytes of a row) view of the memory map; nothing is read until it is used.
    ``check``: raises CheckpointError where the file is not what it was.

    ``shape`` is (rows, cols) or (cols,), as HuggingFace has it. ``row_order`` maps our rows to stored ones
    where the file keeps them in another order (GGUF q and k); None means as stored.
    """

    name: str
    shape: tuple[int, ...]
    qtype: str
    stored: np.ndarray
    row_order: np.ndarray | None = None
    check: Callable[[], None] | None = None

    def part(self, name: str, shape: tuple[int, ...], rows: slice | np.ndarray) -> RawTensor:
        """Some rows, in this order: a tensor of ``shape``. Of a vector, some values."""
        if len(self.shape) == 1:
            values = self.data.reshape(self.cols, -1)[rows]
            return replace(self, name=name, shape=shape, stored=values.reshape(1, -1), row_order=None)
        if isinstance(rows, slice) or len(shape) == 1 or self.row_order is not None:
            return replace(self, name=name, shape=shape, stored=self.data[rows], row_order=None)
        if len(rows) != len(self.stored):
            return replace(self, name=name, shape=shape, stored=self.stored[rows])
        return replace(self, name=name, shape=shape, row_order=rows)

    def turned(self, name: str, groups: int = 1) -> RawTensor:
        """Each of ``groups`` equal parts, one below the other, transposed; a quantized matrix as float32."""
        rows, cols = self.rows, self.cols
        if self.is_dense:
            qtype, values = self.qtype, np.ascontiguousarray(self.data).view(STORED[DENSE[self.qtype]])
        else:
            qtype, values = "F32", self.dequantize().reshape(rows, cols)
        turned = values.reshape(groups, rows // groups, cols).swapaxes(1, 2).reshape(groups * cols, -1)
        stored = np.ascontiguousarray(turned).view(np.uint8)
        return RawTensor(name, turned.shape, qtype, stored, check=self.check)

    def named(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        """The same values under another name, and in a shape of as many rows."""
        rows = 1 if len(shape) == 1 else len(self.stored)
        return replace(self, name=name, shape=shape, stored=self.stored.reshape(rows, -1))

    @property
    def data(self) -> np.ndarray:
        """uint8 (rows, bytes of a row), rows in our order. A view where that is the file's, else a copy."""
        return self.stored if self.row_order is None else self.stored[self.row_order]

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    @property
    def is_dense(self) -> bool:
        """Plain F32, F16 or BF16 values."""
        return self.qtype in DENSE

    @property
    def rows(self) -> int:
        """Of the matrix, or of all matrices of a stack."""
        return prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        return self.shape[-1]

    def dequantize(self, dtype: str = "float32") -> NDArray[Any]:
        """The values, computed exactly in float32, then rounded to ``dtype``, a key of ``floats.STORED``: a
        fresh array of ``shape``, bits for bfloat16."""
        rows = self.rows
        if self.is_dense and DENSE[self.qtype] == dtype:
            return _dense(self.data, dtype).reshape(self.shape)
        out = np.empty((rows, self.cols), STORED[dtype])
        step = max(1, _CHUNK_VALUES // max(1, self.cols))
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            index: slice | np.ndarray = slice(start, stop)
            if self.row_order is not None:
                index = self.row_order[index]
            out[start:stop] = narrow(self.values(index), dtype)
        return out.reshape(self.shape)

    def dequantize_rows(self, rows: Sequence[int] | NDArray[Any] | slice) -> NDArray[np.float32]:
        """(rows, cols) float32 of a matrix; reads only these rows, long after opening, too. IndexError
        for a row outside, CheckpointError where the file has changed meanwhile."""
        if self.check is not None:
            self.check()
        index = rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        return self.values(index if self.row_order is None else self.row_order[index])

    def values(self, rows: slice | np.ndarray) -> NDArray[np.float32]:
        """Stored rows as float32 (rows, cols), a copy."""
        data = self.stored[rows]
        if self.is_dense:
            dtype = DENSE[self.qtype]
            return widen(_dense(data, dtype), dtype)
        check_exponents(self.name, self.qtype, data)
        return dequantize_rows(data, self.qtype)

    def check_numbers(self) -> None:
        """CheckpointError where a value of a vector, or a scale in a matrix of GGUF's types, is not finite.
        Of a matrix nothing else is read."""
        if self.stored.size == 0:
            return
        if len(self.shape) == 1:
            is_sound = bool(np.isfinite(self.dequantize()).all())
        else:
            is_sound = has_finite_scales(self.stored, self.qtype)
        if not is_sound:
            raise not_finite(self.name)

    def blocks(self) -> Blocks:
        """Taken apart for kernels that keep the groups: Q4_0, Q4_1, Q8_0; else UnsupportedModelError."""
        if self.qtype not in ("Q4_0", "Q4_1", "Q8_0"):
            raise UnsupportedModelError(f"tensor {self.name} is {self.qtype}, not stored in groups of 32")
        data = self.data
        groups = data.reshape(
            data.shape[0], -1, row_bytes(self.qtype, 32)
        )  # (rows, groups, bytes of a group)
        shape = groups.shape[:2]
        if self.qtype == "Q8_0":
            scale = _half(groups[..., :2])
            q = np.ascontiguousarray(groups[..., 2:]).view(np.int8)
            return Blocks(q.reshape(shape[0], -1), scale, np.zeros(shape, np.float32))
        if self.qtype == "Q4_0":
            scale = _half(groups[..., :2])
            return Blocks(_nibbles(groups[..., 2:]), scale, scale * np.float32(-8))
        return Blocks(_nibbles(groups[..., 4:]), _half(groups[..., :2]), _half(groups[..., 2:4]))


def check_exponents(name: str, qtype: str, rows: np.ndarray) -> None:
    """CheckpointError where ``rows`` of MXFP4, uint8 (rows, bytes of a row), have weights that are no numbers
    of float32. Of other types nothing is checked."""
    if qtype == "MXFP4" and rows[:, ::_MXFP4_BYTES].max(initial=0) > _LARGEST_EXPONENT:
        raise not_finite(name)


def not_finite(name: str) -> CheckpointError:
    return CheckpointError(
        f"tensor {name} has weights that are not finite numbers: it or its scales are damaged",
        hint="Download the file again; if that changes nothing, use another checkpoint of the model.",
    )


def _dense(data: np.ndarray, dtype: str) -> NDArray[Any]:
    # Copied first: the memory map is read-only, and may start at an address that is not a multiple of 4.
    return np.array(data, order="C").view(STORED[dtype])


def _half(data: np.ndarray) -> NDArray[np.float32]:
    """uint8 (rows, groups, 2) → float32 (rows, groups)."""
    return np.ascontiguousarray(data).view(np.float16)[..., 0].astype(np.float32)


def _nibbles(data: np.ndarray) -> NDArray[np.uint8]:
    """uint8 (rows, groups, 16) → uint8 (rows, groups * 32): low nibbles are the group's first half."""
    low, high = data & 0x0F, data >> 4
    return np.concatenate((low, high), axis=-1).reshape(data.shape[0], -1)
