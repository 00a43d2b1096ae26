from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.auto import machine as machine_module
from swarm_node.node.auto.machine import MeasuredMachine, measure_machine, room_for
from swarm_node.node.config import NodeConfig
from swarm_node.node.engine.memory.kv_layout import KvLayout
from swarm_node.node.engine.memory.span_memory import USUAL_SESSIONS, SpanMemory
from swarm_node.node.engine.self_bench import SelfMeasurement
from swarm_node.node.resources import MemoryShortError
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.blocks.experts import RouterConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.blocks.state import RecurrenceConfig
from swarm_node.shards.layers.kv_pool import largest_slot
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.codecs.kinds import INT8
from swarm_node.swarm.placement.planner import plan_join
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.shards.models.block_cases import CASES, RMS, attention, block, checkpoint_of, sparse

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
    room = whole.shape.room_of(1)
    two = measure_machine(config(memory=2 * room + 100), described.config, described.manifest, 1)
    assert two.max_blocks() == 2
    none = measure_machine(config(memory=room - 100), described.config, described.manifest, 1)
    assert none.max_blocks() == 0
    assert "KV cache" in none.why_no_block()
    roomy = measure_machine(
        config(memory=room - 100, kv_cache_tokens=32), described.config, described.manifest, 1
    )
    assert roomy.max_blocks() > 0


def test_each_kind_of_block_is_measured(described):
    first, *others = described.config.blocks
    wide = replace(first, mlp=replace(first.mlp, inner=960))
    model = replace(described.config, blocks=(wide, *others), max_position_embeddings=4096)
    model = replace(model, blocks=(wide, with_window(others[0]), *others[1:]))
    manifest = described.manifest | {
        name: replace(info, shape=tuple(960 if size == 96 else size for size in info.shape))
        for name, info in described.manifest.items()
        if ".layers.0.mlp." in name
    }
    found = measure_machine(config(memory=10**7), model, manifest, 1)
    shape = found.shape
    weights = 4 * (64 * 12 * 16 + 3 * 64 * 96)
    kept = 2 * 2 * 16 * 4 * 32  # a page of keys and values
    assert shape.rooms[0] == pytest.approx(weights + 4 * 3 * 64 * 864 + 128 * kept, rel=0.02)
    assert shape.rooms[1] == pytest.approx(weights + 20 * kept, rel=0.02)  # 20 + 512 + 64 tokens, and a page
    assert shape.rooms[2:] == pytest.approx([weights + 128 * kept] * 2, rel=0.02)
    assert shape.times[0] == max(shape.times)
    assert sum(shape.times) == pytest.approx(4)
    assert shape.block_bytes * 4 + shape.kv_bytes * 4 * 4096 == pytest.approx(sum(shape.rooms), rel=0.01)


@pytest.mark.parametrize("case", ["gemma 4 E", "another's keys and values", "another's indexer"])
def test_blocks_that_read_what_another_makes_are_measured_with_it(case, described):
    made = checkpoint_of(CASES[case])
    blocks = made.config.blocks
    shape = measure_machine(config(memory=10**8), made.config, made.manifest, 1).shape
    whole = load_backend(made, Span(0, len(blocks)), LoadOptions(dtype="float32", quantize="none"))
    slots = KvLayout.of(blocks, NodeConfig("tiny").max_batch_tokens).slots_of(shape.context_tokens)
    held = whole.weight_bytes + slots * largest_slot(blocks, "float32")
    assert sum(shape.rooms) == pytest.approx(held, rel=0.02)
    assert shape.cuts == made.config.cuts == made.config.boundaries.cuts
    if case == "gemma 4 E":
        assert shape.row_bytes == tuple(INT8.row_bytes(width) for width in (128, 112, 96, 80, 64))
    else:
        assert shape.row_bytes == ()


DELTA = RecurrenceConfig(4, 2, 8, 8, 4, "delta", RMS, norm_groups=4, norm_shared=True)
STATE = 4 * (4 * 8 * 8 + 3 * (2 * 2 * 8 + 4 * 8))
"""Four matrices of 8 by 8, and three inputs of the convolution."""


def test_blocks_that_keep_a_state_cost_memory_for_each_session():
    attends, keeps = block(), block(attention=None, state=DELTA)
    made = checkpoint_of([keeps, keeps, keeps, attends])
    model = replace(made.config, max_position_embeddings=100_000)
    found = measure_machine(config(memory=10**8), model, made.manifest, 1)
    token = 2 * 2 * 16 * 4
    weights = [
        sum(info.nbytes for name, info in made.manifest.items() if f".{number}." in name)
        for number in range(4)
    ]
    assert found.sessions == USUAL_SESSIONS
    states = USUAL_SESSIONS * 4 * STATE
    assert found.shape.rooms[:3] == pytest.approx([weights[0] + states] * 3, rel=0.05)
    assert found.shape.rooms[3] == pytest.approx(weights[3] + 100_000 * token, rel=0.05)
    assert found.session == (3 * 4 * STATE, token)
    assert found.shape.state_bytes == pytest.approx(3 * states / 4, abs=1)
    assert found.weight_bytes == pytest.approx(sum(weights), rel=0.1)
    # memory for three blocks that keep states, and not for one that attends to so many tokens
    assert found.shape.rooms[3] > sum(found.shape.rooms[:3])
    few = replace(found, memory_bytes=sum(found.shape.rooms[:3]))
    assert few.shape.spans_of(3)[0] == Span(0, 3)
    assert few.shape.room(Span(0, 3)) <= few.memory_bytes < few.shape.room(Span(3, 4))
    told = found.as_dict()
    assert told["session_bytes"] == 3 * 4 * STATE
    assert told["bytes_per_1000_tokens"] == 1000 * token
    assert (told["planned_sessions"], told["weight_bytes"]) == (USUAL_SESSIONS, found.weight_bytes)
    assert f"the states of {USUAL_SESSIONS} sessions" in found.why_no_block()
    assert "a smaller --kv-cache-tokens helps" in found.why_no_block()
    least = replace(found, memory_bytes=1000, sessions=1).why_no_block()
    assert "the states of 1 session, and 1 kB are usable here; its weights alone take " in least
    asked = measure_machine(config(memory=10**8, kv_cache_tokens=10_000), model, made.manifest, 1)
    assert asked.sessions == 3, "one for each 4096 tokens"
    less = [a - b for a, b in zip(found.shape.rooms, asked.shape.rooms, strict=True)]
    assert less == [(USUAL_SESSIONS - 3) * 4 * STATE] * 3 + [(100_000 - 10_016) * token]


