"""How weights are held on a device: what the person asked for, and what ``auto`` means.

``auto`` on CPU keeps the file's own precision and takes the fastest form that does: 4-bit files stay 4-bit
(packed without loss), 16-bit files 16-bit, float32 float32. Which forms are fast is measured, once a process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..swarm.errors import UsageError
from .quantize import GROUP, INT4_SOURCES

if TYPE_CHECKING:
    from .raw_tensor import RawTensor

DEVICES = ("cpu", "cuda", "mps")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZE = ("auto", "none", "int8", "int4")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """``device``: cpu, cuda, cuda:1, mps. ``dtype``: auto or a name in DTYPES. ``quantize``: one of QUANTIZE.

    Raises UsageError for anything else; whether the device is there is checked by ``resolve``.
    """

    device: str = "cpu"
    dtype: str = "auto"
    quantize: str = "auto"

    def __post_init__(self) -> None:
        kind, _, index = self.device.partition(":")
        if kind not in DEVICES or (":" in self.device and not index.isdecimal()):
            raise UsageError(
                f"unknown device {self.device!r}",
                hint=f"Choose from {', '.join(DEVICES)} (or cuda:1 and so on).",
            )
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}", hint=f"Choose from auto, {', '.join(DTYPES)}.")
        if self.quantize not in QUANTIZE:
            raise UsageError(
                f"unknown quantization {self.quantize!r}", hint=f"Choose from {', '.join(QUANTIZE)}."
            )


class Kind(StrEnum):
    """How one matrix is held."""

    DENSE = "dense"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class Plan:
    """``dtype``: activations, keys and values. ``wide``: what many rows of packed weights are computed in."""

    device: torch.device
    dtype: torch.dtype
    wide: torch.dtype
    options: LoadOptions

    @property
    def packed(self) -> bool:
        """The packed kernels are CPU kernels; elsewhere quantized values are held dense."""
        return self.device.type == "cpu"

    def kind(self, tensor: RawTensor) -> Kind:
        """How to hold the matrix ``tensor`` (rows, cols)."""
        wanted = self.options.quantize
        groups = tensor.shape[-1] % GROUP == 0
        if wanted == "none":
            return Kind.DENSE
        if wanted == "int4" and groups:
            return Kind.INT4
        if wanted in ("int4", "int8"):
            return Kind.INT8
        if tensor.qtype in INT4_SOURCES and self.packed and groups and cpu_speeds().int4_pays:
            return Kind.INT4
        return Kind.DENSE

    def dense_dtype(self, qtype: str) -> torch.dtype:
        """What a dense matrix from a file's ``qtype`` is held in."""
        if self.options.dtype != "auto":
            return DTYPES[self.options.dtype]
        if self.device.type != "cpu":
            return self.dtype
        # float16 products overflow where bfloat16-trained models have large activations, so F16 widens.
        exact = qtype in ("F32", "F16") or (self.options.quantize == "none" and qtype != "BF16")
        return torch.float32 if exact or not cpu_speeds().bf16_pays else torch.bfloat16


def resolve(options: LoadOptions, native_dtype: str) -> Plan:
    """Settle ``auto`` for a file of mainly ``native_dtype``. UsageError if there is no such device."""
    device = resolve_device(options.device)
    if options.dtype != "auto":
        dtype = DTYPES[options.dtype]
    elif device.type == "cpu":
        dtype = torch.float32  # activations are small; float32 costs nothing beside the weights
    else:
        dtype = {"F32": torch.float32, "F16": torch.float16}.get(native_dtype, torch.bfloat16)
    wide = torch.float32
    if device.type == "cpu" and options.dtype != "float32" and cpu_speeds().wide_bf16:
        wide = torch.bfloat16
    return Plan(device, dtype, wide, options)


def resolve_device(name: str) -> torch.device:
    """UsageError naming what this machine has, if it has no such device."""
    available = ["cpu"]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available += ["cuda", *(f"cuda:{i}" for i in range(1, count))] if count else []
    if torch.backends.mps.is_available():
        available.append("mps")
    device = torch.device(name)
    if device.type not in available or (device.type == "cuda" and (device.index or 0) >= count):
        raise UsageError(
            f"this machine has no device {name!r}", hint=f"Available here: {', '.join(available)}."
        )
    return device


@dataclass(frozen=True, slots=True)
class CpuSpeeds:
    """What pays on this CPU. Ratios of measured times, so that the clock does not matter.

    ``int4_pays``: the packed int4 kernel is vectorised here. ``bf16_pays``: so is bfloat16 for one row.
    ``wide_bf16``: bfloat16 beats float32 for many rows (AMX and the like).
    """

    int4_pays: bool
    bf16_pays: bool
    wide_bf16: bool


_SIZE = 1024
_WIDE_ROWS = 64
_REPEATS = 12
# Half and a quarter of the bytes are worth some time, and where a kernel has no vector code for this CPU it
# loses by ten times and more. So wide margins, which other processes' noise does not cross.
_INT4_MARGIN = 2.0
_BF16_MARGIN = 2.0
_WIDE_MARGIN = 1 / 1.4
"""bfloat16 rounds the inputs, so for many rows it must be clearly faster to be taken."""


@cache
def cpu_speeds() -> CpuSpeeds:
    """Measured once a process, on one thread and 1024x1024 matrices: about 50 ms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread that has to wait for another process would be all we measure
    try:
        with torch.inference_mode():
            single = torch.randn(_SIZE, _SIZE)
            half = single.to(torch.bfloat16)
            q = torch.ones(_SIZE, _SIZE, dtype=torch.int32)
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
            scales = torch.ones(_SIZE // GROUP, _SIZE, 2, dtype=torch.bfloat16)
            row, half_row = single[:1].clone(), half[:1].clone()
            one_single = _best(lambda: F.linear(row, single))
            one_half = _best(lambda: F.linear(half_row, half))
            one_int4 = _best(
                lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(half_row, packed, GROUP, scales)
            )
            many_single = _best(lambda: F.linear(single[:_WIDE_ROWS], single))
            many_half = _best(lambda: F.linear(half[:_WIDE_ROWS], half))
    finally:
        torch.set_num_threads(threads)
    return CpuSpeeds(
        int4_pays=one_int4 < min(one_single, one_half) * _INT4_MARGIN,
        bf16_pays=one_half < one_single * _BF16_MARGIN,
        wide_bf16=many_half < many_single * _WIDE_MARGIN,
    )


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs: what other processes do to the rest is not the CPU's speed."""
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
