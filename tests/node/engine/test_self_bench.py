from __future__ import annotations

import itertools

import pytest

from swarm_node.node.engine.self_bench import DECODE_SECONDS, PREFILL_SECONDS, PREFILL_TOKENS, measure_self
from swarm_node.swarm.types import Span


def test_measures_positive_speeds_of_the_span(tiny_span):
    measured = measure_self(tiny_span(Span(1, 3)), "float32", 256)
    assert 0 < measured.decode_ms_per_block < 1000
    assert measured.prefill_tokens_per_s > 0


def test_arithmetic_with_a_clock_of_our_own(tiny_span):
    ticks = itertools.count(step=0.1)  # every look at the clock is 0.1 s later
    measured = measure_self(tiny_span(), "float16", 1000, clock=lambda: next(ticks))
    assert measured.decode_ms_per_block == pytest.approx(100 / 4)
    assert measured.prefill_tokens_per_s == pytest.approx(PREFILL_TOKENS / 0.1)
    assert next(ticks) <= PREFILL_SECONDS + DECODE_SECONDS + 0.5


def test_a_slow_device_is_measured_once_each(tiny_span):
    ticks = itertools.count(step=50.0)
    measured = measure_self(tiny_span(), "float16", 1000, clock=lambda: next(ticks))
    assert measured.decode_ms_per_block == pytest.approx(50_000 / 4)
    assert next(ticks) == 200.0


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
