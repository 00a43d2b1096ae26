"""Final norm and output head as one call into C (``csrc/head.c``), and its refinement (``csrc/refine.c``)."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..layers.norm import RmsNorm
from .library import ThreadPool, library
from .linear import NativeLinear, SnLinear

if TYPE_CHECKING:
    from ..formats.raw_tensor import RawTensor

_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 2}
"""Types whose rows can be read as they lie in the file: ``sn.h``'s numbers."""


class NativeHead:
    """For float32 hidden states on the CPU. May be called from any thread: calls take turns.

    A row's logits are the same bits alone and among others.
    """

    def __init__(self, norm: RmsNorm, linear: NativeLinear, threads: int = 1) -> None:
        kernels = library()
        kernels.sn_head_scratch.restype = ctypes.c_int64
        self._norm, self._linear = norm, linear
        self._threads = ThreadPool(threads)
        self._lock = threading.Lock()
        self._scratch = torch.empty(kernels.sn_head_scratch(ctypes.byref(linear.struct)), dtype=torch.uint8)
        self._forward = kernels.sn_head_forward
        self._forward.restype = None
        self._forward.argtypes = (
            ctypes.POINTER(SnLinear),
            ctypes.c_void_p,  # norm's weight
            ctypes.c_float,  # its eps
            ctypes.c_void_p,  # pool
            ctypes.c_void_p,  # x
            ctypes.c_int64,  # rows
            ctypes.c_void_p,  # logits
            ctypes.c_void_p,  # scratch
        )

        self._ids = torch.empty(0, dtype=torch.int32)
        self._refine = kernels.sn_refine
        self._refine.restype = ctypes.c_int64
        self._refine.argtypes = (
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),  # logits, vocabulary, bounds
            *(ctypes.c_float, ctypes.c_float),  # norm of the input, of_output
            *(ctypes.c_int32, ctypes.c_int64),  # best, most
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32),  # rows, bytes of one, type
            *(ctypes.c_void_p, ctypes.c_int64),  # x, columns
            *(ctypes.c_void_p, ctypes.c_void_p),  # ids, pool
        )

    @staticmethod
    def refines(raw: RawTensor) -> bool:
        """Whether ``refine`` can read ``raw``."""
        return raw.qtype in _FILE_TYPES and raw.row_order is None and raw.stored.flags.c_contiguous

    def refine(
        self,
        scores: Tensor,
        x: Tensor,
        raw: RawTensor,
        bounds: Tensor,
        of_output: float,
        best: int,
        most: int,
    ) -> int:
        """What ``head.RefinedHead`` does to the logits of one row, in place: ``scores`` (vocab,) and ``x``
        (hidden,) float32, contiguous. Returns how many were computed from ``raw``."""
        vocab, cols = raw.shape
        if scores.shape != (vocab,) or bounds.shape != (vocab,) or x.shape != (cols,) or cols % 16:
            raise ValueError(f"{tuple(scores.shape)} logits of {tuple(x.shape)} for a head of {raw.shape}")
        exact = x.double()
        with self._lock:
            if len(self._ids) < vocab:
                self._ids = torch.empty(vocab, dtype=torch.int32)
            return self._refine(
                *(scores.data_ptr(), vocab, bounds.data_ptr()),
                *(float(torch.linalg.vector_norm(x)), of_output, best, most),
                *(raw.stored.ctypes.data, raw.stored.shape[1], _FILE_TYPES[raw.qtype]),
                *(exact.data_ptr(), cols, self._ids.data_ptr(), self._threads.handle),
            )

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (T, hidden) → (T, vocab) float32."""
        if x.shape[1] != self._linear.struct.cols:
            raise ValueError(
                f"hidden states {tuple(x.shape)} for a head of {self._linear.struct.cols} columns"
            )
        x = x.to(torch.device("cpu"), torch.float32).contiguous()
        logits = torch.empty(len(x), self._linear.struct.rows)
        with self._lock:
            self._forward(
                self._linear.struct,
                self._norm.weight.data_ptr(),
                self._norm.eps,
                self._threads.handle,
                x.data_ptr(),
                len(x),
                logits.data_ptr(),
                self._scratch.data_ptr(),
            )
        return logits
