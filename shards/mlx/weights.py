"""From a checkpoint's tensors to linears on MLX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np
import torch
from torch import Tensor

from ...swarm.errors import UsageError
from ..formats.hf.mlx_affine import AffineTensor
from ..formats.raw_tensor import RawTensor
from ..layers.quantize import (
    GROUP,
    INT4_SOURCES,
    INT8_SOURCES,
    Int4Groups,
    Int8Groups,
    file_groups,
    file_int8_groups,
    to_int4,
    to_int8_groups,
)
from ..models.load_plan import DTYPES as TORCH_DTYPES
from ..models.load_plan import LoadOptions
from ..models.weight_loader import TensorReader, check_shape, in_pieces, tensor_of, whole
from .device import on_gpu, to_mlx
from .linear import DenseLinear, GroupedLinear, MlxLinear, StackedLinear

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..models.weight_loader import Progress


@dataclass(frozen=True, slots=True)
class MlxPlan:
    """``dtype``: activations, and what dense matrices are held in. ``scales``: the type of scales where the
    file's have no exact place in ``dtype``; ``wide``: all scales are of that type."""

    dtype: torch.dtype
    quantize: str
    scales: torch.dtype
    wide: bool

    @staticmethod
    def resolve(options: LoadOptions, native_dtype: str) -> MlxPlan:
        """Settle ``auto``: on a GPU 16 bits unless the file has 32, and scales that lose nothing; on a CPU
        float32. UsageError for what MLX cannot do."""
        if options.deterministic:
            raise UsageError(
                "--deterministic does not hold on MLX: its kernels sum in another order for other batches",
                hint="Use --device cpu.",
            )
        if options.kernels != "auto":
            raise UsageError(
                f"--kernels {options.kernels} is a choice for the CPU", hint="Leave it out with --device mlx."
            )
        if options.dtype != "auto":
            dtype = TORCH_DTYPES[options.dtype]
        elif on_gpu():
            dtype = {"F32": torch.float32, "F16": torch.float16}.get(native_dtype, torch.bfloat16)
        else:
            dtype = torch.float32
        exact = options.dtype == "auto" or not on_gpu()
        # MLX's quantized products on a CPU are some per cent off in 16 bits, and right in float32.
        return MlxPlan(dtype, options.quantize, torch.float32 if exact else dtype, not on_gpu())


class _Grouped(NamedTuple):
    """A matrix in MLX's layout: ``packed`` uint32 (rows, cols * bits / 32), ``scales`` and ``biases`` float32
    (rows, cols / group).
    """

    packed: np.ndarray
    scales: Tensor
    biases: Tensor
    bits: int
    group: int
    form: str


