"""A source whose quantized matrices are shown as the single tensors that they are."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import numpy as np

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ..qtypes import DENSE, Quantization
from ..raw_tensor import RawTensor
from ..tensors import TensorInfo, TensorSource
from .bitsandbytes import EightBits, FourBits
from .compressed_tensors import PackedFloats, PackedIntegers, PlainIntegers
from .float8 import ScaledFloat8
from .gptq import Awq, Gptq
from .mlx_affine import MlxAffine
from .mxfp4 import GptOssBlocks
from .parts import Format, Parts, sibling

_NONE = Quantization("")
_OWN_NAMES = {".qweight": ("gptq", "awq"), ".weight_packed": ("compressed-tensors",)}
"""Ends of names that stand in the place of ``.weight``, and who writes them."""
_SETTINGS = "of older checkpoints they are in quantize_config.json or quant_config.json"
_UNUSED = tuple(
    mark + end
    for end in (
        *("input_scale", "input_zero_point", "input_global_scale", "input_scale_ub", "output_scale"),
        *("activation_scale", "k_scale", "v_scale", "q_scale", "weight_format"),
    )
    for mark in "._"
)
"""Ends of names of tensors beside matrices that say how activations, keys and values would be rounded: we
round them less. And one that says that integers lie in rows, which is checked."""


def _formats(quantization: Quantization | None) -> tuple[Format, ...]:
    """Those that a file with these settings may have."""
    settings = quantization or _NONE
    always: tuple[Format, ...] = (GptOssBlocks(), MlxAffine())
    match settings.method:
        case "gptq":
            return (Gptq(settings), *always)
        case "awq":
            return (Awq(), *always)
        case "compressed-tensors":
            of_package = (PackedFloats(), PackedIntegers(settings), PlainIntegers(settings))
            return (*of_package, ScaledFloat8(settings), *always)
        case "fp8" | "fbgemm_fp8":
            return (ScaledFloat8(settings), *always)
        case "bitsandbytes":
            return (FourBits(), EightBits(), *always)
    return always


_ALL = (
    *(Gptq(_NONE), Awq(), PackedFloats(), PackedIntegers(_NONE), PlainIntegers(_NONE), ScaledFloat8(_NONE)),
    *(FourBits(), EightBits(), GptOssBlocks(), MlxAffine()),
)


def stored_parts(name: str, present: Container[str]) -> list[str]:
    """Those of the tensors ``present`` in files that make the one which plain checkpoints call ``name``:
    several, where a matrix is quantized. Each format says by names alone which these may be."""
    parts = dict.fromkeys((name, *(part for each in _ALL for part in each.stored(name))))
    return [part for part in parts if part in present]


def plain_names(names: Iterable[str]) -> Mapping[str, str]:
    """``names`` by what plain checkpoints call them."""
    found: dict[str, str] = {}
    for name in names:
        stem, dot, end = name.rpartition(".")
        found[f"{stem}.weight" if dot + end in _OWN_NAMES else name] = name
    return found


class QuantizedSource:
    """``matrices``: what is shown, each by the format that it is of. Everything else is passed on, but for
    ``hidden`` tensors."""

    def __init__(
        self, inner: TensorSource, matrices: Mapping[str, tuple[TensorInfo, Format]], hidden: Iterable[str]
    ) -> None:
        self._inner = inner
        self._matrices = matrices
        gone = {part for name, (_, format) in matrices.items() for part in format.stored(name)}
        biases = {sibling(name, "bias") for name in matrices}
        gone = (gone - biases) | set(hidden)
        self._empty_biases = frozenset(biases & set(hidden))
        self.manifest: Mapping[str, TensorInfo] = {
            **{name: info for name, info in inner.manifest.items() if name not in gone},
            **{name: info for name, (info, _) in matrices.items()},
        }

    def tensor(self, name: str) -> RawTensor:
        found = self._matrices.get(name)
        if found is None:
            return self._inner.tensor(name)
        bias = sibling(name, "bias")
        if bias in self._empty_biases and np.any(self._inner.tensor(bias).dequantize()):
            raise CheckpointError(
                f"tensor {bias} is not zero, but its model has no such bias",
                hint="Its configuration belongs to another model: download both again.",
            )
        info, format = found
        return format.tensor(info, self._inner)

    def release(self) -> None:
        self._inner.release()

    def close(self) -> None:
        self._inner.close()


def with_quantized(
    source: TensorSource,
    shapes: Mapping[str, tuple[int, ...]],
    quantization: Quantization | None,
    where: str,
) -> TensorSource:
    """``source``, with the quantized ones of the tensors that the model reads, which have ``shapes``, put
    together where it has any. Whether a matrix is quantized, its tensors say; no name is matched with what
    settings leave out. Reads no tensor.

    Raises CheckpointError for parts that do not belong together, or not to the settings;
    UnsupportedModelError for what cannot be read.
    """
    manifest, matrices = source.manifest, {}
    formats = _formats(quantization)
    for name, shape in shapes.items():
        if len(shape) < 2 or 0 in shape:
            continue
        parts = Parts(manifest, name, shape, quantization, where)
        for format in formats:
            info = format.found(parts)
            if info is not None:
                matrices[name] = (info, format)
                break
        else:
            _refuse_unsaid(parts, quantization)
    if not matrices:
        return source
    hidden = {name for name in manifest if name.endswith(_UNUSED)}
    if quantization is not None and quantization.method == "gptq":  # it writes biases that models do not have
        for name in matrices:
            bias = manifest.get(sibling(name, "bias"))
            if bias and bias.name not in shapes and bias.qtype in DENSE and bias.shape == shapes[name][:1]:
                hidden.add(bias.name)
    return QuantizedSource(source, matrices, hidden)


def _refuse_unsaid(parts: Parts, quantization: Quantization | None) -> None:
    """UnsupportedModelError for a matrix of a format that the configuration does not tell of."""
    stem = parts.name.removesuffix(".weight")
    for end, makers in _OWN_NAMES.items():
        if f"{stem}{end}" in parts.manifest:
            methods = " or ".join(f'"{maker}"' for maker in makers)
            told = f"of {quantization.method}" if quantization else "no quantization_config"
            raise UnsupportedModelError(
                f"{parts.where} has {stem}{end}, as {' or '.join(makers)} writes it, "
                f"but its config.json has {told}",
                hint=f"Put the settings ({_SETTINGS}) into config.json as quantization_config, with "
                f'"quant_method": {methods}.',
            )
