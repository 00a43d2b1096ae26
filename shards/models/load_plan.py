"""How weights are held on a device: what the person asked for, and what ``auto`` means.

``auto`` on CPU keeps the file's own precision and takes the fastest form that does: 4-bit and 8-bit files
stay so (packed without loss), 16-bit files 16-bit, float32 float32. What is fast is measured, once a machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ...swarm.errors import UsageError
from ...swarm.runtime.c_build import NativeUnavailableError
from ..kernels.bench import PRECISION_NAMES
from ..kernels.library import library
from ..kernels.linear import ActivationPrecision
from ..kernels.table import kernel_table
from ..layers.quantize import GROUP, INT4_SOURCES, OWN_FORM
from .devices import CONCRETE, resolve_device

if TYPE_CHECKING:
    from ..formats.raw_tensor import RawTensor

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZE = ("auto", "none", "int8", "int4")
KERNELS = ("auto", "native", "fast", "torch")


NEVER_ROUNDED = (
    ".mlp.router.weight",
    ".mlp.shared_expert_gate.weight",
    ".self_attn.indexer.weights_proj.weight",
)
"""Ends of names of matrices that ``quantize`` leaves as they are: small, and what is chosen hangs on them."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """``device``: cpu, cuda, cuda:1, mps, mlx (for blocks). ``dtype``: auto or a name in DTYPES.
    ``quantize``: one of QUANTIZE.

    ``kernels``, on the CPU: ``auto`` takes our C kernels where they pay, ``native`` and ``torch`` force one
    side. ``fast`` is ``native`` with activations rounded to 8 bits in groups of 32: up to twice as fast for
    many rows, at a measured KL divergence of 3e-3 (SmolLM2), which is why it is never chosen by itself.
    ``deterministic``: only arithmetic that gives a row the same bits in any batch and cut into any chunks.
    The C kernels are of that kind, so ``auto`` takes them wherever they can run; elsewhere see ``rowwise``.
    Raises UsageError for anything else; whether the device is there is checked by ``resolve``.
    """

    device: str = "cpu"
    dtype: str = "auto"
    quantize: str = "auto"
    kernels: str = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        kind, _, index = self.device.partition(":")
        if kind not in CONCRETE or (":" in self.device and not index.isdecimal()):
            raise UsageError(
                f"unknown device {self.device!r}",
                hint=f"Choose from {', '.join(CONCRETE)} (or cuda:1 and so on).",
            )
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}", hint=f"Choose from auto, {', '.join(DTYPES)}.")
        if self.quantize not in QUANTIZE:
            raise UsageError(
                f"unknown quantization {self.quantize!r}", hint=f"Choose from {', '.join(QUANTIZE)}."
            )
        if self.kernels not in KERNELS:
            raise UsageError(
                f"unknown choice of kernels {self.kernels!r}", hint=f"Choose from {', '.join(KERNELS)}."
            )


class WeightKind(StrEnum):
    """How one matrix is held."""

    DENSE = "dense"
    INT8 = "int8"
    INT6 = "int6"
    INT5 = "int5"
    INT4 = "int4"
    INT3 = "int3"
    INT2 = "int2"
    FLOAT8 = "float8"


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """``device``: as ``LoadOptions.device``. ``dtype``: of activations, a name in DTYPES.

    ``precision``: how the C kernels hold activations; None where only torch's kernels can be used.
    ``reason``: why that is so; "" where torch was asked for.
    """

    device: str
    dtype: str
    options: LoadOptions
    precision: ActivationPrecision | None = None
    reason: str = ""

    @property
    def packed(self) -> bool:
        """The packed kernels are CPU kernels; elsewhere quantized values are held dense."""
        return self.device == "cpu"

    @property
    def wide(self) -> str:
        """The type that torch computes many rows of packed weights in."""
        fits = self.packed and self.options.dtype != "float32"
        return "bfloat16" if fits and kernel_table().wide_bf16 else "float32"

    def native(self, form: str) -> bool:
        """Whether the C kernels multiply by weights held in ``form``: see ``form``."""
        if self.precision is None:
            return False
        if self.options.deterministic or self.options.kernels != "auto":
            return True
        return kernel_table().native_pays(form, PRECISION_NAMES[self.precision])

    def form(self, raws: Sequence[RawTensor], kind: WeightKind | None = None) -> str:
        """How matrices that are stacked into one are held alike: "int4", "int6" …, or a name in DTYPES.
        ``kind`` None: as the least compressible of them needs, so mixed files lose nothing."""
        kinds = {self.kind(raw) for raw in raws} if kind is None else {kind}
        kind = kinds.pop() if len(kinds) == 1 else WeightKind.DENSE
        if kind is not WeightKind.DENSE and (raws[0].cols % GROUP == 0 or kind is WeightKind.FLOAT8):
            return kind.value
        dtypes = {self.dense_dtype(raw.qtype) for raw in raws}
        return dtypes.pop() if len(dtypes) == 1 else "float32"

    def forms(self, raws: Sequence[RawTensor], kind: WeightKind | None = None) -> list[str]:
        """How the C kernels hold each of them: a stack may be of several forms."""
        return [self.form([raw], kind) for raw in raws]

    def kind(self, tensor: RawTensor) -> WeightKind:
        """How to hold the matrix ``tensor`` (rows, cols)."""
        wanted, own = self.options.quantize, OWN_FORM.get(tensor.qtype)
        fits = tensor.cols % GROUP == 0
        if wanted == "none" or not (fits or own == WeightKind.FLOAT8):
            return WeightKind.DENSE
        as_in_file = wanted == "auto" or tensor.name.endswith(NEVER_ROUNDED)
        if own is not None and (as_in_file or wanted == own) and self.native(own):
            return WeightKind(own)
        if not fits:
            return WeightKind.DENSE
        if not as_in_file:
            return WeightKind(wanted)
        # torch's packed int8 kernel has one scale a row: a file's groups would be rounded again.
        torch_int4 = self.packed and tensor.qtype in INT4_SOURCES and kernel_table().torch_int4_pays
        return WeightKind.INT4 if torch_int4 else WeightKind.DENSE

    def dense_dtype(self, qtype: str) -> str:
        """What a dense matrix from a file's ``qtype`` is held in."""
        if self.options.dtype != "auto":
            return self.options.dtype
        if not self.packed:
            return self.dtype
        if qtype == "F16" and self.options.quantize == "auto" and self.native("float16"):
            return "float16"
        # torch's float16 products overflow where bfloat16-trained models have large activations: F16 widens.
        if qtype in ("F32", "F16") or (self.options.quantize == "none" and qtype != "BF16"):
            return "float32"
        pays = self.native("bfloat16") or kernel_table().torch_bf16_pays
        return "bfloat16" if pays else "float32"


