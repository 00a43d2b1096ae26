"""A session's memory on MLX: keys and values in pages, and states.

MLX has no operation that is sure to write into an array: an update copies the whole array unless nothing else
refers to it, kernels under way included. So rows are written by the CPU, through a view of the same memory
(unified on Apple Silicon), after the step that made them is complete, and the array that kernels read stays
the same object for ever. One token's keys and values are a few KiB a block, which costs less than a kernel.

A state is a MiB or two, and each token makes a new one. A slot of a state is a reference to the array that
the last step made: nothing is copied, and a copy of a slot is a reference more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import mlx.core as mx
import numpy as np

from ....swarm.errors import LocalProtocolError
from ....swarm.protocol.field_types import PAGE_TOKENS
from ...formats.blocks.attention import KvShape
from ...formats.blocks.state import StateShape
from ...layers.kv_pool import KV_DTYPES, slot_bytes
from .device import fused

_STORED = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.uint16, "int8": mx.int8}
"""The types as they are stored. numpy has no bfloat16, so its bits are kept."""
_MLX = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
_LARGE = 1e30
"""Larger values become this, so that no product of such a key with a query overflows."""
_SMALLEST_LARGEST = 1e-30
"""An int8 scale is made of at least this magnitude, as in ``kv_pool``."""

Stored = tuple[mx.array, ...]
"""Rows as the pool holds them: (vectors, T, key_dim); for int8 scales (vectors, T) too."""
State = tuple[mx.array, mx.array]
"""A block's matrices (heads, key_dim, value_dim) and its convolution's last inputs (rows, channels), float32.
"""


class MlxKvPool:
    """``n_slots`` slots for blocks of ``shapes``, a ``KvMemory``. Everything in it is finite at all times, as
    what a mask hides is still multiplied by zero.

    A token's keys in a block, then its values, are its vectors; behind them lies its key for an indexer, a
    vector of another size. ``data``: (units, n_slots, PAGE_TOKENS, width), where a vector takes key_dim /
    width units. It is one unit where all blocks have the same key_dim: pages of one session, taken together,
    are then a contiguous matrix a head. ``scales``, for int8: (vectors, n_slots, PAGE_TOKENS).
    ``states``: what each slot of a state holds, evaluated; None before it is written.
    """

    def __init__(self, n_slots: int, shapes: Collection[KvShape], kv_dtype: str, n_states: int = 0) -> None:
        """Raises UsageError for an unknown ``kv_dtype``, RuntimeError where memory is short."""
        self.slot_bytes = max((slot_bytes(shape, kv_dtype) for shape in shapes), default=0)
        self.n_slots, self.kv_dtype = n_slots, kv_dtype
        self.states: list[State | None] = [None] * n_states
        self._width = math.gcd(*(dim for shape in shapes for dim in (shape.key_dim, shape.index_dim))) or 1
        values = (vectors(shape) * shape.key_dim + shape.index_dim for shape in shapes)
        units = max(values, default=0) // self._width
        self.data = mx.zeros((units, n_slots, PAGE_TOKENS, self._width), _STORED[kv_dtype])
        self.scales = None
        if kv_dtype == "int8":
            most = max((vectors(shape) + (shape.index is not None) for shape in shapes), default=0)
            self.scales = mx.zeros((most, n_slots, PAGE_TOKENS))
        arrays = [self.data] if self.scales is None else [self.data, self.scales]
        mx.eval(arrays)
        # Views that may be written: MLX's arrays lend their memory, and these two are never part of a result.
        self._cells = np.array(self.data, copy=False)
        self._scale_cells = None if self.scales is None else np.array(self.scales, copy=False)

    @property
    def n_states(self) -> int:
        return len(self.states)

    def state(self, slot: int, shape: StateShape) -> State:
        """Raises LocalProtocolError where ``slot`` holds no state of ``shape``."""
        held = self.states[slot]
        if held is None or [part.shape for part in held] != _parts(shape):
            raise LocalProtocolError(f"state slot {slot} holds no state of {shape}")
        return held

    def copy_states(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        _check_pairs(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            self.states[target] = self.states[source]

    def copy_slots(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """No kernel may be under way."""
        _check_pairs(sources, targets)
        read, written = np.asarray(sources, np.int64), np.asarray(targets, np.int64)
        self._cells[:, written] = self._cells[:, read]
        if self._scale_cells is not None:
            self._scale_cells[:, written] = self._scale_cells[:, read]

    def gather(
        self, slots: mx.array, shape: KvShape, dtype: mx.Dtype, behind: KvShape | None = None
    ) -> mx.array:
        """The pages in ``slots`` (any shape S) of blocks of ``shape`` → (vectors, *S, PAGE_TOKENS, key_dim),
        of ``dtype``. ``behind``: of an indexer's ``shape``, that of its block."""
        count, parts = vectors(shape), shape.key_dim // self._width
        vector, unit = self._first(behind)
        pages = mx.take(self.data[unit : unit + count * parts], slots, axis=1)
        if parts > 1:
            pages = mx.moveaxis(pages.reshape(count, parts, *pages.shape[1:]), 1, -2)
            pages = pages.reshape(*pages.shape[:-2], shape.key_dim)
        if self.scales is None:
            return self._plain(pages).astype(dtype)
        scales = mx.take(self.scales[vector : vector + count], slots, axis=1)
        return (pages.astype(mx.float32) * scales[..., None]).astype(dtype)

    def narrow(self, rows: mx.array) -> Stored:
        """``rows`` (vectors, T, key_dim) as they are stored; what is not finite, or too large, becomes
        a number that is."""
        rows = fused(_FINITE[self.kv_dtype])(rows)
        if self.kv_dtype == "bfloat16":
            return (rows.view(mx.uint16),)
        if self.kv_dtype != "int8":
            return (rows,)
        scale = mx.maximum(mx.abs(rows).max(-1), _SMALLEST_LARGEST) / 127.0
        return mx.round(rows * (1.0 / scale)[..., None]).astype(mx.int8), scale

    def widen(self, stored: Stored, dtype: mx.Dtype) -> mx.array:
        """What ``gather`` will give for rows that ``narrow`` made."""
        if self.scales is None:
            return self._plain(stored[0]).astype(dtype)
        return (stored[0].astype(mx.float32) * stored[1][..., None]).astype(dtype)

    def write(
        self,
        slots: np.ndarray,
        offset: int,
        rows: Sequence[np.ndarray],
        first: int,
        end: int,
        behind: KvShape | None = None,
    ) -> None:
        """Into each block's page, ``slots`` (blocks of one shape), from token ``offset`` of the page on, rows
        ``first`` to ``end`` of ``rows``: evaluated ``Stored`` arrays with an axis (blocks) in front.
        ``behind``: as for ``gather``."""
        vector, unit = self._first(behind)
        cells, part = slice(offset, offset + end - first), rows[0][:, :, first:end]
        units = part.reshape(*part.shape[:3], -1, self._width).transpose(1, 3, 0, 2, 4)
        units = units.reshape(-1, *units.shape[2:])  # (units, blocks, tokens, width)
        self._cells[unit : unit + len(units), slots, cells] = units
        if self._scale_cells is not None:
            scales = rows[1][:, :, first:end].swapaxes(0, 1)
            self._scale_cells[vector : vector + len(scales), slots, cells] = scales

    def _first(self, behind: KvShape | None) -> tuple[int, int]:
        """The vector and the unit where what lies behind the keys and values of a shape begins."""
        count = 0 if behind is None else vectors(behind)
        return count, 0 if behind is None else count * behind.key_dim // self._width

    def _plain(self, stored: mx.array) -> mx.array:
        return stored.view(mx.bfloat16) if self.kv_dtype == "bfloat16" else stored


