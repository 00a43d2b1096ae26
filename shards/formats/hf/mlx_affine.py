"""Matrices quantized by MLX (``mlx_lm.convert -q``), read as the one matrix that they are.

Instead of ``X.weight`` such a checkpoint has three tensors: ``X.weight``, unsigned integers of 2 to 8 bits
packed into 32-bit words; ``X.scales`` and ``X.biases``, one each for a group of columns. A value is
``q * scale + bias``. A row's integers are one string of bits, the lowest bit of the first one first
(``mlx.core.quantize``, mode "affine").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ....swarm.errors import CheckpointError, UnsupportedModelError
from ..qtypes import AFFINE, AFFINE_BITS, AFFINE_GROUPS, affine_qtype
from ..raw_tensor import RawTensor
from ..tensors import TensorInfo, TensorSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCALE_TYPES = ("F16", "BF16", "F32")


@dataclass(frozen=True, slots=True, eq=False)
class AffineTensor(RawTensor):
    """``stored``: uint8 (rows, cols * bits / 8). ``scales``, ``biases``: (rows, cols / group)."""

    bits: int = field(kw_only=True)
    group: int = field(kw_only=True)
    scales: RawTensor = field(kw_only=True)
    biases: RawTensor = field(kw_only=True)

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes + self.scales.nbytes + self.biases.nbytes

    def integers(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """uint8 (rows, cols), 0 to 2 ** bits - 1."""
        packed = np.array(self.stored[rows])  # a copy: the file is read-only
        if self.bits == 8:
            return packed
        if self.bits == 4:
            return np.stack((packed & 15, packed >> 4), -1).reshape(len(packed), -1)
        digits = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), self.cols, self.bits)
        return np.packbits(digits, axis=-1, bitorder="little")[..., 0]

    def part(self, name: str, shape: tuple[int, ...], rows: slice | np.ndarray) -> RawTensor:
        groups = (shape[0], self.scales.cols)
        scales, biases = (
            replace(each, shape=groups, stored=each.stored[rows]) for each in (self.scales, self.biases)
        )
        stored = self.stored[rows]
        return replace(self, name=name, shape=shape, stored=stored, scales=scales, biases=biases)

    def values(self, rows: slice | np.ndarray) -> NDArray[np.float32]:
        q = self.integers(rows)
        scale, bias = self.scales.values(rows)[..., None], self.biases.values(rows)[..., None]
        grouped = q.reshape(len(q), -1, self.group).astype(np.float32)
        grouped *= scale
        grouped += bias
        return grouped.reshape(q.shape)


class AffineSource:
    """A source whose triples are shown as single matrices; everything else is passed on."""

    def __init__(self, inner: TensorSource, matrices: Mapping[str, TensorInfo]) -> None:
        self._inner = inner
        self._matrices = matrices
        hidden = {part for name in matrices for part in stored_names(name)}
        self.manifest: Mapping[str, TensorInfo] = {
            **{name: info for name, info in inner.manifest.items() if name not in hidden},
            **matrices,
        }

    def tensor(self, name: str) -> RawTensor:
        info = self._matrices.get(name)
        if info is None:
            return self._inner.tensor(name)
        packed, scales, biases = (self._inner.tensor(part) for part in stored_names(name))
        cols = info.shape[-1]
        return AffineTensor(
            *(name, info.shape, info.qtype, packed.stored),
            bits=packed.shape[-1] * 32 // cols,
            group=cols // scales.shape[-1],
            scales=scales,
            biases=biases,
            check=packed.check,
        )

    def release(self) -> None:
        self._inner.release()

    def close(self) -> None:
        self._inner.close()


def affine_tensor(info: TensorInfo, rows: np.ndarray) -> AffineTensor:
    """From ``rows``, uint8 (rows, bytes of a row): integers, float16 or float32 scales, biases."""
    bits, group, wide = AFFINE[info.qtype]
    groups = info.shape[1] // group
    packed, scales, biases = np.split(
        rows, np.cumsum([info.shape[1] * bits // 8, groups * (4 if wide else 2)]), axis=1
    )
    kind, shape = "F32" if wide else "F16", (info.shape[0], groups)
    return AffineTensor(
        *(info.name, info.shape, info.qtype, packed),
        bits=bits,
        group=group,
        scales=RawTensor(f"{info.name} scales", shape, kind, scales),
        biases=RawTensor(f"{info.name} biases", shape, kind, biases),
    )


def stored_names(name: str) -> tuple[str, str, str]:
    """What a quantized checkpoint stores for matrix ``name`` (``X.weight``): integers, scales, biases."""
    stem = name.removesuffix(".weight")
    return name, f"{stem}.scales", f"{stem}.biases"


def with_affine(source: TensorSource, shapes: Mapping[str, tuple[int, ...]], where: str) -> TensorSource:
    """``source``, with its quantized matrices, which have ``shapes``, put together where it has any.

    Bits and groups follow from the shapes, as they may differ from matrix to matrix. Raises CheckpointError
    for parts that do not belong together, UnsupportedModelError for what MLX cannot multiply by.
    """
    matrices: dict[str, TensorInfo] = {}
    for name, shape in shapes.items():
        if len(shape) > 1 and stored_names(name)[1] in source.manifest:
            matrices[name] = _matrix(source.manifest, name, shape, where)
    return AffineSource(source, matrices) if matrices else source


def _matrix(manifest: Mapping[str, TensorInfo], name: str, shape: tuple[int, ...], where: str) -> TensorInfo:
    parts = []
    for part in stored_names(name):
        info = manifest.get(part)
        if info is None:
            raise CheckpointError(
                f"{where} has {stored_names(name)[1]} without {part}",
                hint="The file is damaged, or quantized in another mode than MLX's affine one.",
            )
        parts.append(info)
    packed, scales, biases = parts
    cols = shape[-1]
    sound = (
        packed.qtype == "U32"
        and scales.qtype in _SCALE_TYPES
        and biases.qtype == scales.qtype
        and all(part.shape[:-1] == shape[:-1] and part.shape[-1] > 0 for part in parts)
        and biases.shape == scales.shape
        and packed.shape[-1] * 32 % cols == 0
        and cols % scales.shape[-1] == 0
    )
    if not sound:
        shapes = ", ".join(f"{part.qtype} {list(part.shape)}" for part in parts)
        raise CheckpointError(
            f"the quantized matrix {name} of {where} is {shapes}, the configuration says {list(shape)}"
        )
    bits, group = packed.shape[-1] * 32 // cols, cols // scales.shape[-1]
    if bits not in AFFINE_BITS or group not in AFFINE_GROUPS:
        raise UnsupportedModelError(
            f"{name} of {where} is quantized to {bits} bits in groups of {group}, which is not supported",
            hint=f"Supported: {', '.join(map(str, AFFINE_BITS))} bits in groups of "
            f"{', '.join(map(str, AFFINE_GROUPS))}.",
        )
    nbytes = sum(part.nbytes for part in parts)
    return TensorInfo(name, shape, affine_qtype(bits, group, scales.qtype == "F32"), nbytes)