def resolve(options: LoadOptions, native_dtype: str) -> LoadPlan:
    """Settle ``auto`` for a file of mainly ``native_dtype``. UsageError if there is no such device."""
    device = resolve_device(options.device)
    if options.dtype != "auto":
        dtype = options.dtype
    elif device == "cpu":
        dtype = "float32"  # activations are small; float32 costs nothing beside the weights
    else:
        dtype = {"F32": "float32", "F16": "float16"}.get(native_dtype, "bfloat16")
    return LoadPlan(device, dtype, options, *_precision(options, device, dtype))


def _precision(options: LoadOptions, device: str, dtype: str) -> tuple[ActivationPrecision | None, str]:
    """``LoadPlan.precision`` and ``reason``. UsageError if kernels are asked for that cannot run."""
    problem = ""
    if device != "cpu" or dtype != "float32":
        problem = "they compute in float32 on the CPU"
    elif options.kernels != "torch":
        try:
            library()
        except NativeUnavailableError as error:
            problem = str(error)
    if problem and options.kernels in ("native", "fast"):
        raise UsageError(f"the native kernels cannot be used: {problem}", hint="Use --kernels auto.")
    if problem or options.kernels == "torch":
        return None, problem
    if options.kernels == "fast":
        return ActivationPrecision.FAST, ""
    # Two bytes: KL 6e-8 against float32 (SmolLM2), and a quarter faster than three.
    return (ActivationPrecision.EXACT if options.dtype == "float32" else ActivationPrecision.CLOSE), ""
