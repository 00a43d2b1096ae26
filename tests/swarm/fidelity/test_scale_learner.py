"""Scales learned from rows: near those that made the rows, one vote a group, and bounded."""

from __future__ import annotations

import numpy as np
import pytest

from swarm_node.swarm.fidelity.scale_learner import (
    LEAST_ROWS,
    MOST_GROUPS,
    RMS_POWER,
    WEIGHT_POWER,
    ScaleLearner,
    channel_squares,
)

WIDTH = 64
SIZES = np.exp2(np.arange(WIDTH) % 7 - 3.0)
"""Of the channels; their median is 1."""
ONES = np.ones(WIDTH, np.float32)


def rows_of(count: int, sizes: np.ndarray = SIZES, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, len(sizes))) * sizes
    return rows.astype(np.float32)


def learn(learner: ScaleLearner, group: str, rows: np.ndarray) -> None:
    learner.add(group, channel_squares(rows), len(rows))


def exponents(learner: ScaleLearner) -> np.ndarray:
    table = learner.table()
    assert table is not None
    return np.frombuffer(table.exponents, np.int8)


def test_a_table_follows_the_sizes_of_channels() -> None:
    learner = ScaleLearner(ONES)
    learn(learner, "a", rows_of(LEAST_ROWS - 1))
    assert learner.table() is None
    learn(learner, "a", rows_of(1))
    expected = RMS_POWER * np.log2(SIZES)
    assert np.abs(exponents(learner) - expected).max() <= 0.7  # rounding, and noise


def test_a_channel_that_is_read_with_more_weight_gets_smaller_steps() -> None:
    weights = ONES.copy()
    weights[::2] = 32
    learner = ScaleLearner(weights)
    learn(learner, "a", rows_of(LEAST_ROWS, np.ones(WIDTH)))
    found = exponents(learner)
    assert (found[1::2] - found[::2] == round(5 * WEIGHT_POWER)).all()


def test_massive_rows_say_no_more_than_others() -> None:
    usual, massive = rows_of(LEAST_ROWS), rows_of(8)
    massive[:, 3] = 1e6
    others = np.arange(WIDTH) != 3
    one, both = channel_squares(usual), channel_squares(np.concatenate([usual, massive]))
    assert both[others] == pytest.approx(one[others], rel=1e-3)
    assert not channel_squares(np.zeros((2, WIDTH), np.float32)).any()
    for largest in (2.0**40, 1e-30):
        found = channel_squares(np.full((2, WIDTH), largest, np.float32))
        assert found == pytest.approx(np.full(WIDTH, 2.0), rel=1e-3)


def test_each_group_has_one_vote() -> None:
    learner = ScaleLearner(ONES)
    for group in ("a", "b"):
        learn(learner, group, rows_of(300))
    honest = exponents(learner)
    learn(learner, "c", rows_of(4000, SIZES[::-1]))
    assert np.abs(exponents(learner) - honest).max() <= 1


def test_a_table_stays_until_twice_as_many_rows_came() -> None:
    learner = ScaleLearner(ONES)
    learn(learner, "a", rows_of(LEAST_ROWS))
    first = learner.table()
    learn(learner, "a", rows_of(LEAST_ROWS - 1, SIZES[::-1]))
    assert learner.table() is first
    learn(learner, "a", rows_of(1, SIZES[::-1]))
    assert learner.table() != first


def test_memory_is_bounded_and_can_be_emptied() -> None:
    learner = ScaleLearner(ONES)
    for number in range(4 * MOST_GROUPS):
        learn(learner, f"group {number}", rows_of(64))
    assert len(learner._groups) == MOST_GROUPS
    assert learner.table() is not None
    learner.forget()
    assert (learner.table(), learner.rows) == (None, 0)
