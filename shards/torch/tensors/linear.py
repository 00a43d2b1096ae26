"""Matrix products with held weights on torch's kernels: dense, int8 per row, int4 in groups.

The path for other devices, other activation types than float32 and machines without a C compiler; elsewhere
``kernels.linear`` is faster. Few rows (decode) go through torch's packed CPU kernels, which read the fewest
bytes. Those grow linearly with rows, so many rows (prefill) unpack the weights slice by slice into a scratch
buffer and use the dense product.
Measured, 3072x576 on 2 cores with AVX-512, milliseconds at 1 / 16 / 64 / 512 rows: packed int4 0.06 / 0.42 /
1.7 / 13.6, unpacking to float32 0.54 plus the dense 0.13 / 0.38 / 0.92 / 5.8.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ....swarm.errors import LocalProtocolError
from ...layers.quantize import GROUP, Int4Groups, Int8Rows

PACKED_ROWS_INT4 = 40
"""Up to this many rows the packed int4 kernel is faster than unpacking and a dense product."""
PACKED_ROWS_INT8 = 16
"""The same for int8, whose unpacking is a plain conversion."""
ROW_PADDING = 64
"""Output rows come in multiples of this in the packed int4 layout; missing ones are padded with zeros."""
SLICE_VALUES = 1 << 20
"""This many weights are unpacked at a time: 4 MiB of float32, which stays in or near the second-level
cache."""


class Scratch(threading.local):
    """Memory that all the linears of a model unpack into, one after the other; each thread has its own."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def take(self, rows: int, cols: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Uninitialised (rows, cols) of ``dtype`` and half as many bytes; valid until the next ``take``."""
        values, nibbles = rows * cols * dtype.itemsize, (rows * cols + 1) // 2
        if values + nibbles > self._bytes.numel():
            self._bytes = torch.empty(values + nibbles, dtype=torch.uint8)
        return self._bytes[:values].view(dtype).view(rows, cols), self._bytes[values : values + nibbles]


class Linear(Protocol):
    """``linear(x)``: x (T, in) of any float type → (T, out) in the type it computed in."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory the weights take."""
        ...

    def __call__(self, x: Tensor) -> Tensor: ...


class DenseLinear:
    """``weight`` (out, in). ``wide``: the type many rows are computed in, where another one is faster."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, scratch: Scratch, wide: torch.dtype | None = None
    ) -> None:
        self.weight = weight
        self._dtype = weight.dtype
        self._bias = None if bias is None else bias.to(weight)
        self._scratch = scratch
        self._wide = (
            wide if wide is not None and wide != weight.dtype and weight.device.type == "cpu" else None
        )

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if self._wide is not None and x.shape[0] > PACKED_ROWS_INT8:
            return _sliced(x.to(self._wide), self._unpack, self.weight.shape, self._bias)
        return F.linear(x if x.dtype is self._dtype else x.to(self._dtype), self.weight, self._bias)

    def _unpack(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        out, _ = self._scratch.take(stop - start, self.weight.shape[1], dtype)
        return out.copy_(self.weight[start:stop]).t()


class HeadProducts:
    """``products(x)``: x (T, heads, in) → (T, heads, out), each head's part by its own matrix. ``weight``
    (heads, out, in)."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.transpose(1, 2)
        self.nbytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return torch.bmm(x.to(self._weight.dtype).transpose(0, 1), self._weight).transpose(0, 1)


