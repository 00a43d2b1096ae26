"""Random clients on a small engine: whatever is batched, paged, cut, shared, copied, rolled back, preempted
or dropped, every session gets what it would have got alone.

Each schedule is a few clients that generate greedily over a random tiny model and head. What they sent and
got is recorded, and replayed afterwards session by session, without an engine, each in KV memory of its own.
The plain torch path and MLX must agree to float32 rounding, the native kernels and the plain path with
``deterministic`` bit for bit.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from swarm_node.node.engine.memory import state_table
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.blocks.state import ShortConvConfig
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.types import Span
from tests.node.engine.schedules import EMBEDDING, LONGEST_OF_WINDOWS, check, check_books, run_schedule
from tests.shards.models.block_cases import attention, block, checkpoint_of
from tests.shards.models.state_cases import MLP_ALONE, alone, delta, kept, mamba

pytestmark = pytest.mark.slow

TIMES = 10 if os.environ.get("HYPOTHESIS_PROFILE") == "explore" else 1
"""How many times the schedules of a usual run."""


def _numbers(seed: int, usual: int) -> range:
    return range(seed * TIMES, (seed + usual) * TIMES)


@pytest.mark.parametrize("seed", range(0, 40, 10))
async def test_schedules_on_the_plain_path(tiny_span, plain, seed):
    model = tiny_span(kernels="torch")
    rows = 0
    for number in _numbers(seed, 4):
        logs, engine = await run_schedule(model, number)
        rows += check(model, logs, exact=False)
        check_books(engine)
    # And once against softmax written out, without any cache.
    record = max(
        (record for log in logs for record in log.records if len(record.rows)), key=lambda r: len(r.tokens)
    )
    span = next(log.span for log in logs if record in log.records)
    wanted = plain(model, EMBEDDING[record.tokens], span)[-1]
    np.testing.assert_allclose(record.rows[-1], wanted, atol=1e-4, rtol=1e-4)
    assert rows > 100


async def test_schedules_on_mlx_against_torch(tiny_dir, tiny_span):
    options = LoadOptions(device="mlx", dtype="float32", quantize="none")
    with open_checkpoint(str(tiny_dir)) as checkpoint:
        model = load_backend(checkpoint, Span(0, 4), options)
    rows = 0
    for number in _numbers(60, 2):
        logs, engine = await run_schedule(model, number)
        rows += check(tiny_span(kernels="torch"), logs, exact=False)
        check_books(engine)
    assert rows > 100


@pytest.mark.parametrize("seed", range(1000, 1200, 20))
async def test_schedules_on_native_kernels(tiny_span, seed):
    model = tiny_span(kernels="native")
    rows = dropped = 0
    for number in _numbers(seed, 10):
        logs, engine = await run_schedule(model, number)
        rows += check(model, logs, exact=True)
        dropped += sum(log.dropped for log in logs)
        check_books(engine)
    assert rows > 100
    assert dropped > 0


@pytest.mark.parametrize(
    "options", [{"kernels": "torch"}, {"dtype": "bfloat16"}, {"quantize": "int4"}], ids=str
)
async def test_schedules_with_deterministic_kernels(tiny_span, options):
    model = tiny_span(**options, deterministic=True)
    rows = 0
    for number in _numbers(2000, 3):
        logs, engine = await run_schedule(model, number)
        rows += check(model, logs, exact=True)
        check_books(engine)
    assert rows > 100


@pytest.mark.parametrize(("kernels", "schedules"), [("native", 8), ("torch", 4)])
async def test_schedules_with_windows(tiny_dir, kernels, schedules):
    """Blocks that see 20 tokens, those of a chunk of 24, and all, in pools that do not hold all pages."""
    with open_checkpoint(str(tiny_dir)) as checkpoint:
        checkpoint.config = with_windows(checkpoint.config)
        options = LoadOptions(dtype="float32", quantize="none", kernels=kernels, deterministic=True)
        model = load_backend(checkpoint, Span(0, 4), options)
    rows = lost = 0
    for number in _numbers(3000, schedules):
        logs, engine = await run_schedule(model, number, LONGEST_OF_WINDOWS)
        rows += check(model, logs, exact=True)
        lost += sum(log.lost for log in logs)
        check_books(engine)
    assert rows > 100
    assert lost > 0


def with_windows(config: ModelConfig) -> ModelConfig:
    kinds = ({}, {"window": 20}, {"chunk": 24}, {"window": 20})
    blocks = [
        replace(block, attention=replace(block.attention, **kind))
        for block, kind in zip(config.blocks, kinds, strict=True)
    ]
    return replace(config, blocks=tuple(blocks))


KINDS = {
    "all kinds": (kept(delta()), block(attention(window=20)), block(state=ShortConvConfig(24, 4)), block()),
    "states alone": (kept(delta()), alone(kept(mamba())), kept(ShortConvConfig(64, 3)), MLP_ALONE),
}


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("kind", KINDS)
async def test_schedules_with_states(kind, deterministic, monkeypatch):
    monkeypatch.setattr(state_table, "NAMED_EVERY", 2)
    rows = lost = went_back = dropped = 0
    model = with_states(kind, deterministic=deterministic)
    for number in _numbers(4000, 6):
        logs, engine = await run_with_states(model, number)
        rows += check(model, logs, exact=deterministic)
        lost += sum(log.lost for log in logs)
        went_back += sum(log.went_back for log in logs)
        dropped += sum(log.dropped for log in logs)
        check_books(engine)
    assert rows > 100
    assert dropped > 0
    assert lost >= went_back
    assert lost > 0


@pytest.mark.parametrize("kind", KINDS)
async def test_schedules_with_states_on_mlx_against_torch(kind):
    rows = 0
    model, plain_model = with_states(kind, device="mlx"), with_states(kind, kernels="torch")
    for number in _numbers(4100, 2):
        logs, engine = await run_with_states(model, number)
        rows += check(plain_model, logs, exact=False)
        check_books(engine)
    assert rows > 100


def with_states(kind, **options):
    blocks = KINDS[kind]
    wanted = LoadOptions(dtype="float32", quantize="none", **options)
    return load_backend(checkpoint_of(blocks), Span(0, len(blocks)), wanted)


async def run_with_states(model, number):
    """A state before each block that sees everything, beside attention, and alone; no mixer at all; and of
    each kind a span of one block. Pools with room for one session, and for many."""
    spans = [Span(0, 4)] * 4 + [Span(1, 3), *(Span(block, block + 1) for block in range(4))]
    most = 4 * sum(block.state is not None for block in model.config.blocks)
    return await run_schedule(model, number, LONGEST_OF_WINDOWS, spans, states=(most, 2 * most, 10 * most))
