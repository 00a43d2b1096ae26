from __future__ import annotations

import numpy as np
import pytest

from swarm_node.shards.formats.blocks.attention import AttentionConfig
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.formats.blocks.rope import RopeConfig
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.qtypes import AFFINE, DENSE, GGUF_QTYPES, row_bytes
from swarm_node.shards.formats.tensors import FINAL_NORM, TensorInfo, block_tensors
from swarm_node.shards.layers.kv_pool import BatchSlice
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.shards.models.random_blocks import random_checkpoint
from swarm_node.swarm.types import Span
from tests.shards.models.block_cases import HIDDEN, checkpoint_of
from tests.shards.models.state_cases import STATES

STATES_THAT_DECAY = [case for case in STATES if case.startswith(("delta", "channels", "mamba"))]
NORM = NormConfig(1e-5)
BLOCK = BlockConfig(
    AttentionConfig(4, 2, 64, 0.125, RopeConfig(64)), MlpConfig(512), norm=NORM, mlp_norm=NORM
)
CONFIG = ModelConfig("llama", (BLOCK,) * 8, 256, 1000, NORM, 512)


def manifest(qtype: str, *, like: int = 0) -> dict[str, TensorInfo]:
    found = {}
    for name, shape in {**block_tensors(CONFIG, like), FINAL_NORM: (CONFIG.hidden_size,)}.items():
        type_ = "F32" if len(shape) == 1 else qtype
        rows = 1 if len(shape) == 1 else shape[0]
        found[name] = TensorInfo(name, shape, type_, rows * row_bytes(type_, shape[-1]))
    return found


@pytest.mark.parametrize("qtype", [*GGUF_QTYPES, "MLX4_64", "MLX8_32_F32", "MLX3_128"])
def test_weights_of_every_type_are_ordinary_numbers(qtype):
    made = random_checkpoint(CONFIG, manifest(qtype))
    for name, info in made.manifest.items():
        tensor = made.tensor(name)
        assert (tensor.shape, tensor.qtype, tensor.nbytes) == (info.shape, info.qtype, info.nbytes)
        values = tensor.dequantize()
        assert np.isfinite(values).all()
        assert np.abs(values).max() < 1000
        assert values.std() > 0
        if qtype in DENSE or qtype in AFFINE:
            continue
        halves = np.frombuffer(tensor.stored.tobytes(), dtype=np.float16)
        assert np.abs(halves[halves != 0]).min() > np.finfo(np.float16).tiny or len(tensor.shape) == 1


@pytest.mark.parametrize("case", STATES_THAT_DECAY)
def test_states_neither_vanish_nor_grow(case):
    """A head's matrix keeps some 19 of 20 parts a token where no input says otherwise."""
    checkpoint = checkpoint_of(STATES[case])
    rate = np.exp(checkpoint.tensor("model.layers.0.state.a_log").dequantize()).mean()
    bias = checkpoint.tensor("model.layers.0.state.decay_bias").dequantize()
    assert 0.9 < np.exp(-rate * np.logaddexp(0, bias)).mean() < 0.98
    model = load_backend(checkpoint, Span(0, len(STATES[case])), LoadOptions(kernels="torch"))
    memory = OwnMemory(model, "float32", 400)
    x = np.random.default_rng(0).standard_normal((400, HIDDEN), np.float32)
    y = model.forward(x, [memory.slice(0, 400)], memory.pool)
    assert np.isfinite(y).all()
    assert np.abs(y).max() < 100
    kept = memory.pool.states.numpy()
    assert np.isfinite(kept).all()
    assert 0.01 < np.abs(kept).max() < 100


def test_blocks_load_and_compute_as_those_of_a_file():
    like = random_checkpoint(CONFIG, manifest("Q4_1", like=5), [5] * 3)
    assert like.config.n_blocks == like.ref.n_blocks == 3
    model = load_backend(like, Span(0, 3), LoadOptions(kernels="torch"))
    assert model.weights == "int4 (Q4_1)"
    table = np.arange(3, dtype=np.int32).reshape(3, 1)
    x = np.random.default_rng(0).standard_normal((4, CONFIG.hidden_size), np.float32)
    y = model.forward(x, [BatchSlice(table, 0, 0, 0, 4)], model.new_pool(3, "float32"))
    assert y.shape == (4, CONFIG.hidden_size)
    assert np.isfinite(y).all()
