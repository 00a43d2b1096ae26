"""The verdict on a codec: medians of peers and of address groups, bounded, and forgotten in time."""

from __future__ import annotations

import numpy as np
import pytest

from swarm_node.swarm.fidelity.error_watch import (
    LEAST_ROWS,
    MOST_GROUPS,
    MOST_PEERS,
    REMEMBERED_S,
    ErrorWatch,
    Verdict,
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> ErrorWatch:
    return ErrorWatch(clock)


def say(watch: ErrorWatch, error: float, group: str = "a", peer: str = "p", rows: int = LEAST_ROWS) -> None:
    watch.add("int8", group, peer, np.full(rows, error))


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(0.002, Verdict.GOOD), (0.01, Verdict.GOOD), (0.011, Verdict.FAIR), (0.026, Verdict.COARSE)],
)
def test_the_mean_decides(watch: ErrorWatch, error: float, verdict: Verdict) -> None:
    say(watch, error)
    assert watch.loss("int8").verdict is verdict
    assert watch.loss("f8").verdict is Verdict.UNKNOWN


def test_a_few_bad_rows_decide_too(watch: ErrorWatch) -> None:
    watch.add("int8", "a", "p", np.array([0.001] * 98 + [0.06] * 1))
    assert watch.loss("int8").verdict is Verdict.COARSE
    watch.add("int8", "a", "p", np.full(100, 0.001))
    assert watch.loss("int8").verdict is Verdict.GOOD


def test_too_few_rows_say_nothing(watch: ErrorWatch) -> None:
    say(watch, 0.9, rows=LEAST_ROWS - 1)
    assert watch.loss("int8").verdict is Verdict.UNKNOWN


def test_most_peers_and_most_groups_decide(watch: ErrorWatch) -> None:
    for peer in ("honest", "another"):
        say(watch, 0.005, "a", peer)
    say(watch, 1.0, "a", "strange")
    say(watch, 0.005, "b")
    for number in range(MOST_PEERS):
        say(watch, 1.0, "c", f"strange {number}")
    assert watch.loss("int8").verdict is Verdict.GOOD
    assert watch.worst("int8") == 1.0
    say(watch, 1.0, "d")
    assert watch.loss("int8").verdict is Verdict.COARSE


def test_of_two_the_worse_one_counts(watch: ErrorWatch) -> None:
    """Whoever has the coarse rows: a finer codec costs bytes, a coarse one answers."""
    for group, peer in (("a", "q"), ("b", "p")):
        say(watch, 0.002)
        assert watch.loss("int8").verdict is Verdict.GOOD
        say(watch, 0.5, group, peer)
        assert watch.loss("int8").verdict is Verdict.COARSE
        watch = ErrorWatch(lambda: 0.0)


def test_the_worst_has_a_say_for_as_long_as_others(watch: ErrorWatch, clock: Clock) -> None:
    say(watch, 0.5, rows=LEAST_ROWS - 1)
    assert watch.worst("int8") == watch.worst("f8") == 0.0
    say(watch, 0.5, rows=1)
    assert watch.worst("int8") == 0.5
    clock.now = REMEMBERED_S
    assert watch.worst("int8") == 0.0


def test_one_row_counts_as_one(watch: ErrorWatch) -> None:
    watch.add("int8", "a", "p", np.array([1e30] + [0.0] * 199))
    assert watch.loss("int8").mean == pytest.approx(1 / 200)


def test_what_is_old_is_forgotten(watch: ErrorWatch, clock: Clock) -> None:
    say(watch, 0.1)
    clock.now = REMEMBERED_S
    assert watch.loss("int8").verdict is Verdict.UNKNOWN


def test_later_rows_outweigh_old_ones(watch: ErrorWatch) -> None:
    say(watch, 0.1, rows=10_000)
    for _ in range(10):
        say(watch, 0.001, rows=500)
    assert watch.loss("int8").mean < 0.01


def test_memory_is_bounded(watch: ErrorWatch) -> None:
    for number in range(3 * MOST_GROUPS):
        for peer in range(3 * MOST_PEERS):
            say(watch, 0.001, f"group {number}", f"peer {peer}")
    groups = watch._kinds["int8"]
    assert len(groups) == MOST_GROUPS
    assert {len(peers) for peers in groups.values()} == {MOST_PEERS}
