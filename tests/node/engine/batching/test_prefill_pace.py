from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.engine.batching.prefill_pace import FIRST_SLICE, MIN_SLICE, PrefillPace
from swarm_node.swarm.errors import UsageError


def test_before_anything_is_known():
    pace = PrefillPace(25_000)
    assert pace.slice_tokens(512) == FIRST_SLICE
    assert pace.slice_tokens(10) == 10
    assert pace.slice_tokens(0) == 1  # prefill always moves


@pytest.mark.parametrize("us_per_token", [20, 250, 900])
def test_the_slice_costs_what_it_may(us_per_token):
    pace = PrefillPace(25_000)
    for rows in (1, 4, 8):
        pace.observe(0, rows, 40_000)  # the first batches of all: cold
        pace.observe(0, rows, 3000 + 500 * rows)
    for rows in (1, 4, 8):
        tokens = pace.slice_tokens(10_000)
        pace.observe(tokens, rows, 3000 + 500 * rows + us_per_token * tokens)
    assert pace.slice_tokens(10_000) * us_per_token == pytest.approx(25_000, rel=0.25)


def test_a_slow_machine_still_gets_a_whole_slice():
    pace = PrefillPace(1000)
    pace.observe(64, 0, 10_000_000)
    assert pace.slice_tokens(512) == MIN_SLICE


def test_disturbances_do_not_move_it():
    rng = random.Random(1)
    pace = PrefillPace(25_000)
    slices = []
    for i in range(200):
        disturbed = rng.random() < 0.25
        pace.observe(0, 4, 5000 + (disturbed and 80_000))
        pace.observe(100, 4, 5000 + 25_000 + (disturbed and rng.randrange(500_000)))
        if i > 20:
            slices.append(pace.slice_tokens(512))
    slices.sort()
    assert slices[len(slices) // 2] == pytest.approx(100, rel=0.1)
    assert slices[-1] <= 125
    assert slices[len(slices) // 10] >= 75


def test_it_follows_a_lasting_change():
    pace = PrefillPace(25_000)
    for _ in range(50):
        pace.observe(100, 0, 10_000)
    assert pace.slice_tokens(512) == 250
    for _ in range(5):
        pace.observe(100, 0, 50_000)  # the context has grown
    assert pace.slice_tokens(512) == 50


@given(
    seen=st.lists(st.tuples(st.integers(-1, 10**6), st.integers(-1, 10**6), st.integers(-1, 10**12))),
    target=st.integers(1, 10**9),
    at_most=st.integers(1, 10**6),
)
def test_always_within_bounds(seen, target, at_most):
    pace = PrefillPace(target)
    for observation in seen:
        pace.observe(*observation)
        assert min(MIN_SLICE, at_most) <= pace.slice_tokens(at_most) <= at_most


def test_a_target_must_be_positive():
    with pytest.raises(UsageError):
        PrefillPace(0)
