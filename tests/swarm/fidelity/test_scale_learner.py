"""Scales learned from rows: near those that made the rows, one vote a group, and bounded."""

from __future__ import annotations

import numpy as np
import pytest

from swarm_node.swarm.fidelity.scale_learner import (
    ENOUGH_OF_A_GROUP,
    LEAST_GROUPS,
    LEAST_OF_A_GROUP,
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


def exponents(learner: ScaleLearner, group: str = "a") -> np.ndarray:
    table = learner.table_for(group)
    assert table is not None
    return np.frombuffer(table.exponents, np.int8)


def test_a_table_follows_the_sizes_of_channels() -> None:
    learner = ScaleLearner(ONES)
    learn(learner, "a", rows_of(LEAST_ROWS - 1))
    assert learner.table_for("a") is None
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
        assert learner.table_for(group) is None
    learn(learner, "c", rows_of(4000, SIZES[::-1]))
    expected = RMS_POWER * np.log2(SIZES)
    for group in ("a", "b", "c", "never seen"):
        assert np.abs(exponents(learner, group) - expected).max() <= 0.7


def test_of_fewer_groups_each_has_the_table_of_its_own_rows() -> None:
    learner = ScaleLearner(ONES)
    learn(learner, "a", rows_of(LEAST_ROWS))
    alone = exponents(learner)
    for number in range(2, LEAST_GROUPS):
        learn(learner, f"{number}", rows_of(LEAST_ROWS, SIZES[::-1]))
        assert (exponents(learner) == alone).all()
        assert (exponents(learner, f"{number}") == alone[::-1]).sum() > WIDTH // 2
    assert learner.table_for("never seen") is None
    learn(learner, "too few", rows_of(LEAST_OF_A_GROUP - 1))
    assert learner.table_for("too few") is None
    learn(learner, "too few", rows_of(1))
    assert learner.table_for("too few") is learner.table_for("a") is learner.table_for("never seen")


@pytest.mark.parametrize("groups", [1, 3])
def test_a_table_stays_until_twice_as_many_rows_came(groups: int) -> None:
    learner = ScaleLearner(ONES)

    def all_learn(count: int, sizes: np.ndarray = SIZES) -> None:
        for number in range(groups):
            learn(learner, f"{number}", rows_of(count, sizes))

    all_learn(LEAST_ROWS)
    first = learner.table_for("0")
    all_learn(LEAST_ROWS - 1, SIZES[::-1])
    assert learner.table_for("0") is first
    all_learn(1, SIZES[::-1])
    assert learner.table_for("0") != first


def test_early_groups_do_not_outvote_those_that_come_later_by_their_rows() -> None:
    learner = ScaleLearner(ONES)
    for group, sizes in (("h1", 1 / SIZES), ("h2", 1 / SIZES), ("a", SIZES)):
        learn(learner, group, rows_of(ENOUGH_OF_A_GROUP if group != "a" else LEAST_OF_A_GROUP, sizes))
    expected = RMS_POWER * np.log2(SIZES)
    assert np.abs(exponents(learner) - expected).max() > 1
    for number in range(3):
        learn(learner, f"{number}", rows_of(LEAST_ROWS))
    assert np.abs(exponents(learner) - expected).max() <= 0.7


def test_groups_that_took_all_places_are_replaced() -> None:
    learner = ScaleLearner(ONES)
    for number in range(MOST_GROUPS):
        learn(learner, f"hostile {number}", rows_of(ENOUGH_OF_A_GROUP, 1 / SIZES))
    assert learner.table_for("a") is not None
    for number in range(MOST_GROUPS):
        learn(learner, f"{number}", rows_of(LEAST_ROWS))
        learner.table_for("a")
    assert np.abs(exponents(learner) - RMS_POWER * np.log2(SIZES)).max() <= 0.7


def test_a_group_is_learned_from_up_to_a_bound() -> None:
    learner = ScaleLearner(ONES)
    learn(learner, "a", rows_of(ENOUGH_OF_A_GROUP - 1))
    assert learner.full == frozenset()
    learn(learner, "a", rows_of(1))
    assert learner.full == {"a"}
    before = learner._groups["a"].squares
    learn(learner, "a", rows_of(100))
    assert (learner._groups["a"].squares == before).all()


def test_memory_is_bounded_and_can_be_emptied() -> None:
    learner = ScaleLearner(ONES)
    for number in range(4 * MOST_GROUPS):
        learn(learner, f"group {number}", rows_of(64))
    assert len(learner._groups) == MOST_GROUPS
    assert learner.table_for("anyone") is not None
    learner.forget()
    assert learner.table_for("anyone") is None
    assert not learner._groups
