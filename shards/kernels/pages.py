"""KV pages and slices as the C kernels see them (``csrc/attention.h``)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...swarm.errors import LocalProtocolError
from ...swarm.protocol.field_types import PAGE_TOKENS
from ...swarm.types import Span
from ..formats.blocks.attention import AttentionConfig
from ..layers.kv_pool import KV_DTYPES, BatchSlice, KvPool
from .library import address

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SnAttention(ctypes.Structure):
    _fields_ = (
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("key_dim", ctypes.c_int32),
        ("value_dim", ctypes.c_int32),
        ("shared", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("window", ctypes.c_int32),
        ("chunk", ctypes.c_int32),
        ("sinks", ctypes.c_void_p),
    )


class SnKv(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("slot_bytes", ctypes.c_int64), ("dtype", ctypes.c_int32))


class SnPiece(ctypes.Structure):
    _fields_ = (
        ("table", ctypes.c_void_p),
        ("pages", ctypes.c_int32),
        ("first_block", ctypes.c_int32),
        ("row", ctypes.c_int32),
        ("start", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("states", ctypes.c_void_p),
        ("saved", ctypes.c_void_p),
        ("again", ctypes.c_int32),
    )


class SnStates(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("slot_floats", ctypes.c_int64), ("n_slots", ctypes.c_int64))


def attention_struct(config: AttentionConfig, sinks: NDArray[np.float32] | None = None) -> SnAttention:
    """``sinks`` (heads), C-contiguous, must live as long as the struct."""
    kv = config.kv
    return SnAttention(
        config.heads,
        kv.heads,
        kv.key_dim,
        kv.value_dim,
        kv.shared,
        config.scale,
        config.softcap,
        config.window,
        config.chunk,
        None if sinks is None else address(sinks),
    )


def kv_struct(pool: KvPool) -> SnKv:
    """Valid for as long as ``pool`` lives."""
    return SnKv(address(pool.data), pool.slot_bytes, KV_DTYPES.index(pool.kv_dtype))


def states_struct(pool: KvPool) -> SnStates:
    """Valid for as long as ``pool`` lives."""
    states = pool.states
    return SnStates(address(states.data), states.data.shape[1], states.n_slots)


class SnChoice(ctypes.Structure):
    _fields_ = (
        ("tokens", ctypes.c_void_p),
        ("most", ctypes.c_int64),
        ("scores", ctypes.c_void_p),
        ("longest", ctypes.c_int64),
    )


class ChoiceMemory:
    """Where indexers write what they choose (``csrc/block.h``); it grows as needed. ``most``: tokens that a
    row may see."""

    def __init__(self, most: int, threads: int) -> None:
        self._most, self._threads = most, threads
        self._tokens, self._scores = np.empty(0, np.int32), np.empty(0, np.float32)

    def of(self, rows: int, slices: Sequence[BatchSlice]) -> SnChoice:
        """For a batch; valid until the next one."""
        longest = max(part.start + part.count for part in slices)
        longest = -(-longest // PAGE_TOKENS) * PAGE_TOKENS
        if len(self._tokens) < rows * self._most:
            self._tokens = np.empty(rows * self._most, np.int32)
        if len(self._scores) < self._threads * longest:
            self._scores = np.empty(2 * self._threads * longest, np.float32)
        return SnChoice(address(self._tokens), self._most, address(self._scores), longest)


class SliceArray:
    """A C array of slices that grows as needed and is filled anew for each call."""

    def __init__(self) -> None:
        self.size = 16
        self.array = (SnPiece * self.size)()

    def fill(self, slices: Sequence[BatchSlice], rows: int, span: Span) -> None:
        """Checks what the kernels rely on: the slices, in order, are all of ``rows``, and each table covers
        its slice's positions and the blocks of ``span``. Raises LocalProtocolError."""
        if len(slices) > self.size:
            self.size = 2 * len(slices)
            self.array = (SnPiece * self.size)()
        row = 0
        for c_slice, part in zip(self.array, slices, strict=False):
            table, first, start, count = part.table, part.first_block, part.start, part.count
            states, saved = part.states, part.saved
            blocks, pages = table.shape
            if (
                table.dtype != np.int32
                or not table.flags.c_contiguous
                or (states is not None and not _is_like(states, table.shape))
                or (saved is not None and not (_is_like(saved, (blocks,)) and 0 <= part.again < count))
                or part.row != row
                or count < 1
                or not 0 <= start <= pages * PAGE_TOKENS - count
                or not first <= span.start <= span.end <= first + blocks
            ):
                raise LocalProtocolError(
                    f"a slice of rows {part.row} to {part.row + count} at position {start}, with {pages} "
                    f"pages of blocks {first} to {first + blocks - 1}, does not fit row {row}, blocks {span}"
                )
            c_slice.table = address(table)
            c_slice.pages = pages
            c_slice.first_block = first
            c_slice.row = row
            c_slice.start = start
            c_slice.count = count
            c_slice.states = None if states is None else address(states)
            c_slice.saved = None if saved is None else address(saved)
            c_slice.again = part.again
            row += count
        if row != rows:
            raise LocalProtocolError(f"slices of {row} rows for a batch of {rows}")


def _is_like(slots: NDArray[np.int32], shape: tuple[int, ...]) -> bool:
    return slots.dtype == np.int32 and slots.flags.c_contiguous and slots.shape == shape
