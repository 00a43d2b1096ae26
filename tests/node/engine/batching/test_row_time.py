"""What a row takes, learned from batches' times."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.engine.batching.row_time import LATELY, RowTime


def learned(
    base_us: float, row_us: float, *, batches: int = 300, noise: float = 0.0, seed: int = 1
) -> RowTime:
    """From batches of 1 to 64 rows, of which one in five is spoilt if there is ``noise``."""
    rng, time = random.Random(seed), RowTime()
    for _ in range(batches):
        rows = rng.choice((1, 1, 2, 8, 9, 17, 33, 64))
        took_us = base_us + row_us * rows
        if rng.random() < 0.2:
            took_us *= 1 + noise * rng.random()
        time.observe(rows, round(took_us))
    return time


@pytest.mark.parametrize(("base_us", "row_us"), [(3100, 400), (10_000, 50), (3100, 2000), (50, 3)])
def test_base_and_row_are_told_apart(base_us: float, row_us: float) -> None:
    time = learned(base_us, row_us)
    assert time.row_us == pytest.approx(row_us, rel=0.1)
    assert time.base_us == pytest.approx(base_us, rel=0.1)
    assert time.batch_us(20) == pytest.approx(base_us + 20 * row_us, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_batches_that_other_work_has_slowed_count_for_little(seed: int) -> None:
    assert learned(3100, 400, noise=3.0, seed=seed).row_us == pytest.approx(400, rel=0.35)


def test_nothing_is_known_from_batches_of_one_size() -> None:
    time = RowTime()
    for _ in range(100):
        time.observe(8, 6000)
    assert (time.row_us, time.base_us) == (0.0, 0.0)
    assert time.batch_us(5) == 5.0  # in comparison


def test_what_changes_is_learned_again() -> None:
    time = learned(3100, 400)
    rng = random.Random(2)
    for _ in range(300):
        rows = rng.choice((1, 2, 8, 16))
        time.observe(rows, 3100 + 900 * rows)
    assert time.row_us == pytest.approx(900, rel=0.15)


def test_what_was_seen_long_ago_is_not_compared_with_what_is_seen_now() -> None:
    time = learned(3100, 400)
    for _ in range(2 * LATELY):
        time.observe(1, 35_000)  # ten times as slow: but a row more may take what it took
    assert time.row_us == pytest.approx(400, rel=0.1)
    for _ in range(16):
        time.observe(8, 63_000)
    assert time.row_us == pytest.approx(4000, rel=0.1)


@given(st.lists(st.tuples(st.integers(-5, 10**6), st.integers(-5, 10**12)), max_size=60))
def test_no_batches_make_nonsense_of_it(batches: list[tuple[int, int]]) -> None:
    time = RowTime()
    for rows, elapsed_us in batches:
        time.observe(rows, elapsed_us)
        assert time.row_us >= 0.0
        assert time.base_us >= 0.0
        assert 0.0 <= time.batch_us(3) < 1e9