def fresh(shape: StateShape) -> State:
    """That of a session's beginning."""
    matrices, window = _parts(shape)
    return mx.zeros(matrices), mx.zeros(window)


def _parts(shape: StateShape) -> list[tuple[int, ...]]:
    return [(shape.heads, shape.key_dim, shape.value_dim), (shape.rows, shape.channels)]


def _check_pairs(sources: Sequence[int], targets: Sequence[int]) -> None:
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} sources, {len(targets)} targets")


def vectors(shape: KvShape) -> int:
    """How many a token has in a block of ``shape``, each of ``key_dim`` values."""
    return shape.heads if shape.shared else 2 * shape.heads


def _finite(largest: float, dtype: mx.Dtype) -> Callable[[mx.array], mx.array]:
    """To ``dtype``: at most ±``largest``, and 0 for NaN."""

    def convert(rows: mx.array) -> mx.array:
        rows = rows.astype(mx.float32)
        return mx.where(mx.isnan(rows), 0.0, mx.clip(rows, -largest, largest)).astype(dtype)

    return convert


_FINITE = {
    "float32": _finite(_LARGE, mx.float32),
    "float16": _finite(65504.0, mx.float16),
    "bfloat16": _finite(_LARGE, mx.bfloat16),
    "int8": _finite(_LARGE, mx.float32),  # before a scale is taken
}


def default_kv_dtype(dtype: mx.Dtype) -> str:
    """The activations' own: MLX's attention takes one type for queries, keys and values."""
    return next(name for name in KV_DTYPES if _MLX.get(name) == dtype)
