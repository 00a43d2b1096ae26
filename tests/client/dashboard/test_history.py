"""What is kept of the last hours."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.dashboard.history import COARSE, COLUMNS, FINE, MERGED, STEP_S, History, percentile
from swarm_node.client.dashboard.source import Counters
from swarm_node.swarm.runtime.histogram import Distribution, Histogram
from tests.client.dashboard.simulated import BOUNDS, SMOL, SimulatedSource, three_nodes


def as_dicts(history: History) -> list[dict[str, float | None]]:
    return [dict(zip(COLUMNS, item, strict=True)) for item in history.items.values()]


def test_a_sample_says_what_happened_in_it() -> None:
    history, source, nodes = History(), SimulatedSource(), three_nodes()
    history.note(1000.0, nodes, source.counters())
    source.totals = Counters(answers=4, failed=1, repairs=2, tokens=50)
    for seconds in (0.04, 0.04, 0.04, 0.9):
        source.first_token_s.add(seconds)
    history.note(1010.0, nodes[1:], source.counters())
    first, second = as_dicts(history)
    assert (first["nodes"], first["joined"], first["missing"]) == (3, 0, 0)  # it was there before we looked
    assert (second["nodes"], second["left"], second["missing"]) == (2, 1, SMOL.n_blocks // 3)
    assert (second["answers"], second["failed"], second["repairs"]) == (4, 1, 2)
    assert second["own_tokens_per_s"] == 50 / STEP_S
    assert second["first_token_p50"] == pytest.approx(0.04, abs=0.01)
    assert 0.5 < (second["first_token_p95"] or 0) <= 1.0
    assert second["token_p50"] is None  # nothing was measured


def test_it_is_bounded_and_coarse_samples_keep_sums_and_means() -> None:
    history, chance = History(), random.Random(1)
    nodes = three_nodes()
    for step in range(FINE + MERGED * (COARSE + 50)):
        there = [node for node in nodes if chance.random() < 0.5]
        history.note(STEP_S * step, there, Counters(answers=step + 1))
    assert FINE <= len(history.items) - COARSE < FINE + MERGED
    items = as_dicts(history)
    oldest = items[0] if items[0]["answers"] == MERGED else items[-1]
    assert oldest["answers"] == MERGED
    assert sum(item["answers"] or 0 for item in items) == pytest.approx(
        FINE + MERGED * COARSE, abs=2 * MERGED
    )
    assert all(0 <= (item["nodes"] or 0) <= 3 for item in items)


@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=50), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_a_percentile_lies_in_the_bucket_of_its_value(values: list[float], part: float) -> None:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.add(value)
    found = percentile(histogram.totals(), part)
    if part == 0.0:
        return  # the least value has no rank
    rank = max(1, -int(-part * len(values) // 1))
    exact = sorted(values)[rank - 1]
    above = next((bound for bound in BOUNDS if exact <= bound), BOUNDS[-1])
    below = max((bound for bound in BOUNDS if bound < exact), default=0.0)
    assert found is not None
    assert min(below, BOUNDS[-1]) <= found <= above


def test_no_values_have_no_percentile() -> None:
    assert percentile(Distribution(), 0.5) is None
    assert percentile(Histogram(BOUNDS).totals(), 0.95) is None
