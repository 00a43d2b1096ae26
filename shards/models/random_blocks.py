"""Blocks of a model's shape with made-up weights: to measure what a machine could do before it has the model.

What computing costs depends on shapes and on how weights are held, not on their values, as long as these are
ordinary numbers: none here is infinite, NaN or subnormal, for any type of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...swarm.errors import CheckpointError
from ..checkpoint.checkpoint import Checkpoint
from ..formats.config import ModelConfig
from ..formats.floats import narrow
from ..formats.hf.mlx_affine import affine_tensor
from ..formats.qtypes import AFFINE, DENSE, row_bytes
from ..formats.raw_tensor import RawTensor
from ..formats.tensors import FINAL_NORM, TensorInfo, block_tensors
from ..pieces.digest import identity_of
from ..tokenizer.tokenizer import Tokenizer

_LOW, _HIGH = 0x20, 0x30
"""Bytes of quantized groups lie between these. Any two of them, read as the float16 scale of a group, are
0.008 to 0.13."""


def random_checkpoint(
    config: ModelConfig, manifest: Mapping[str, TensorInfo], *, like: int = 0, count: int = 1
) -> Checkpoint:
    """A model of ``count`` blocks of the shape and types that block ``like`` of ``manifest`` has, 1 to the
    model's own number. All have the same values; their loader holds each by itself."""
    source = _RandomBlocks(config, manifest, like, count)
    return Checkpoint(
        "random",
        replace(config, blocks=config.blocks[like : like + 1] * count),
        source,
        _NoTokenizer(),
        identity_of(()),
    )


class _RandomBlocks:
    """A ``TensorSource``."""

    def __init__(
        self, config: ModelConfig, manifest: Mapping[str, TensorInfo], like: int, count: int
    ) -> None:
        rng = np.random.default_rng(0)
        prefix = f"model.layers.{like}."
        block = {
            name.removeprefix(prefix): _made(manifest[name], rng)
            for name in block_tensors(config, like)
            if name in manifest
        }
        self._tensors = {FINAL_NORM: _made(manifest[FINAL_NORM], rng)}
        for number in range(count):
            self._tensors |= {f"model.layers.{number}.{name}": tensor for name, tensor in block.items()}
        self.manifest: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, tensor.shape, tensor.qtype, tensor.nbytes)
            for name, tensor in self._tensors.items()
        }

    def tensor(self, name: str) -> RawTensor:
        return self._tensors[name]

    def release(self) -> None: ...

    def close(self) -> None: ...


def _made(info: TensorInfo, rng: np.random.Generator) -> RawTensor:
    rows = 1 if len(info.shape) == 1 else info.shape[0]
    cols = info.shape[-1]
    if info.qtype in DENSE:
        values = rng.standard_normal((rows, cols), dtype=np.float32) * cols**-0.5
        stored = narrow(values, DENSE[info.qtype]).view(np.uint8)
    else:
        stored = rng.integers(_LOW, _HIGH, (rows, row_bytes(info.qtype, cols)), dtype=np.uint8)
    if info.qtype in AFFINE:
        return affine_tensor(info, stored)
    return RawTensor(info.name, info.shape, info.qtype, stored)


class _NoTokenizer:
    """A ``TokenizerSource``."""

    def check(self) -> None:
        raise CheckpointError("made-up blocks have no tokenizer")

    def build(self) -> Tokenizer:
        raise CheckpointError("made-up blocks have no tokenizer")
