"""Matrices of the package compressed-tensors, which llm-compressor writes.

- ``pack-quantized``: ``X.weight_packed``, integers of a row as one string of bits in words of 32, the lowest
  first; ``X.weight_scale``; ``X.weight_shape``; unless symmetric ``X.weight_zero_point``, packed down a
  column (or plain, of eight bits); where groups are not neighbours ``X.weight_g_idx``.
- ``int-quantized``: ``X.weight``, integers of eight bits, and ``X.weight_scale``.
- ``mxfp4-pack-quantized`` and ``nvfp4-pack-quantized``: ``X.weight_packed``, two values a byte, and
  ``X.weight_scale``, of nvfp4 divided by ``X.weight_global_scale``.
- ``float-quantized``, ``mxfp8-quantized``: see ``float8``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ....swarm.errors import CheckpointError
from ..qtypes import MIXED, ZEROS, Quantization, code_qtype, groups_of, integer_qtype
from ..raw_tensor import RawTensor
from ..tensors import TensorInfo, TensorSource
from .codes import E2M1, Codes
from .float8 import E4M3
from .gptq import groups_of_columns, may_tell_groups
from .mxfp4 import GROUP, mxfp4_tensor
from .parts import OF_ANOTHER, Parts, sibling
from .scales import EXPONENTS, SCALE_TYPES, scales, scheme_of, whole_floats, whole_integers
from .tensor import Integers, quantized, signed_bytes, unpacked, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .tensor import Floats, Rows

_NVFP4_GROUP = 16


@dataclass(frozen=True, slots=True)
class PackedIntegers:
    """A ``Format``: ``pack-quantized``."""

    settings: Quantization

    def stored(self, name: str) -> tuple[str, ...]:
        suffixes = ("packed", "scale", "shape", "zero_point", "g_idx")
        return tuple(sibling(name, f"weight_{suffix}") for suffix in suffixes)

    def found(self, parts: Parts) -> TensorInfo | None:
        packed_name, scale_name, _, zeros_name, index_name = self.stored(parts.name)
        packed, zeros, index = map(parts.get, (packed_name, zeros_name, index_name))
        if packed is None or packed.qtype == "U8":
            return None
        scale = parts.need(scale_name, packed_name)
        rows, cols = parts.rows, parts.cols
        bits = next((bits for bits in range(2, 9) if packed.shape[-1:] == (-(-cols * bits // 32),)), 0)
        scheme = scheme_of(parts.shape, scale.shape, bits, self.settings.schemes)
        if scheme is None or packed.qtype != "I32" or scale.qtype not in SCALE_TYPES:
            raise parts.misfit(packed, scale, zeros, index)
        groups = groups_of(cols, scheme.group)
        sound = (
            packed.shape[:-1] == parts.shape[:-1] == (rows,)
            and cols % max(1, scheme.group) == 0
            and may_tell_groups(index, cols)
            and (
                zeros is None
                or (zeros.qtype == "I32" and zeros.shape == (-(-rows * bits // 32), groups))
                or (zeros.qtype == "I8" and zeros.shape == (rows, groups))
            )
        )
        if not sound:
            raise parts.misfit(packed, scale, zeros, index)
        end = MIXED if index is not None else ZEROS if zeros is not None and bits == 8 else ""
        return parts.matrix(
            integer_qtype(bits, scheme.group, end), packed, scale, zeros, index, scheme=scheme
        )

    def tensor(self, info: TensorInfo, source: TensorSource) -> RawTensor:
        packed_name, scale_name, shape_name, zeros_name, index_name = self.stored(info.name)
        packed, scale = source.tensor(packed_name), source.tensor(scale_name)
        if shape_name in source.manifest:
            _check_shape(source.tensor(shape_name), info)
        cols, bits = info.shape[-1], int(info.qtype[3])
        held, group = scales(scale, info.shape, bits, self.settings.schemes)
        group_of = groups_of_columns(index_name, source, groups_of(cols, group), info)
        zero: NDArray[np.int16] | int = 1 << bits - 1
        if zeros_name in source.manifest:
            zero = _zeros(source.tensor(zeros_name), info.shape[0], bits)
        stored = packed.stored
        numbers = Integers(
            *(bits, group or cols, lambda rows: np.ascontiguousarray(stored[rows])),
            scale=held,
            zero=zero,
            group_of=group_of,
        )
        qtype = info.qtype if group_of is not None else info.qtype.removesuffix(MIXED)
        return quantized(info.name, info.shape, qtype, numbers, packed)


@dataclass(frozen=True, slots=True)
class PlainIntegers:
    """A ``Format``: ``int-quantized``."""

    settings: Quantization

    def stored(self, name: str) -> tuple[str, ...]:
        return name, sibling(name, "weight_scale"), sibling(name, "weight_zero_point")

    def found(self, parts: Parts) -> TensorInfo | None:
        name, scale_name, zeros_name = self.stored(parts.name)
        weight, zeros = parts.get(name), parts.get(zeros_name)
        if weight is None or weight.qtype != "I8":
            return None
        scale = parts.need(scale_name, name)
        scheme = scheme_of(parts.shape, scale.shape, 8, self.settings.schemes)
        sound = (
            weight.shape == parts.shape
            and scale.qtype in SCALE_TYPES
            and (zeros is None or (zeros.qtype == "I8" and zeros.shape == scale.shape))
        )
        if scheme is None or not sound or parts.cols % max(1, scheme.group):
            raise parts.misfit(weight, scale, zeros)
        end = "" if zeros is None else ZEROS
        return parts.matrix(integer_qtype(8, scheme.group, end), weight, scale, zeros, scheme=scheme)

    def tensor(self, info: TensorInfo, source: TensorSource) -> RawTensor:
        weight_name, scale_name, zeros_name = self.stored(info.name)
        weight, scale = source.tensor(weight_name), source.tensor(scale_name)
        held, group = scales(scale, info.shape, 8, self.settings.schemes)
        zero: NDArray[np.int16] | int = 128
        if zeros_name in source.manifest:
            plain = held.of(source.tensor(zeros_name).stored.view(np.int8).astype(np.float32))
            zero = (plain(np.arange(prod(info.shape[:-1]))) + 128).astype(np.int16)
        stored = weight.stored
        numbers = Integers(8, group or info.shape[-1], signed_bytes(stored), held, zero)
        return quantized(info.name, info.shape, info.qtype, numbers, weight)


@dataclass(frozen=True, slots=True)
class PackedFloats:
    """A ``Format``: ``mxfp4-pack-quantized`` and ``nvfp4-pack-quantized``."""

    def stored(self, name: str) -> tuple[str, ...]:
        return tuple(sibling(name, f"weight_{suffix}") for suffix in ("packed", "scale", "global_scale"))

    def found(self, parts: Parts) -> TensorInfo | None:
        packed_name, scale_name, whole_name = self.stored(parts.name)
        packed, whole = parts.get(packed_name), parts.get(whole_name)
        if packed is None or packed.qtype != "U8":
            return None
        scale = parts.need(scale_name, packed_name)
        group = GROUP if scale.qtype in EXPONENTS else _NVFP4_GROUP
        stack, cols = parts.shape[:-1], parts.cols
        sound = (
            packed.shape == (*stack, cols // 2)
            and cols % group == 0
            and scale.shape == (*stack, cols // group)
            and scale.qtype in (*EXPONENTS, "F8_E4M3")
            and (group == GROUP) == (whole is None)
            and (whole is None or (whole.qtype == "F32" and whole.shape in ((), (1,))))
        )
        if not sound:
            raise parts.misfit(packed, scale, whole)
        if group == GROUP:
            return TensorInfo(parts.name, parts.shape, "MXFP4", packed.nbytes + scale.nbytes)
        return parts.matrix(code_qtype("E2M1", group), packed, scale, whole)

    def tensor(self, info: TensorInfo, source: TensorSource) -> RawTensor:
        packed_name, scale_name, whole_name = self.stored(info.name)
        packed, scale = source.tensor(packed_name), source.tensor(scale_name)
        if info.qtype == "MXFP4":
            return mxfp4_tensor(info, packed, scale)
        divisor = whole_floats(source.tensor(whole_name)).reshape(-1)[0]
        stored, scale_bytes = packed.stored, scale.stored.reshape(len(packed.stored), -1)

        def codes(rows: Rows, cols: int) -> NDArray[np.uint8]:
            return unpacked(stored[rows], 4, cols)

        def scale_of(rows: Rows, cols: int) -> Floats:
            divided: Floats = E4M3[scale_bytes[rows]] / divisor
            return divided

        return quantized(info.name, info.shape, info.qtype, Codes(E2M1, codes, scale_of), packed)


def _zeros(raw: RawTensor, rows: int, bits: int) -> NDArray[np.int16]:
    """(rows, groups), of unsigned integers."""
    if raw.qtype == "I8":
        plain = raw.stored.view(np.int8).astype(np.int16) + np.int16(1 << bits - 1)
        if plain.min() < 0 or plain.max() >= 1 << bits:
            raise CheckpointError(
                f"tensor {raw.name} has zero points that are no integers of {bits} bits",
                hint="The file is damaged: download it again.",
            )
        return plain
    turned = np.ascontiguousarray(words(raw).T).view(np.uint8)
    return unpacked(turned, bits, rows).T.astype(np.int16)


def _check_shape(raw: RawTensor, info: TensorInfo) -> None:
    """The tensor that tells a matrix's shape says what the configuration says."""
    if tuple(whole_integers(raw).tolist()) != info.shape:
        raise CheckpointError(
            f"tensor {raw.name} says another shape than the configuration's {list(info.shape)}",
            hint=OF_ANOTHER,
        )