def test_only_blocks_that_read_a_context_take_longer_with_it(monkeypatch):
    def measured(span, kv_dtype, longest):
        assert longest == 100_000
        (block,) = set(span.config.blocks)
        return SelfMeasurement(1.0, 1000.0, 0.5 if block.attention else 0.0)

    monkeypatch.setattr(machine_module, "measure_self", measured)
    keeps = block(attention=None, state=DELTA)
    made = checkpoint_of([keeps, keeps, keeps, block()])
    model = replace(made.config, max_position_embeddings=100_000)
    found = measure_machine(config(memory=10**8), model, made.manifest, 1)
    assert found.context_ms_per_block == found.as_dict()["context_ms_per_block"] == 0.125


def test_a_model_of_states_alone():
    made = checkpoint_of([block(attention=None, state=DELTA)] * 3)
    found = measure_machine(config(memory=10**8), made.config, made.manifest, 1)
    assert (found.shape.kv_bytes, found.shape.rooms) == (0, ())
    assert found.shape.room_of(2) == 2 * (found.shape.block_bytes + 4 * STATE)
    assert found.session == (3 * 4 * STATE, 0)


@given(
    st.lists(st.sampled_from(["attends", "window", "keeps", "both"]), min_size=1, max_size=6),
    st.integers(1, 50_000),
    st.integers(1, 20_000),
    st.data(),
)
def test_what_is_planned_for_a_number_of_tokens_is_enough_for_any_span(kinds, tokens, longest, data):
    window = replace(attention(), window=20)
    known = {
        "attends": block(),
        "window": block(window),
        "keeps": block(attention=None, state=DELTA),
        "both": block(state=DELTA),
    }
    blocks = tuple(known[kind] for kind in kinds)
    model = replace(checkpoint_of([block()]).config, blocks=blocks, max_position_embeddings=longest)
    held = machine_module._Held.of(config(kv_cache_tokens=tokens), model, "float16")
    start = data.draw(st.integers(0, len(blocks) - 1))
    end = data.draw(st.integers(start + 1, len(blocks)))
    taken = SpanMemory.of(blocks[start:end], 512, "float16")
    assert taken.bytes_of(taken.for_tokens(tokens, longest)) <= sum(held.each[start:end])


def with_window(block):
    return replace(block, attention=replace(block.attention, window=20))


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


def test_a_machine_that_is_short_of_memory_leaves_experts_in_the_file(monkeypatch):
    monkeypatch.setattr("swarm_node.node.engine.self_bench.DECODE_SECONDS", 0.02)
    monkeypatch.setattr("swarm_node.node.engine.self_bench.PREFILL_SECONDS", 0.02)
    blocks = [sparse(RouterConfig(), mlp=MlpConfig(512), count=16)] * 4
    made = checkpoint_of(blocks, "Q8_0")
    options = {"dtype": "auto", "quantize": "auto", "kv_cache_tokens": 32, "kernels": "native"}

    def measured(memory: int) -> MeasuredMachine:
        return measure_machine(config(memory=memory, **options), made.config, made.manifest, 1)

    roomy = measured(10**8)
    assert roomy.lean is not None
    assert roomy.max_blocks() == 4
    assert roomy.choose(partial(plan_join, [], roomy.offer("me")))[1] == roomy.shape
    short = measured(2 * roomy.shape.room_of(1))
    assert short.max_blocks() == 2
    verdict, shape = short.choose(partial(plan_join, [], short.offer("me")))
    assert (verdict.span, shape) == (Span(0, 4), short.lean)
    assert verdict.memory_bytes < short.memory_bytes
    other = NodeInfo("other", (), ModelRef("x", "ab" * 32, 4), Span(2, 4), NodeState.ONLINE, 1.0, 1.0)
    verdict, shape = short.choose(partial(plan_join, [other], short.offer("me")))
    assert (verdict.span, shape) == (Span(0, 2), short.shape)
    dense = measure_machine(config(memory=10**8), made.config, made.manifest, 1)
    assert dense.lean is None  # float32 is decoded


def test_room_is_told_in_words():
    assert room_for(2, 0) == "room for 2 blocks"
    assert room_for(2, 4) == "room for 2 blocks (for 4 with part of their experts in memory)"
