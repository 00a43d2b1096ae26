"""KV pages and pieces as the C kernels see them (``csrc/attention.h``)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from ...swarm.errors import LocalProtocolError
from ...swarm.types import Span
from ..layers.kv_pool import KV_DTYPES, PAGE_TOKENS, KvPool, Piece


class SnKv(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("page", ctypes.c_int32),
    )


class SnPiece(ctypes.Structure):
    _fields_ = (
        ("table", ctypes.c_void_p),
        ("pages", ctypes.c_int32),
        ("first_block", ctypes.c_int32),
        ("row", ctypes.c_int32),
        ("start", ctypes.c_int32),
        ("count", ctypes.c_int32),
    )


def kv_struct(pool: KvPool) -> SnKv:
    """Valid for as long as ``pool`` lives."""
    return SnKv(
        pool.data.data_ptr(),
        None if pool.scales is None else pool.scales.data_ptr(),
        KV_DTYPES.index(pool.kv_dtype),
        pool.n_kv_heads,
        pool.head_dim,
        PAGE_TOKENS,
    )


class PieceArray:
    """A C array of pieces that grows as needed and is filled anew for each call."""

    __slots__ = ("array", "size")

    def __init__(self) -> None:
        self.size = 16
        self.array = (SnPiece * self.size)()

    def fill(self, pieces: Sequence[Piece], rows: int, span: Span) -> None:
        """Checks what the kernels rely on: the pieces, in order, are all of ``rows``, and each table covers
        its piece's positions and the blocks of ``span``. Raises LocalProtocolError."""
        if len(pieces) > self.size:
            self.size = 2 * len(pieces)
            self.array = (SnPiece * self.size)()
        row = 0
        for c_piece, piece in zip(self.array, pieces, strict=False):
            table, first, start, count = piece.table, piece.first_block, piece.start, piece.count
            blocks, pages = table.shape
            if (
                table.dtype is not torch.int32
                or not table.is_contiguous()
                or piece.row != row
                or count < 1
                or not 0 <= start <= pages * PAGE_TOKENS - count
                or not first <= span.start <= span.end <= first + blocks
            ):
                raise LocalProtocolError(
                    f"a piece of rows {piece.row} to {piece.row + count} at position {start}, with {pages} "
                    f"pages of blocks {first} to {first + blocks - 1}, does not fit row {row}, blocks {span}"
                )
            c_piece.table = table.data_ptr()
            c_piece.pages = pages
            c_piece.first_block = first
            c_piece.row = row
            c_piece.start = start
            c_piece.count = count
            row += count
        if row != rows:
            raise LocalProtocolError(f"pieces of {row} rows for a batch of {rows}")
