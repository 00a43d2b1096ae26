"""From a checkpoint's tensors to linears on MLX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np

from ...swarm.errors import UsageError
from ..formats.floats import narrow, widen
from ..formats.qtypes import AFFINE_BITS, AFFINE_GROUPS
from ..formats.quantized.tensor import QuantizedTensor
from ..formats.raw_tensor import RawTensor, check_exponents
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
from ..models.load_plan import NEVER_ROUNDED, LoadOptions
from ..models.weight_loader import TensorReader, check_shape, in_pieces, whole
from .experts import MlxExperts
from .tensors.device import evaluated, on_gpu, stacked
from .tensors.linear import (
    DenseLinear,
    DenseLinears,
    ExpertLinears,
    GroupedLinear,
    Groups,
    MlxLinear,
    StackedLinear,
)
from .tensors.norm import MlxNorm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.blocks.experts import ExpertsConfig
    from ..formats.blocks.norm import NormConfig

    Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MlxPlan:
    """``dtype``: activations, and what dense matrices are held in. ``scales``: the type of scales where the
    file's have no exact place in ``dtype``; ``wide``: all scales are of that type."""

    dtype: str
    quantize: str
    scales: str
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
            dtype = options.dtype
        elif on_gpu():
            dtype = {"F32": "float32", "F16": "float16"}.get(native_dtype, "bfloat16")
        else:
            dtype = "float32"
        exact = options.dtype == "auto" or not on_gpu()
        # MLX's quantized products on a CPU are some per cent off in 16 bits, and right in float32.
        return MlxPlan(dtype, options.quantize, "float32" if exact else dtype, not on_gpu())


class _Layout(NamedTuple):
    """How MLX lays out a matrix: numbers of so many ``bits``, ``group`` of which share a scale. ``mode`` is
    MLX's name for what they are: "affine" ones are integers and have a bias too."""

    bits: int
    group: int
    mode: str = "affine"


class _Grouped(NamedTuple):
    """A matrix in MLX's layout: ``packed`` uint32 (rows, cols * bits / 32), ``scales`` and ``biases`` float32
    (rows, cols / group); of mode "mxfp4" scales are exponents, uint8. ``form``: its name, for people.
    """

    packed: np.ndarray
    scales: np.ndarray
    biases: Floats | None
    form: str


