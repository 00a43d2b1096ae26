"""Final norm and output head as one call into C (``csrc/head.c``), and its refinement (``csrc/refine.c``)."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

import numpy as np

from .library import ThreadPool, address, library
from .linear import NativeLinear, SnLinear
from .rows import NativeNorm, SnNorm

if TYPE_CHECKING:
    from ..formats.raw_tensor import RawTensor

_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 2}
"""Types whose rows can be read as they lie in the file: ``sn.h``'s numbers."""


class NativeHead:
    """For float32 hidden states on the CPU. May be called from any thread: calls take turns.

    A row's logits are the same bits alone and among others.
    """

    def __init__(self, norm: NativeNorm, linear: NativeLinear, threads: int = 1) -> None:
        kernels = library()
        kernels.sn_head_scratch.restype = ctypes.c_int64
        self._norm, self._linear, self._n_threads = norm, linear, threads
        self._threads = ThreadPool(threads)
        self._lock = threading.Lock()
        self._scratch = np.empty(kernels.sn_head_scratch(ctypes.byref(linear.struct)), np.uint8)
        self._forward = kernels.sn_head_forward
        self._forward.restype = None
        self._forward.argtypes = (
            ctypes.POINTER(SnLinear),
            ctypes.POINTER(SnNorm),
            ctypes.c_void_p,  # pool
            ctypes.c_void_p,  # x
            ctypes.c_int64,  # rows
            ctypes.c_void_p,  # logits
            ctypes.c_void_p,  # scratch
        )

        self._unpack = kernels.sn_unpack_int8
        self._unpack.restype = None
        self._unpack.argtypes = (ctypes.POINTER(SnLinear), ctypes.c_int64, ctypes.c_void_p)
        self._ids = np.empty(0, np.int32)
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

    def with_norm(self, norm: NativeNorm) -> NativeHead:
        """The same weights behind another norm."""
        return NativeHead(norm, self._linear, self._n_threads)

    def int8_row(self, row: int) -> np.ndarray:
        """A row of the head's weights, which are held in 8 bits: (1, hidden) float32."""
        out = np.empty((1, self._linear.struct.cols), np.float32)
        self._unpack(self._linear.struct, row, address(out))
        return out

    @staticmethod
    def refines(raw: RawTensor) -> bool:
        """Whether ``refine`` can read ``raw``."""
        return raw.qtype in _FILE_TYPES and raw.row_order is None and raw.stored.flags.c_contiguous

    def refine(
        self,
        scores: np.ndarray,
        x: np.ndarray,
        raw: RawTensor,
        bounds: np.ndarray,
        of_output: float,
        best: int,
        most: int,
    ) -> int:
        """What ``head.RefinedHead`` does to the logits of one row, in place: ``scores`` (vocab,) and ``x``
        (hidden,) float32, contiguous. Returns how many were computed from ``raw``."""
        vocab, cols = raw.shape
        if scores.shape != (vocab,) or bounds.shape != (vocab,) or x.shape != (cols,) or cols % 16:
            raise ValueError(f"{scores.shape} logits of {x.shape} for a head of {raw.shape}")
        exact = x.astype(np.float64)
        with self._lock:
            if len(self._ids) < vocab:
                self._ids = np.empty(vocab, np.int32)
            return self._refine(
                *(address(scores), vocab, address(bounds)),
                *(float(np.linalg.norm(x)), of_output, best, most),
                *(address(raw.stored), raw.stored.shape[1], _FILE_TYPES[raw.qtype]),
                *(address(exact), cols, address(self._ids), self._threads.handle),
            )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``x`` (T, hidden) float32 → (T, vocab) float32."""
        if x.dtype != np.float32 or x.shape[1] != self._linear.struct.cols:
            raise ValueError(
                f"hidden states {x.dtype} {x.shape} for a head of {self._linear.struct.cols} columns"
            )
        x = np.ascontiguousarray(x)
        logits = np.empty((len(x), self._linear.struct.rows), np.float32)
        with self._lock:
            self._forward(
                self._linear.struct,
                self._norm.struct,
                self._threads.handle,
                address(x),
                len(x),
                address(logits),
                address(self._scratch),
            )
        return logits
