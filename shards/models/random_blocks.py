"""Blocks of a model's shape with made-up weights: to measure what a machine could do before it has the model.

What computing costs depends on shapes and on how weights are held, not on their values, as long as these are
ordinary numbers: none here is infinite, NaN or subnormal, for any type of the file.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from ...swarm.errors import CheckpointError
from ..checkpoint.checkpoint import Checkpoint
from ..families.places import flat
from ..formats.blocks.block import BlockConfig
from ..formats.config import ModelConfig
from ..formats.floats import narrow
from ..formats.qtypes import AFFINE, DENSE, HF_GROUPED, row_bytes
from ..formats.quantized.made_up import made_up
from ..formats.quantized.mlx_affine import affine_tensor
from ..formats.raw_tensor import RawTensor
from ..formats.tensors import FINAL_NORM, TensorInfo, block_names
from ..pieces.digest import identity_of
from ..tokenizer.tokenizer import Tokenizer

_LOW, _HIGH = 0x20, 0x30
"""Bytes of quantized groups lie between these. Any two of them, read as the float16 scale of a group, are
0.008 to 0.13."""
_EXPONENT = 123
"""The first byte of a group of MXFP4: a scale of 1 / 16."""
_MEANS = {
    re.compile(r"(norm|scalar|scale)(\.weight)?$|\.state\.skip$"): np.float32(1),
    re.compile(r"\.state\.decay_bias$"): np.float32(-3),
}
"""What vectors of these names are about, others being about zero: what a row is multiplied by; and the bias
of a decay, so that a state keeps some 19 of 20 parts a token, as models' do: none vanishes, and none grows.
"""
_SPREAD = np.float32(0.2)
"""The standard deviation of vectors."""
_POOL = 1_048_573
"""Tensors are cut out of this many random numbers: a prime, so that no two rows of a large one are equal."""


def random_checkpoint(
    config: ModelConfig, manifest: Mapping[str, TensorInfo], blocks: Sequence[int] = (0,)
) -> Checkpoint:
    """A model of as many blocks as ``blocks`` has numbers, each of the shape and types of the block that has
    that number in ``manifest``. A block that another one reads from comes before it. Tensors are
    made when they are asked for, each time the same."""
    made = [config.blocks[block] for block in blocks]
    return Checkpoint(
        "random",
        replace(config, blocks=tuple(_renumbered(block, blocks) for block in made)),
        _RandomBlocks(config, manifest, blocks),
        _NoTokenizer(),
        identity_of(()),
    )


def _renumbered(block: BlockConfig, blocks: Sequence[int]) -> BlockConfig:
    """``block`` with the new numbers of those that it reads from."""
    kv_of, index_of = (None if of is None else blocks.index(of) for of in (block.kv_of, block.index_of))
    return replace(block, kv_of=kv_of, index_of=index_of)


class _RandomBlocks:
    """A ``TensorSource``."""

    def __init__(
        self, config: ModelConfig, manifest: Mapping[str, TensorInfo], blocks: Sequence[int]
    ) -> None:
        names = {FINAL_NORM: FINAL_NORM}
        for number, like in enumerate(blocks):
            for name in block_names(config, like):
                names[name.replace(f".{like}.", f".{number}.", 1)] = name
        self.manifest: Mapping[str, TensorInfo] = {
            name: replace(manifest[like], name=name) for name, like in names.items() if like in manifest
        }

    def tensor(self, name: str) -> RawTensor:
        return _made(self.manifest[name])

    def release(self) -> None: ...

    def close(self) -> None: ...


def _made(info: TensorInfo) -> RawTensor:
    rows, cols = flat(info.shape)
    if info.qtype in DENSE:
        values = _cut(_normal_numbers(), info.name, rows, cols)
        values = values * np.float32(cols**-0.5) if len(info.shape) > 1 else values * _SPREAD
        values += sum(mean for name, mean in _MEANS.items() if name.search(info.name))
        stored = narrow(values, DENSE[info.qtype]).view(np.uint8)
    else:
        stored = _cut(_random_bytes(), info.name, rows, row_bytes(info.qtype, cols))
        if info.qtype == "MXFP4":
            stored[:, ::17] = _EXPONENT
    if info.qtype in HF_GROUPED:
        return made_up(info, stored)
    if info.qtype in AFFINE:
        return affine_tensor(info, stored)
    return RawTensor(info.name, info.shape, info.qtype, stored)


def _cut(pool: np.ndarray, name: str, rows: int, cols: int) -> np.ndarray:
    """(rows, cols) of ``pool``, from a place that ``name`` decides; over and over where there are more."""
    first = zlib.crc32(name.encode()) % max(1, _POOL - rows * cols)
    return np.resize(pool[first : first + rows * cols], (rows, cols))


@cache
def _normal_numbers() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(_POOL, dtype=np.float32)


@cache
def _random_bytes() -> np.ndarray:
    return np.random.default_rng(0).integers(_LOW, _HIGH, _POOL, dtype=np.uint8)


class _NoTokenizer:
    """A ``TokenizerSource``."""

    def check(self) -> None:
        raise CheckpointError("made-up blocks have no tokenizer")

    def build(self) -> Tokenizer:
        raise CheckpointError("made-up blocks have no tokenizer")
