"""Matrices quantized by MLX (``mlx_lm.convert -q``).

Instead of ``X.weight`` such a checkpoint has three tensors: ``X.weight``, unsigned integers of 2 to 8 bits
packed into 32-bit words; ``X.scales`` and ``X.biases``, one each for a group of columns. A value is
``q * scale + bias``. A row's integers are one string of bits, the lowest bit of the first one first
(``mlx.core.quantize``, mode "affine").
"""

from __future__ import annotations

import numpy as np

from ....swarm.errors import UnsupportedModelError
from ..qtypes import AFFINE, AFFINE_BITS, AFFINE_GROUPS, DENSE, affine_qtype
from ..raw_tensor import RawTensor
from ..tensors import TensorInfo, TensorSource
from .parts import Parts
from .tensor import Integers, QuantizedTensor, quantized, row_floats


class MlxAffine:
    """A ``Format``."""

    def stored(self, name: str) -> tuple[str, ...]:
        stem = name.removesuffix(".weight")
        return name, f"{stem}.scales", f"{stem}.biases"

    def found(self, parts: Parts) -> TensorInfo | None:
        """Bits and groups follow from the shapes, as they may differ from matrix to matrix."""
        name, scales_name, biases_name = self.stored(parts.name)
        packed, scales = parts.get(name), parts.get(scales_name)
        if packed is None or scales is None:
            return None
        biases, shape, cols = parts.need(biases_name, scales_name), parts.shape, parts.cols
        sound = (
            packed.qtype == "U32"
            and scales.qtype in DENSE
            and biases.qtype == scales.qtype
            and all(part.shape[:-1] == shape[:-1] and part.shape[-1] > 0 for part in (packed, scales, biases))
            and biases.shape == scales.shape
            and packed.shape[-1] * 32 % cols == 0
            and cols % scales.shape[-1] == 0
        )
        if not sound:
            raise parts.misfit(packed, scales, biases)
        bits, group = packed.shape[-1] * 32 // cols, cols // scales.shape[-1]
        if bits not in AFFINE_BITS or group not in AFFINE_GROUPS:
            raise UnsupportedModelError(
                f"{parts.name} of {parts.where} is quantized to {bits} bits in groups of {group}, "
                "which is not supported",
                hint=f"Supported: {', '.join(map(str, AFFINE_BITS))} bits in groups of "
                f"{', '.join(map(str, AFFINE_GROUPS))}.",
            )
        nbytes = packed.nbytes + scales.nbytes + biases.nbytes
        return TensorInfo(parts.name, shape, affine_qtype(bits, group, scales.qtype == "F32"), nbytes)

    def tensor(self, info: TensorInfo, source: TensorSource) -> RawTensor:
        packed, scales, biases = map(source.tensor, self.stored(info.name))
        return _affine(info, packed, scales, biases)


def affine_tensor(info: TensorInfo, rows: np.ndarray) -> QuantizedTensor:
    """From ``rows``, uint8 (rows, bytes of a row): integers, float16 or float32 scales, biases."""
    bits, group, wide = AFFINE[info.qtype]
    groups = info.shape[1] // group
    packed, scales, biases = np.split(
        rows, np.cumsum([info.shape[1] * bits // 8, groups * (4 if wide else 2)]), axis=1
    )
    kind, shape = "F32" if wide else "F16", (info.shape[0], groups)
    return _affine(
        info,
        RawTensor(info.name, info.shape, "U8", packed),
        RawTensor(f"{info.name} scales", shape, kind, scales),
        RawTensor(f"{info.name} biases", shape, kind, biases),
    )


def _affine(info: TensorInfo, packed: RawTensor, scales: RawTensor, biases: RawTensor) -> QuantizedTensor:
    bits, group, _ = AFFINE[info.qtype]
    stored = packed.stored
    numbers = Integers(
        *(bits, group, lambda rows: np.ascontiguousarray(stored[rows])),
        scale=row_floats(scales),
        bias=row_floats(biases),
    )
    return quantized(info.name, info.shape, info.qtype, numbers, packed)
