"""A whole span as one call into C (``csrc/block.c``), for float32 activations on the CPU.

Everything that does not change is laid out once; a call passes pointers to the rows, the slices and the KV
memory. The GIL is released while it computes. A row's result is the same bits in any batch, cut into any
chunks, on any number of threads (but for "dynamic" rope, which is defined by where chunks end).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...swarm.errors import LocalProtocolError
from ...swarm.types import Span
from ..kernels.library import ThreadPool, library
from ..kernels.linear import NativeLinear, SnLinear
from ..kernels.pages import SliceArray, kv_struct
from ..layers.kv_pool import BatchSlice, KvPool
from ..layers.rope import Rope
from .llama import LlamaBlock

if TYPE_CHECKING:
    from ..formats.config import ModelConfig

HEAD_DIM_MULTIPLE = 8
"""``csrc/attention.c`` needs a head_dim that is a multiple of this."""


class SnBlock(ctypes.Structure):
    _fields_ = (
        ("norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        ("qkv", SnLinear),
        ("out", SnLinear),
        ("gate_up", SnLinear),
        ("down", SnLinear),
    )


class SnSpan(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.POINTER(SnBlock)),
        ("first_block", ctypes.c_int32),
        ("n_blocks", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
        ("intermediate", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("eps", ctypes.c_float),
    )


class SnRotation(ctypes.Structure):
    _fields_ = (("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p))


def unsupported(config: ModelConfig, blocks: Sequence[LlamaBlock]) -> str | None:
    """Why ``NativeSpan`` cannot compute these blocks; None if it can."""
    if config.head_dim % HEAD_DIM_MULTIPLE:
        return f"head_dim {config.head_dim} is not a multiple of {HEAD_DIM_MULTIPLE}"
    for block in blocks:
        if not all(
            isinstance(linear, NativeLinear) for linear in (block.qkv, block.out, block.gate_up, block.down)
        ):
            return "weights are held for torch's kernels"
        if not all(norm.weight.dtype is torch.float32 for norm in (block.norm, block.mlp_norm)):
            return "activations are not float32"
    return None


class NativeSpan:
    """``blocks`` of ``span``, for which ``unsupported`` gave None. For one caller at a time."""

    def __init__(
        self, config: ModelConfig, span: Span, blocks: Sequence[LlamaBlock], threads: int = 1
    ) -> None:
        self._blocks = tuple(blocks)  # what the pointers point at
        self._c_blocks = (SnBlock * len(blocks))(*map(_c_block, blocks))
        self._c_span = SnSpan(
            self._c_blocks,
            span.start,
            len(span),
            config.hidden_size,
            config.intermediate_size,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim,
            config.rms_norm_eps,
        )
        kernels = library()
        kernels.sn_span_scratch.restype = ctypes.c_int64
        self._threads = ThreadPool(threads)
        self._scratch = torch.empty(
            kernels.sn_span_scratch(ctypes.byref(self._c_span), ctypes.c_int32(threads)), dtype=torch.uint8
        )
        self._forward = kernels.sn_span_forward
        self._forward.restype = None
        self._forward.argtypes = (
            ctypes.POINTER(SnSpan),
            ctypes.c_void_p,  # pool
            ctypes.c_int32,  # first block
            ctypes.c_int32,  # end block
            ctypes.c_void_p,  # x
            ctypes.c_int64,  # rows
            ctypes.c_void_p,  # slices
            ctypes.c_void_p,  # rotations
            ctypes.c_int32,  # slices
            ctypes.c_void_p,  # kv
            ctypes.c_void_p,  # scratch
        )
        self._slices = SliceArray()
        self._rotations = (SnRotation * self._slices.size)()

    def use_threads(self, threads: int) -> None:
        """Compute with so many of the threads from now on."""
        self._threads.width = threads

    def forward(self, x: Tensor, slices: Sequence[BatchSlice], pool: KvPool, span: Span, rope: Rope) -> None:
        """As SpanModel.forward, but ``x``, contiguous float32 on the CPU, itself becomes the output."""
        c_span = self._c_span
        shape = (x.shape[1], pool.n_kv_heads, pool.head_dim)
        if shape != (c_span.hidden, c_span.kv_heads, c_span.head_dim):
            raise LocalProtocolError(
                f"hidden size {shape[0]}, {shape[1]} KV heads of {shape[2]}: this model has {c_span.hidden}, "
                f"{c_span.kv_heads} of {c_span.head_dim}"
            )
        self._slices.fill(slices, len(x), span)
        tables = self._rotate(slices, rope)  # must live during the call
        self._forward(
            self._c_span,
            self._threads.handle,
            span.start,
            span.end,
            x.data_ptr(),
            len(x),
            self._slices.array,
            self._rotations,
            len(slices),
            ctypes.byref(kv_struct(pool)),
            self._scratch.data_ptr(),
        )
        del tables

    def _rotate(self, slices: Sequence[BatchSlice], rope: Rope) -> Sequence[Tensor]:
        """Fills in where each slice's cos and sin are; returns what holds them."""
        if len(self._rotations) < len(slices):
            self._rotations = (SnRotation * self._slices.size)()
        table = rope.table(max(part.start + part.count for part in slices))
        if table is not None:
            cos, sin = table[0].data_ptr(), table[1].data_ptr()
            row_bytes = table[0].stride(0) * table[0].itemsize
            for rotation, part in zip(self._rotations, slices, strict=False):
                rotation.cos = cos + part.start * row_bytes
                rotation.sin = sin + part.start * row_bytes
            return table
        held: list[Tensor] = []
        for rotation, part in zip(self._rotations, slices, strict=False):
            rows = rope.slice_rows(part.start, part.count)
            rotation.cos, rotation.sin = rows[0].data_ptr(), rows[1].data_ptr()
            held.extend(rows)
        return held


def _c_block(block: LlamaBlock) -> SnBlock:
    linears = []
    for linear in (block.qkv, block.out, block.gate_up, block.down):
        if not isinstance(linear, NativeLinear):
            raise TypeError("a linear is not native")
        linears.append(linear.struct)
    return SnBlock(block.norm.weight.data_ptr(), block.mlp_norm.weight.data_ptr(), *linears)