class Int8Linear:
    """One scale a row. Few rows: ``torch._weight_int8pack_mm`` in bfloat16, accumulating in float32.

    ValueError for columns that do not divide into groups of 32: the kernel reads past the end of those.
    """

    def __init__(
        self, rows: Int8Rows, bias: Tensor | None, scratch: Scratch, wide: torch.dtype = torch.float32
    ) -> None:
        if rows.q.shape[1] % GROUP:
            raise ValueError(f"{rows.q.shape[1]} columns do not divide into groups of {GROUP}")
        self._q = torch.from_numpy(rows.q).contiguous()
        self._scale = torch.from_numpy(rows.scale).to(torch.bfloat16)
        self._bias = None if bias is None else bias.float()
        self._scratch = scratch
        self._wide = wide

    @property
    def nbytes(self) -> int:
        return self._q.nbytes + self._scale.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] > PACKED_ROWS_INT8:
            return _sliced(x.to(self._wide), self._unpack, self._q.shape, self._bias)
        out = torch._weight_int8pack_mm(_bf16(x), self._q, self._scale)
        return out if self._bias is None else out + self._bias

    def _unpack(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        out, _ = self._scratch.take(stop - start, self._q.shape[1], dtype)
        return out.copy_(self._q[start:stop]).mul_(self._scale[start:stop, None]).t()


class Int4Linear:
    """Groups of 32 with scale and minimum. Few rows: ``_weight_int4pack_mm_for_cpu`` in bfloat16.

    The kernel's scales are bfloat16; where the file's own (float16) are finer, these are kept beside them and
    many rows are computed from the exact ones.
    """

    def __init__(
        self, groups: Int4Groups, bias: Tensor | None, scratch: Scratch, wide: torch.dtype = torch.float32
    ) -> None:
        self._rows = groups.q.shape[0]
        padding = -self._rows % ROW_PADDING
        q, scale, minimum = (F.pad(torch.from_numpy(part), (0, 0, 0, padding)) for part in groups)
        self._shape = q.shape
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.to(torch.int32), 1)
        pairs = torch.stack((scale, minimum + 8 * scale), -1).transpose(0, 1)
        self._scales = pairs.to(torch.bfloat16).contiguous()  # (groups, rows, 2): scale and centre
        self._exact = _exact_pairs(scale, minimum, self._scales)
        self._bias = None if bias is None else F.pad(bias.float(), (0, padding))
        self._scratch = scratch
        self._wide = wide

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + self._scales.nbytes + (0 if self._exact is None else self._exact.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] > PACKED_ROWS_INT4 and int4_block() is not None:
            out = _sliced(x.to(self._wide), self._unpack, self._shape, self._bias)
        else:
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(_bf16(x), self._packed, GROUP, self._scales)
            if self._bias is not None:
                out = out + self._bias
        return out if self._rows == self._shape[0] else out[:, : self._rows]

    def _unpack(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows ``start`` to ``stop``, transposed: (cols, stop - start)."""
        cols, rows = self._shape[1], stop - start
        block = int4_block()
        if block is None:
            raise LocalProtocolError("the packed int4 layout of this CPU is not known")
        out, nibbles = self._scratch.take(cols, rows, torch.float32)
        unpack_nibbles(self._packed[start:stop], out, nibbles, block)
        if self._exact is not None:
            scale, minimum = self._exact[0, :, start:stop].float(), self._exact[1, :, start:stop].float()
        else:
            scale, centre = self._scales[:, start:stop].float().unbind(-1)
            minimum = centre - 8 * scale
        grouped = out.view(cols // GROUP, GROUP, rows)
        torch.addcmul(minimum[:, None], grouped, scale[:, None], out=grouped)
        # Rounded only here: a minimum rounded before would be off by more than the whole weight's rounding.
        return out if dtype == torch.float32 else out.to(dtype)


def _bf16(x: Tensor) -> Tensor:
    """As the packed kernels take it. A no-op ``.to`` costs as much as a small product's bookkeeping."""
    return (x if x.dtype is torch.bfloat16 else x.bfloat16()).contiguous()


def _exact_pairs(scale: Tensor, minimum: Tensor, scales: Tensor) -> Tensor | None:
    """(2, groups, rows) scale and minimum, in float16 if that is exact; None if ``scales`` are already."""
    pairs = torch.stack((scale.t(), minimum.t())).contiguous()
    held = scales.float()
    if torch.equal(held[..., 0], pairs[0]) and torch.equal(held[..., 1] - 8 * held[..., 0], pairs[1]):
        return None
    half = pairs.to(torch.float16)
    return half if torch.equal(half.float(), pairs) else pairs


def _sliced(
    x: Tensor, unpack: Callable[[int, int, torch.dtype], Tensor], shape: torch.Size, bias: Tensor | None
) -> Tensor:
    """``x`` (T, in) times unpacked weights. ``unpack(start, stop, dtype)`` → (in, stop - start)."""
    rows, cols = shape
    step = max(ROW_PADDING, SLICE_VALUES // cols // ROW_PADDING * ROW_PADDING)
    if rows <= step:
        out = x @ unpack(0, rows, x.dtype)
    else:
        out = x.new_empty(x.shape[0], rows)
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            torch.mm(x, unpack(start, stop, x.dtype), out=out[:, start:stop])
    return out if bias is None else out.add_(bias)


def unpack_nibbles(packed: Tensor, out: Tensor, scratch: Tensor, block: int) -> None:
    """``packed`` uint8 (rows, cols / 2) in the kernel's layout → ``out`` (cols, rows), values 0..15.

    ``scratch``: uint8 of ``packed``'s size. The layout: for each ``block`` output rows, (cols, block / 2)
    bytes, with row j in the low and row j + block / 2 in the high nibble.
    """
    cols, rows = out.shape
    half = block // 2
    source = packed.view(rows // block, cols, half)
    nibble = scratch.view(rows // block, cols, half)
    target = out.view(cols, rows // block, block).transpose(0, 1)  # (rows / block, cols, block)
    torch.bitwise_and(source, 15, out=nibble)
    target[..., :half].copy_(nibble)
    torch.bitwise_right_shift(source, 4, out=nibble)
    target[..., half:].copy_(nibble)


@cache
def int4_block() -> int | None:
    """Rows of a block of the packed layout on this CPU, found by trying; None if it is of another form.

    The layout is torch's own affair (64 rows on AVX-512, 32 on AVX2): without it the packed kernel does all.
    """
    rows, cols = 2 * ROW_PADDING, GROUP
    q = (torch.arange(rows * cols) * 7 % 16).view(rows, cols)
    q ^= torch.arange(rows)[:, None] % 16
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.to(torch.int32), 1)
    for block in (64, 32):
        out = torch.empty(cols, rows, dtype=torch.int32)
        unpack_nibbles(
            packed.view(torch.uint8).view(rows, cols // 2),
            out,
            torch.empty(rows, cols // 2, dtype=torch.uint8),
            block,
        )
        if torch.equal(out.t(), q.to(torch.int32)):
            return block
    return None


ROW_TILE = 16
"""Every dense product has this many rows. 3072x576 in float32 on one core, milliseconds: 1 row 0.31, a tile
of 8 0.90, of 16 0.97, of 32 1.23, 512 rows 13.9. So one session's token costs three times as much and a
prompt twice."""
PACKED_ROWS = min(ROW_TILE, PACKED_ROWS_INT8)
"""torch's packed kernels get this many rows at a time: few enough that the weights are never unpacked."""


class RowTiles:
    """``linear``, of rows (T, ...), given at most ROW_TILE rows at a time. ``pad``: always exactly that many.

    So there is one way to compute a row, whatever rows are computed beside it. Products on torch's kernels
    depend on how many rows they have, as the library picks another kernel for each shape. Dense products
    always have ROW_TILE rows here, missing ones being zeros: every row of one shape is computed alike (found
    by trying; ``models.determinism_check`` proves it on the loaded weights).

    torch's packed kernels for int8 and int4 take each row the same way in any number, so these are only cut.
    """

    def __init__(self, linear: Linear, *, pad: bool) -> None:
        self._linear = linear
        self._pad = pad

    @property
    def nbytes(self) -> int:
        return self._linear.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        most, of_tile = (ROW_TILE, self._padded) if self._pad else (PACKED_ROWS, self._linear)
        return of_tile(x) if len(x) <= most else torch.cat([of_tile(tile) for tile in x.split(most)])

    def _padded(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        if count == ROW_TILE:
            return self._linear(x.contiguous())
        tile = x.new_zeros(ROW_TILE, *x.shape[1:])
        tile[:count] = x
        return self._linear(tile)[:count]
