"""Experts in MXFP4 as gpt-oss has them: tensor ``X_blocks``, two values a byte, and ``X_scales``, an exponent
for 32 values each. They are read as one stack of matrices of GGUF's type MXFP4, whose blocks have the same
values in another order: there a byte holds values i and i + 16, here 2 i and 2 i + 1, the first in its lower
half.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ....swarm.errors import CheckpointError
from ..dequantize import dequantize_rows
from ..raw_tensor import RawTensor
from ..tensors import TensorInfo, TensorSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCKS, SCALES = "_blocks", "_scales"
_GROUP = 32
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

    def values(self, rows: slice | np.ndarray) -> NDArray[np.float32]:
        return dequantize_rows(self.packed(rows), self.qtype)

    def packed(self, rows: slice | np.ndarray) -> NDArray[np.uint8]:
        """(rows, bytes of a row) as in GGUF files: of 32 values the exponent, then 16 bytes."""
        scales = self.scales[rows][..., None]
        pairs = self.stored[rows].reshape(*scales.shape[:2], _GROUP // 2)
        values = np.stack((pairs & 15, pairs >> 4), -1).reshape(*scales.shape[:2], 2, _GROUP // 2)
        halves = values[..., 0, :] | values[..., 1, :] << 4
        return np.concatenate((scales, halves), -1).reshape(len(scales), -1)


class Mxfp4Source:
    """A source whose pairs are shown as single stacks, under the names of their blocks."""

    def __init__(self, inner: TensorSource, stacks: Mapping[str, TensorInfo]) -> None:
        self._inner = inner
        self._stacks = stacks
        hidden = {scales_of(name) for name in stacks}
        others = {name: info for name, info in inner.manifest.items() if name not in hidden}
        self.manifest: Mapping[str, TensorInfo] = {**others, **stacks}

    def tensor(self, name: str) -> RawTensor:
        info = self._stacks.get(name)
        if info is None:
            return self._inner.tensor(name)
        blocks, scales = self._inner.tensor(name), self._inner.tensor(scales_of(name))
        rows = info.shape[0] * info.shape[1]
        return BlocksAndScales(
            *(name, info.shape, info.qtype, blocks.stored.reshape(rows, -1)),
            scales=scales.stored.reshape(rows, -1),
            check=blocks.check,
        )

    def release(self) -> None:
        self._inner.release()

    def close(self) -> None:
        self._inner.close()


def scales_of(name: str) -> str:
    """The tensor with the exponents of the blocks ``name``."""
    return name.removesuffix(BLOCKS) + SCALES


def with_mxfp4(source: TensorSource, names: Iterable[str], where: str) -> TensorSource:
    """``source``, with those of its tensors ``names`` that are blocks put together with their exponents.
    CheckpointError for parts that do not belong together."""
    wanted = dict.fromkeys(name for name in names if name.endswith(BLOCKS) and name in source.manifest)
    stacks = {name: _stack(source.manifest, name, where) for name in wanted}
    return Mxfp4Source(source, stacks) if stacks else source


def _stack(manifest: Mapping[str, TensorInfo], name: str, where: str) -> TensorInfo:
    blocks, scales = manifest[name], manifest.get(scales_of(name))
    if scales is None:
        raise CheckpointError(f"{where} has {name} without {scales_of(name)}", hint="The file is damaged.")
    sound = blocks.qtype == scales.qtype == "U8" and blocks.shape == (*scales.shape, _GROUP // 2)
    if not sound or len(scales.shape) != 3:
        parts = f"{blocks.qtype} {list(blocks.shape)} and {scales.qtype} {list(scales.shape)}"
        raise CheckpointError(f"{name} of {where} and its scales are {parts}, which do not fit together")
    shape = (*scales.shape[:2], scales.shape[2] * _GROUP)
    return TensorInfo(name, shape, "MXFP4", blocks.nbytes + scales.nbytes)
