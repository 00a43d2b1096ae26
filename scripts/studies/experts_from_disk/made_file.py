"""A made-up model of experts in a file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.formats.blocks.attention import AttentionConfig
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.experts import ExpertsConfig, RouterConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.formats.blocks.rope import RopeConfig
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.files.mapped_file import MappedFile
from swarm_node.shards.formats.qtypes import row_bytes
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.formats.tensors import TensorInfo, block_tensors
from swarm_node.shards.pieces.digest import identity_of
from swarm_node.shards.tokenizer.tokenizer import Tokenizer
from swarm_node.swarm.errors import CheckpointError

HIDDEN, INNER, COUNT, USED = 1024, 512, 128, 8
QTYPE = "Q4_0"
ATTENTION = 0.1
"""What attention adds is made smaller by this."""


def model_config(blocks: int) -> ModelConfig:
    """Tiny attention; a block adds little to what goes through it, as those of trained models do."""
    norm = NormConfig(1e-5)
    attention = AttentionConfig(4, 2, 64, 0.125, RopeConfig(64))
    router = RouterConfig(bias=True)
    block = BlockConfig(
        attention,
        None,
        ExpertsConfig(COUNT, USED, MlpConfig(INNER), router),
        norm=norm,
        mlp_norm=norm,
        residual_multiplier=0.1,
    )
    return ModelConfig("made up", (block,) * blocks, HIDDEN, 1000, norm, 4096)


def is_expert(name: str) -> bool:
    return ".experts." in name


class MadeFile:
    """A ``TensorSource``: the tensors of all blocks, one behind the other in ``path``."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self.path = path
        self.manifest: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        self.size = 0
        for block in range(config.n_blocks):
            for name, shape in block_tensors(config, block).items():
                qtype = QTYPE if is_expert(name) else "F32"
                rows = 1 if len(shape) == 1 else shape[0]
                nbytes = rows * row_bytes(qtype, shape[-1])
                self.manifest[name] = TensorInfo(name, shape, qtype, nbytes)
                self._offsets[name] = self.size
                self.size += nbytes
        self._file: MappedFile | None = None

    def write(self, skew: float) -> None:
        rng = np.random.default_rng(0)
        groups = rng.integers(0, 256, (1 << 22, row_bytes(QTYPE, 32)), dtype=np.uint8)
        groups[:, :2] = np.array([HIDDEN**-0.5 / 4.6], np.float16).view(np.uint8)  # then weights are as usual
        with self.path.open("wb") as file:
            for info in self.manifest.values():
                if is_expert(info.name):
                    count_of_groups = info.nbytes // groups.shape[1]
                    start = int(rng.integers(len(groups) - count_of_groups))
                    file.write(groups[start : start + count_of_groups].tobytes())
                else:
                    file.write(_dense(info, skew, rng).tobytes())
            file.flush()
            os.fsync(file.fileno())

    def tensor(self, name: str) -> RawTensor:
        self._file = self._file or MappedFile(self.path)
        info = self.manifest[name]
        rows = 1 if len(info.shape) == 1 else info.shape[0]
        stored = self._file.slice(self._offsets[name], info.nbytes).reshape(rows, -1)
        return RawTensor(name, info.shape, info.qtype, stored, check=self._file.check)

    def release(self) -> None:
        if self._file is not None:
            self._file.release()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _dense(info: TensorInfo, skew: float, rng: np.random.Generator) -> np.ndarray:
    """float32 values. The router's scores of a row are about normal; its bias falls with an expert's rank."""
    if info.name.endswith("router.bias"):
        return (-skew * np.log(1 + rng.permutation(info.shape[0]))).astype(np.float32)
    if len(info.shape) == 1:
        return np.ones(info.shape, np.float32)
    values = rng.standard_normal(info.shape, np.float32) * np.float32(info.shape[1] ** -0.5)
    # Attention is a mean of all tokens: added whole in each block, it would soon make them all alike.
    return values * np.float32(ATTENTION) if info.name.endswith("o_proj.weight") else values


class _NoTokenizer:
    """A ``TokenizerSource``."""

    def check(self) -> None:
        raise CheckpointError("made-up blocks have no tokenizer")

    def build(self) -> Tokenizer:
        raise CheckpointError("made-up blocks have no tokenizer")


def open_made(path: Path, blocks: int) -> Checkpoint:
    config = model_config(blocks)
    return Checkpoint("made up", config, MadeFile(path, config), _NoTokenizer(), identity_of(()))
