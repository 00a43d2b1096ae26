from __future__ import annotations

import pytest
import torch

from swarm_node.node.auto import machine as machine_module
from swarm_node.node.auto.machine import measure_machine
from swarm_node.node.config import NodeConfig
from swarm_node.node.resources import MemoryShortError
from swarm_node.shards.checkpoint.opening import open_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def described(tiny_dir, monkeypatch):
    monkeypatch.setattr("swarm_node.node.engine.self_bench.DECODE_SECONDS", 0.02)
    monkeypatch.setattr("swarm_node.node.engine.self_bench.PREFILL_SECONDS", 0.02)
    threads = torch.get_num_threads()
    with open_checkpoint(str(tiny_dir), weights=False) as checkpoint:
        yield checkpoint
    torch.set_num_threads(threads)


def config(**options) -> NodeConfig:
    return NodeConfig(**({"model": "tiny", "auto": True, "dtype": "float32", "quantize": "none"} | options))


def test_what_a_machine_can_do_is_measured_without_the_weights(described):
    found = measure_machine(config(memory=3 * 10**6), described.config, described.manifest, 1)
    inner = 64 * (4 + 2 + 2 + 4) * 16 + 3 * 64 * 96  # matrices: q, k, v and out; gate, up and down
    assert found.shape.n_blocks == 4
    assert found.shape.block_bytes == pytest.approx(4 * inner, rel=0.02)
    assert found.shape.kv_bytes == 2 * 2 * 16 * 4  # keys and values, heads, head_dim, float32
    assert found.shape.context_tokens == 256
    assert found.shape.activation_bytes > 64
    assert (found.weights, found.kv_dtype) == ("float32", "float32")
    assert found.decode_ms_per_block > 0
    assert found.prefill_tokens_per_s > 0
    assert found.memory_bytes == 3 * 10**6
    assert found.max_blocks() == 4
    assert found.offer("me").memory_bytes == 3 * 10**6


def test_memory_bounds_the_blocks(described):
    whole = measure_machine(config(), described.config, described.manifest, 1)
    assert whole.max_blocks() == 4
    room = whole.shape.room_per_block
    two = measure_machine(config(memory=2 * room + 100), described.config, described.manifest, 1)
    assert two.max_blocks() == 2
    none = measure_machine(config(memory=room - 100), described.config, described.manifest, 1)
    assert none.max_blocks() == 0
    assert "KV cache" in none.why_no_block()
    roomy = measure_machine(
        config(memory=room - 100, kv_cache_tokens=32), described.config, described.manifest, 1
    )
    assert roomy.max_blocks() > 0


def test_memory_that_ends_while_measuring_is_told(described, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(machine_module, "load_backend", full)
    with pytest.raises(MemoryShortError, match="not even one block"):
        measure_machine(config(), described.config, described.manifest, 1)


def test_other_errors_stay_what_they_are(described, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(machine_module, "load_backend", broken)
    with pytest.raises(RuntimeError, match="broken"):
        measure_machine(config(), described.config, described.manifest, 1)
