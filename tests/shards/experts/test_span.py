"""A span whose experts stay in the file, where memory is short."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.experts import RouterConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.files.mapped_file import MappedFile
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.formats.tensors import TensorInfo
from swarm_node.shards.kernels.library import library
from swarm_node.shards.layers.kv_pool import BatchSlice
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.native.span import NativeSpan
from swarm_node.swarm.errors import CheckpointError, UsageError
from swarm_node.swarm.runtime.c_build import NativeUnavailableError
from swarm_node.swarm.types import Span
from tests.shards.models.block_cases import HIDDEN, block, checkpoint_of, sparse

try:
    library()
except NativeUnavailableError as unavailable:
    pytest.skip(str(unavailable), allow_module_level=True)

MLP = MlpConfig(1024)
BLOCKS: tuple[BlockConfig, ...] = (
    sparse(RouterConfig(), mlp=MLP, count=16),
    block(),
    sparse(RouterConfig("sigmoid", correction=True), mlp=MLP, count=16, shared=MLP, latent=HIDDEN),
    sparse(RouterConfig(), mlp=MLP, count=16),
)
SPAN = Span(0, len(BLOCKS))


class OnDisk:
    """A ``TensorSource``: the tensors of another, in files in turn."""

    def __init__(self, made: Checkpoint, *paths: Path) -> None:
        self.manifest: Mapping[str, TensorInfo] = made.manifest
        self._places: dict[str, tuple[int, int]] = {}  # file and offset
        for path in paths:
            path.touch()
        for number, name in enumerate(self.manifest):
            at = number % len(paths)
            self._places[name] = at, paths[at].stat().st_size
            with paths[at].open("ab") as file:
                file.write(made.tensor(name).data.tobytes())
        self.files = [MappedFile(path) for path in paths]

    def tensor(self, name: str) -> RawTensor:
        info = self.manifest[name]
        rows = 1 if len(info.shape) == 1 else info.shape[0]
        number, offset = self._places[name]
        file = self.files[number]
        stored = file.slice(offset, info.nbytes).reshape(rows, -1)
        return RawTensor(name, info.shape, info.qtype, stored, check=file.check)

    def release(self) -> None:
        for file in self.files:
            file.release()

    def close(self) -> None:
        for file in self.files:
            file.close()


@pytest.fixture(params=[1, 2], ids=["one file", "two files"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    """``experts.bin``; with ``more.bin`` each expert lies in both."""
    made = checkpoint_of(BLOCKS, "Q8_0")
    paths = [tmp_path / name for name in ("experts.bin", "more.bin")]
    source: Any = OnDisk(made, *paths[: request.param])
    return Checkpoint("on disk", made.config, source, made._tokenizer_source, made.identity)


def load(checkpoint: Checkpoint, memory: int | None = None) -> NativeSpan:
    model = load_backend(checkpoint, SPAN, LoadOptions(kernels="native"), threads=2, memory=memory)
    assert isinstance(model, NativeSpan)
    return model


def computed(model: NativeSpan) -> np.ndarray:
    """A prompt, then single rows."""
    pool = model.new_pool(len(SPAN), "float32")
    table, rng = np.arange(len(SPAN), dtype=np.int32).reshape(len(SPAN), 1), np.random.default_rng(0)
    out, at = [], 0
    for count in (20, 1, 1, 1, 1, 1):
        x = rng.standard_normal((count, HIDDEN), np.float32)
        out.append(model.forward(x, [BatchSlice(table, 0, 0, at, count)], pool))
        at += count
    return np.concatenate(out)


def test_a_span_within_a_part_of_its_memory_computes_the_same_bits(checkpoint: Checkpoint) -> None:
    whole = load(checkpoint)
    assert whole.store is None
    wanted = computed(whole)
    roomy = load(checkpoint, whole.weight_bytes * 2)
    assert roomy.store is None
    for share in (0.25, 0.5, 0.9):
        memory = int(whole.weight_bytes * share)
        model = load(checkpoint, memory)
        assert model.store is not None
        assert model.weight_bytes <= 0.75 * memory
        assert model.weights.endswith(f"{100 * model.store.slots // 48} % of experts")
        assert np.array_equal(computed(model), wanted)


def test_a_file_that_is_cut_ends_the_computation_with_its_name(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = load(checkpoint, load(checkpoint).weight_bytes // 4)
    os.truncate(tmp_path / "experts.bin", 4096)
    with pytest.raises(CheckpointError, match=r"experts\.bin.*was"):
        computed(model)


def test_too_little_for_one_expert_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="one of which takes"):
        load(checkpoint, 100_000)


def test_experts_that_would_be_decoded_are_held(checkpoint: Checkpoint) -> None:
    """``--quantize none``: as floats, which the file does not have."""
    options = LoadOptions(kernels="native", quantize="none")
    model = load_backend(checkpoint, SPAN, options, memory=1_000_000)
    assert isinstance(model, NativeSpan)
    assert model.store is None
