"""Matrices in MXFP4: two values a byte, and an exponent for 32 values each. gpt-oss has stacks of them,
``X_blocks`` and ``X_scales``; compressed-tensors has ``X.weight_packed`` and ``X.weight_scale``.

They are read as GGUF's type MXFP4, whose blocks have the same values in another order: there a byte holds
values i and i + 16, here 2 i and 2 i + 1, the first in its lower half.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ..raw_tensor import RawTensor
from ..tensors import TensorInfo, TensorSource
from .parts import Parts

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCKS, SCALES = "_blocks", "_scales"
GROUP = 32
"""Values that share an exponent."""


@dataclass(frozen=True, slots=True, eq=False)
class BlocksAndScales(RawTensor):
    """``stored``: uint8 (rows, cols / 2) of all experts, ``scales``: uint8 (rows, cols / 32). What is taken
    of it is put in GGUF's order, which copies that part alone."""

    scales: NDArray[np.uint8] = field(kw_only=True)

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes + self.scales.nbytes

    @property
    def data(self) -> np.ndarray:
        return self.packed(slice(None))

    def part(self, name: str, shape: tuple[int, ...], rows: slice | np.ndarray) -> RawTensor:
        return RawTensor(name, shape, self.qtype, self.packed(rows), check=self.check)

    def named(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        return self.part(name, shape, slice(None))

    def values(self, rows: slice | np.ndarray) -> NDArray[np.float32]:
        return self.part(self.name, self.shape, rows).values(slice(None))

    def packed(self, rows: slice | np.ndarray) -> NDArray[np.uint8]:
        """(rows, bytes of a row) as in GGUF files: of 32 values the exponent, then 16 bytes."""
        scales = self.scales[rows][..., None]
        pairs = self.stored[rows].reshape(*scales.shape[:2], GROUP // 2)
        values = np.stack((pairs & 15, pairs >> 4), -1).reshape(*scales.shape[:2], 2, GROUP // 2)
        halves = values[..., 0, :] | values[..., 1, :] << 4
        return np.concatenate((scales, halves), -1).reshape(len(scales), -1)


class GptOssBlocks:
    """A ``Format``."""

    def stored(self, name: str) -> tuple[str, ...]:
        return (name, name.removesuffix(BLOCKS) + SCALES) if name.endswith(BLOCKS) else ()

    def found(self, parts: Parts) -> TensorInfo | None:
        blocks = parts.manifest.get(parts.name) if parts.name.endswith(BLOCKS) else None
        if blocks is None:
            return None
        scales = parts.need(self.stored(parts.name)[1], parts.name)
        sound = blocks.qtype == scales.qtype == "U8" and blocks.shape == (*scales.shape, GROUP // 2)
        if not sound or len(scales.shape) != 3:
            raise parts.misfit(blocks, scales)
        shape = (*scales.shape[:2], scales.shape[2] * GROUP)
        return TensorInfo(parts.name, shape, "MXFP4", blocks.nbytes + scales.nbytes)

    def tensor(self, info: TensorInfo, source: TensorSource) -> RawTensor:
        return mxfp4_tensor(info, *map(source.tensor, self.stored(info.name)))


def mxfp4_tensor(info: TensorInfo, blocks: RawTensor, scales: RawTensor) -> RawTensor:
    rows = prod(info.shape[:-1])
    return BlocksAndScales(
        *(info.name, info.shape, info.qtype, blocks.stored.reshape(rows, -1)),
        scales=scales.stored.reshape(rows, -1),
        check=blocks.check,
    )