class MlxLoader(TensorReader[MlxPlan]):
    """Reads tensors as ``plan`` says, each evaluated when it is returned: other threads will use them."""

    def norm(self, name: str, norm: NormConfig, size: int) -> MlxNorm:
        weight = self._place(self._norm_weight(name, norm, size)) if norm.weighted else None
        bias = self._place(self.vector(f"{name}.bias", size)) if norm.bias else None
        return MlxNorm(norm, weight, bias)

    def linear(self, names: Sequence[str], sizes: Sequence[int], cols: int) -> MlxLinear:
        """One linear of the named weights stacked (``sizes[i]`` rows each, without ``.weight``)."""
        raws = self._matrices(names, sizes, cols)
        bias = self._bias(names, sizes)
        layouts = [self._layout(raw) for raw in raws]
        if len(set(layouts)) == 1:
            return self._alike(raws, layouts[0], bias)
        biases = [None] * len(raws) if bias is None else np.split(bias, np.cumsum(sizes)[:-1])
        return StackedLinear(
            [self._alike([raw], layout, own) for raw, layout, own in zip(raws, layouts, biases, strict=True)]
        )

    def heads(self, name: str, heads: int, cols: int) -> DenseLinears:
        """Held dense: they are a small part of a model."""
        raw = self._checkpoint.tensor(f"{name}.weight")
        check_shape(raw, (raw.shape[0] // heads * heads, cols))
        linear = self._dense([raw], None, self.plan.dtype)
        self.nbytes += linear.nbytes
        return linear.parts(heads)

    def experts(self, prefix: str, experts: ExpertsConfig, hidden: int) -> MlxExperts:
        inner, numbers = experts.mlp.inner, range(experts.count)
        first = ("gate_proj", "up_proj") if experts.mlp.gated else ("up_proj",)
        gate_up = [f"{prefix}.{number}.{part}" for number in numbers for part in first]
        down = [f"{prefix}.{number}.down_proj" for number in numbers]
        return MlxExperts(
            experts,
            self._expert_linears(gate_up, inner, hidden, experts.count),
            self._expert_linears(down, hidden, inner, experts.count),
        )

    def _expert_linears(self, names: Sequence[str], rows: int, cols: int, count: int) -> ExpertLinears:
        """The named matrices, ``rows`` each, as ``count`` linears. Held dense unless all have one layout."""
        sizes = [rows] * len(names)
        raws = self._matrices(names, sizes, cols)
        layouts = {self._layout(raw) for raw in raws}
        # MLX's CPU build has gathered products of float32 alone.
        dtype = "float32" if self.plan.wide else self.plan.dtype
        layout = layouts.pop() if len(layouts) == 1 else None
        return self._alike(raws, layout, self._bias(names, sizes), dtype).parts(count)

    def _alike(
        self, raws: Sequence[RawTensor], layout: _Layout | None, bias: Floats | None, dtype: str | None = None
    ) -> DenseLinear | GroupedLinear:
        """One linear of matrices one below the other. Without ``layout`` dense: of type ``dtype``, or that of
        activations."""
        linear: DenseLinear | GroupedLinear
        if layout is None:
            linear = self._dense(raws, bias, dtype or self.plan.dtype)
        else:
            linear = self._integers(raws, layout, bias)
        self.nbytes += linear.nbytes
        return linear

    def _dense(self, raws: Sequence[RawTensor], bias: Floats | None, dtype: str) -> DenseLinear:
        def values() -> Iterator[np.ndarray]:
            for raw in raws:
                yield raw.dequantize(dtype)
                self._count(dtype, [raw])
                self._read(raw)

        return DenseLinear(stacked(values(), _rows(raws), dtype), self._place(bias))

    def _integers(self, raws: Sequence[RawTensor], layout: _Layout, bias: Floats | None) -> GroupedLinear:
        factors: list[tuple[np.ndarray, Floats | None]] = []

        def integers() -> Iterator[np.ndarray]:
            for raw in raws:
                part = self._grouped(raw)
                factors.append((part.scales, part.biases))
                yield part.packed
                self._count(part.form, [raw])
                self._read(raw)

        packed = stacked(integers(), _rows(raws), "uint32")
        scales = np.concatenate([scales for scales, _ in factors])
        own = [biases for _, biases in factors if biases is not None]
        if not own:
            exponents = mx.array(scales)
            mx.eval(exponents)
            return GroupedLinear(Groups(packed, exponents, None, *layout), self._place(bias))
        biases, dtype = np.concatenate(own), self.plan.dtype
        if self.plan.wide or not (_fits(scales, dtype) and _fits(biases, dtype)):
            dtype = self.plan.scales
        weight = Groups(packed, evaluated(scales, dtype), evaluated(biases, dtype), *layout)
        return GroupedLinear(weight, self._place(bias))

    def _place(self, bias: Floats | None) -> mx.array | None:
        if bias is None:
            return None
        array = evaluated(bias, self.plan.dtype)
        self.nbytes += array.nbytes
        return array

    def _layout(self, raw: RawTensor) -> _Layout | None:
        """How the matrix is held; None: dense."""
        wanted, bits = self._quantize(raw), _file_bits(raw)
        if wanted == "none" or raw.cols % GROUP:
            return None
        if bits and wanted in ("auto", f"int{bits}"):
            mode = "mxfp4" if raw.qtype == "MXFP4" else "affine"
            return _Layout(bits, _file_group(raw), mode)
        return None if wanted == "auto" else _Layout(4 if wanted == "int4" else 8, GROUP)

    def _quantize(self, raw: RawTensor) -> str:
        """``plan.quantize`` for this matrix."""
        wanted = self.plan.quantize
        return "auto" if wanted != "none" and raw.name.endswith(NEVER_ROUNDED) else wanted

    def _grouped(self, raw: RawTensor) -> _Grouped:
        """A matrix that has a layout, in it."""
        wanted, bits = self._quantize(raw), _file_bits(raw)
        if bits and wanted in ("auto", f"int{bits}"):
            return _as_in_file(raw)
        if wanted == "int4":
            return _int4(whole(in_pieces(to_int4, raw, self._threads)), "int4")
        return _int8(whole(in_pieces(to_int8_groups, raw, self._threads)), "int8")


def _rows(raws: Sequence[RawTensor]) -> int:
    return sum(raw.shape[0] for raw in raws)


def _file_bits(raw: RawTensor) -> int:
    """Bits of the numbers that MLX's layout can hold as they are; 0 for other forms."""
    if isinstance(raw, QuantizedTensor):
        integers = raw.integers
        fits = integers is not None and integers.group % GROUP == 0
        return integers.bits if integers and fits and integers.bits in AFFINE_BITS else 0
    return 4 if raw.qtype in (*INT4_SOURCES, "MXFP4") else 8 if raw.qtype in INT8_SOURCES else 0


def _file_group(raw: RawTensor) -> int:
    """Columns of a group in MLX's layout: the most that it has, and that share a scale in the file."""
    integers = raw.integers if isinstance(raw, QuantizedTensor) else None
    if integers is None:
        return GROUP
    return max(group for group in AFFINE_GROUPS if integers.group % group == 0)


def _as_in_file(raw: RawTensor) -> _Grouped:
    """The matrix without loss: integers stay, and scales become float32."""
    if isinstance(raw, QuantizedTensor):
        _, scale, minimum, _ = raw.groups()
        times = raw.cols // _file_group(raw) // scale.shape[1]
        packed = np.ascontiguousarray(raw.packed()).view(np.uint32)
        bits = _file_bits(raw)
        return _Grouped(packed, scale.repeat(times, 1), minimum.repeat(times, 1), f"int{bits} ({raw.qtype})")
    if raw.qtype == "MXFP4":
        return _fp4(raw)
    if raw.qtype in INT4_SOURCES:
        return _int4(file_groups(raw), f"int4 ({raw.qtype})")
    return _int8(file_int8_groups(raw), f"int8 ({raw.qtype})")


def _fp4(raw: RawTensor) -> _Grouped:
    """A group is a byte with its exponent and 16 with two floats of four bits each, which lie 16 apart."""
    check_exponents(raw.name, raw.qtype, data := raw.data)
    groups = data.reshape(raw.shape[0], -1, 17)
    q = np.concatenate((groups[..., 1:] & 15, groups[..., 1:] >> 4), axis=-1).reshape(raw.shape)
    return _Grouped(_nibbles(q), groups[..., 0], None, f"fp4 ({raw.qtype})")


def _int4(groups: Int4Groups, form: str) -> _Grouped:
    return _Grouped(_nibbles(groups.q), groups.scale, groups.minimum, form)


def _nibbles(q: np.ndarray) -> np.ndarray:
    """Numbers of four bits, uint8 (rows, cols), in words of eight: the first in the lowest bits."""
    return np.ascontiguousarray(q[:, ::2] | q[:, 1::2] << 4).view(np.uint32)


def _int8(groups: Int8Groups, form: str) -> _Grouped:
    """MLX's integers begin at 0: these are moved up by 128, which the bias takes back."""
    packed = np.ascontiguousarray(groups.q).view(np.uint8) ^ 128
    return _Grouped(packed.view(np.uint32), groups.scale, groups.scale * np.float32(-128), form)


def _fits(x: Floats, dtype: str) -> bool:
    """Whether ``x`` has its exact values in ``dtype``."""
    return np.array_equal(widen(narrow(x, dtype), dtype), x)
