from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from swarm_node.node.engine.self_bench import (
    DECODE_SECONDS,
    GROWTH_SECONDS,
    PREFILL_SECONDS,
    PREFILL_TOKENS,
    SelfMeasurement,
    measure_self,
)
from swarm_node.shards.formats.blocks.state import ShortConvConfig
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.types import Span
from tests.shards.models.block_cases import HIDDEN, block, checkpoint_of, indexed


def test_measures_positive_speeds_of_the_span(tiny_span):
    measured = measure_self(tiny_span(Span(1, 3)), "float32", 256)
    assert 0 < measured.decode_ms_per_block < 1000
    assert measured.prefill_tokens_per_s > 0


def test_arithmetic_with_a_clock_of_our_own(tiny_span):
    ticks = itertools.count(step=0.1)  # every look at the clock is 0.1 s later
    measured = measure_self(tiny_span(), "float16", 1000, clock=lambda: next(ticks))
    assert measured.decode_ms_per_block == pytest.approx(100 / 4)
    assert measured.prefill_tokens_per_s == pytest.approx(PREFILL_TOKENS / 0.1)
    assert measured.context_ms_per_block == 0, "a long context took as long"
    assert next(ticks) <= PREFILL_SECONDS + DECODE_SECONDS + GROWTH_SECONDS + 2


def test_a_slow_device_is_measured_once_each(tiny_span):
    ticks = itertools.count(step=50.0)
    measured = measure_self(tiny_span(), "float16", 1000, clock=lambda: next(ticks))
    assert measured.decode_ms_per_block == pytest.approx(50_000 / 4)
    assert next(ticks) <= 500.0


def growth_of(model, kv_dtype: str = "float32", longest: int = 4000) -> float:
    """As measured where a token takes 10 ms, and 10 ms more for each 1000 tokens before it."""
    forward, now = model.forward, 0.0

    def timed(x, pieces, memory):
        nonlocal now
        now += 0.01 + 1e-5 * pieces[0].start
        return forward(x, pieces, memory)

    model.forward = timed
    return measure_self(model, kv_dtype, longest, clock=lambda: now).context_ms_per_block


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_what_a_token_of_context_adds_is_measured(tiny_span, kv_dtype):
    assert growth_of(tiny_span(), kv_dtype) == pytest.approx(10 / 4, rel=1e-6)
    assert growth_of(tiny_span(), kv_dtype, PREFILL_TOKENS + 10) == 0, "too short to tell"


def test_blocks_that_do_not_see_all_tokens_add_nothing():
    """Not even by the noise of a measurement, which is made for blocks that do."""
    kinds = {
        "state": block(attention=None, state=ShortConvConfig(HIDDEN, 3)),
        "window": block(attention=replace(block().attention, window=64)),
        "all": block(),
    }

    def growth(*names: str) -> float:
        blocks, options = [kinds[name] for name in names], LoadOptions(dtype="float32")
        return growth_of(load_backend(checkpoint_of(blocks), Span(0, len(blocks)), options, threads=1))

    assert growth("state") == growth("window") == growth("window", "state") == 0
    assert growth("window", "all", "state") == pytest.approx(10 / 3)


@pytest.mark.parametrize(("top", "first"), [(1500, 1500), (3000, PREFILL_TOKENS)])
def test_growth_is_measured_beyond_the_tokens_that_an_indexer_chooses(top: int, first: int) -> None:
    """Up to these a context costs what it costs without one; unless there is no room for two contexts."""
    made = checkpoint_of((block(indexed(top)),))
    model = load_backend(made, Span(0, 1), LoadOptions(dtype="float32"), threads=1)
    starts, forward = set(), model.forward

    def seen(x, slices, *rest):
        starts.update(part.start for part in slices)
        return forward(x, slices, *rest)

    model.forward = seen
    measure_self(model, "float32", 4000)
    assert starts >= {first, 3999}
    assert starts <= {0, PREFILL_TOKENS, first, 3999}


def test_a_slower_machine_is_slower_with_any_context():
    slower = SelfMeasurement(1.0, 1000.0, 0.25).half_way_to(3.0)
    assert slower == SelfMeasurement(2.0, 1000.0, 0.5)


def test_a_run_that_waited_for_other_work_is_not_the_measure(tiny_span):
    model, now = tiny_span(), 0.0
    forward, runs = model.forward, 0

    def interrupted(x, *rest):
        nonlocal now, runs
        runs += len(x) == 1  # two warm up; the third is the first that counts
        now += 0.4 if runs == 3 else 0.001
        return forward(x, *rest)

    model.forward = interrupted
    measured = measure_self(model, "float16", 1000, clock=lambda: now)
    assert runs > 3
    assert measured.decode_ms_per_block == pytest.approx(1 / 4)


def test_a_cache_of_one_token_is_enough(tiny_span):
    assert measure_self(tiny_span(), "int8", 1).prefill_tokens_per_s > 0
