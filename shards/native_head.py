"""Final norm and output head as one call into C (``csrc/head.c``)."""

from __future__ import annotations

import ctypes
import threading

import torch
from torch import Tensor

from .native_library import library
from .native_linear import NativeLinear, SnLinear
from .native_threads import ThreadPool
from .norm import RmsNorm


class NativeHead:
    """For float32 hidden states on the CPU. May be called from any thread: calls take turns.

    A row's logits are the same bits alone and among others.
    """

    __slots__ = ("_forward", "_linear", "_lock", "_norm", "_scratch", "_threads")

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