class MlxLoader(TensorReader):
    """Reads tensors as ``plan`` says, each evaluated when it is returned: other threads will use them."""

    def __init__(
        self, checkpoint: Checkpoint, plan: MlxPlan, total_bytes: int = 0, progress: Progress | None = None
    ) -> None:
        super().__init__(checkpoint, total_bytes, progress)
        self.plan = plan

    def norm(self, name: str, size: int) -> mx.array:
        """The weight of an RMSNorm."""
        raw = self._checkpoint.tensor(name)
        check_shape(raw, (size,))
        weight = _evaluated(tensor_of(raw, self.plan.dtype))
        self.nbytes += weight.nbytes
        self._read(raw)
        return weight

    def linear(self, names: Sequence[str], sizes: Sequence[int], cols: int) -> MlxLinear:
        """One linear of the named weights stacked (``sizes[i]`` rows each, without ``.weight``)."""
        raws = self._matrices(names, sizes, cols)
        bias = self._bias(names, sizes)
        held = [self._grouped(raw) for raw in raws]
        linear: MlxLinear
        if all(part is None for part in held):
            linear = self._dense(raws, bias)
        elif len({part and (part.bits, part.group) for part in held}) == 1:
            linear = self._hold([part for part in held if part is not None], bias)
        else:
            biases = [None] * len(raws) if bias is None else list(bias.split(list(sizes)))
            linear = StackedLinear(
                [
                    self._dense([raw], own) if part is None else self._hold([part], own)
                    for raw, part, own in zip(raws, held, biases, strict=True)
                ]
            )
        for raw, part in zip(raws, held, strict=True):
            self._count(str(self.plan.dtype).removeprefix("torch.") if part is None else part.form, [raw])
            self._read(raw)
        self.nbytes += linear.nbytes
        return linear

    def _dense(self, raws: Sequence[RawTensor], bias: Tensor | None) -> DenseLinear:
        weight = _evaluated(torch.cat([tensor_of(raw, self.plan.dtype) for raw in raws]))
        return DenseLinear(weight, self._place(bias))

    def _hold(self, parts: Sequence[_Grouped], bias: Tensor | None) -> GroupedLinear:
        packed = mx.array(np.concatenate([part.packed for part in parts]))
        mx.eval(packed)
        scales = torch.cat([part.scales for part in parts])
        biases = torch.cat([part.biases for part in parts])
        dtype = self.plan.dtype
        if self.plan.wide or not (_fits(scales, dtype) and _fits(biases, dtype)):
            dtype = self.plan.scales
        return GroupedLinear(
            *(packed, _evaluated(scales.to(dtype)), _evaluated(biases.to(dtype))),
            bits=parts[0].bits,
            group=parts[0].group,
            bias=self._place(bias),
        )

    def _place(self, bias: Tensor | None) -> mx.array | None:
        if bias is None:
            return None
        array = _evaluated(bias.to(self.plan.dtype))
        self.nbytes += array.nbytes
        return array

    def _grouped(self, raw: RawTensor) -> _Grouped | None:
        """The matrix as integers in groups; None where it is to be dense."""
        wanted, bits = self.plan.quantize, _file_bits(raw)
        if wanted == "none" or raw.cols % GROUP:
            return None
        if bits and wanted in ("auto", f"int{bits}"):
            return _as_in_file(raw)
        if wanted == "auto":
            return None
        if wanted == "int4":
            return _int4(whole(in_pieces(to_int4, raw)), "int4")
        return _int8(whole(in_pieces(to_int8_groups, raw)), "int8")


def _file_bits(raw: RawTensor) -> int:
    """Bits of the integers that MLX's layout can hold as they are; 0 for other forms."""
    if isinstance(raw, AffineTensor):
        return raw.bits
    return 4 if raw.qtype in INT4_SOURCES else 8 if raw.qtype in INT8_SOURCES else 0


def _as_in_file(raw: RawTensor) -> _Grouped:
    """The matrix without loss: integers stay, and scales become float32."""
    if isinstance(raw, AffineTensor):
        return _Grouped(
            np.ascontiguousarray(raw.stored).view(np.uint32),
            torch.from_numpy(raw.scales.dequantize()),
            torch.from_numpy(raw.biases.dequantize()),
            raw.bits,
            raw.group,
            f"int{raw.bits} ({raw.qtype})",
        )
    if raw.qtype in INT4_SOURCES:
        return _int4(file_groups(raw), f"int4 ({raw.qtype})")
    return _int8(file_int8_groups(raw), f"int8 ({raw.qtype})")


def _int4(groups: Int4Groups, form: str) -> _Grouped:
    q = groups.q.numpy()
    packed = np.ascontiguousarray(q[:, ::2] | q[:, 1::2] << 4)  # the first integer in the low bits
    return _Grouped(packed.view(np.uint32), groups.scale, groups.minimum, 4, GROUP, form)


def _int8(groups: Int8Groups, form: str) -> _Grouped:
    """MLX's integers begin at 0: these are moved up by 128, which the bias takes back."""
    packed = np.ascontiguousarray(groups.q.numpy()).view(np.uint8) ^ 128
    return _Grouped(packed.view(np.uint32), groups.scale, groups.scale * -128.0, 8, GROUP, form)


def _fits(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether ``x`` has its exact values in ``dtype``."""
    return torch.equal(x.to(dtype).float(), x.float())


def _evaluated(x: Tensor) -> mx.array:
    array = to_mlx(x)
    mx.eval(array)
    return array
