"""Bytes at a bounded rate, on a clock that is set by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.fairness.pace import LEAST_AT_ONCE, Pace
from swarm_node.swarm.fairness.shares import Holder

RATE = 1_000_000.0


@dataclass(eq=False)
class Line:
    """A clock, and the one timer of a pace on it."""

    now: float = 0.0
    due: tuple[float, Callable[[], None]] | None = None
    passed: Counter[str] = field(default_factory=Counter)

    def pace(self, rate: float = RATE) -> Pace:
        return Pace(rate, clock=lambda: self.now, call_later=self.call_later)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Line:
        assert self.due is None
        self.due = self.now + seconds, callback
        return self

    def cancel(self) -> None:
        self.due = None

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.due is not None and self.due[0] <= end:
            (self.now, callback), self.due = self.due, None
            callback()
        self.now = end


@dataclass(eq=False)
class Bytes:
    line: Line
    waiting: int
    peer_id: str = "a"
    group: str = ""

    @property
    def holder(self) -> Holder:
        return Holder(self.peer_id, self.group)

    def go(self, most: int) -> None:
        assert 0 < most <= self.waiting
        self.waiting -= most
        self.line.passed[self.peer_id] += most


def test_the_rate_is_kept_and_a_rest_is_worth_a_tenth_of_a_second() -> None:
    line = Line()
    pace = line.pace()
    pace.enter(Bytes(line, 10_000_000))
    assert line.passed["a"] == pace.at_once == RATE / 10
    line.run(5.0)
    assert line.passed["a"] == pytest.approx(5 * RATE, rel=0.05)
    line.run(10.0)
    assert line.passed["a"] == 10_000_000
    assert line.due is None
    pace.enter(Bytes(line, 10_000_000))
    assert line.passed["a"] == 10_000_000 + pace.at_once  # however long it rested


def test_a_few_bytes_pass_at_once_on_the_slowest_line() -> None:
    line = Line()
    pace = line.pace(1000.0)
    pace.enter(Bytes(line, LEAST_AT_ONCE))
    assert line.passed["a"] == LEAST_AT_ONCE


def test_peers_share_it_whatever_each_of_them_sends() -> None:
    line = Line()
    pace = line.pace()
    for peer_id, streams in (("a", 1), ("b", 5)):
        for _ in range(streams):
            pace.enter(Bytes(line, 10_000_000, peer_id))
    line.run(4.0)
    assert line.passed["a"] == pytest.approx(line.passed["b"], rel=0.1)
    assert line.passed.total() == pytest.approx(4 * RATE, rel=0.05)


def test_many_identities_of_one_network_have_one_networks_share() -> None:
    line = Line()
    pace = line.pace()
    for number in range(8):
        pace.enter(Bytes(line, 10_000_000, f"crowd {number}", "here"))
    pace.enter(Bytes(line, 10_000_000, "alone", "there"))
    line.run(4.0)
    assert line.passed["alone"] == pytest.approx(2 * RATE, rel=0.1)


def test_who_sends_little_waits_for_one_turn_of_the_others() -> None:
    line = Line()
    pace = line.pace()
    for number in range(4):
        pace.enter(Bytes(line, 10_000_000, f"much {number}"))
    line.run(1.0)
    pace.enter(Bytes(line, 500, "little"))
    line.run(0.2)
    assert line.passed["little"] == 500


def test_what_left_passes_no_more() -> None:
    line = Line()
    pace = line.pace()
    gone, stays = Bytes(line, 1_000_000, "gone"), Bytes(line, 1_000_000, "stays")
    pace.enter(gone)
    pace.enter(stays)
    pace.leave(gone)
    left = gone.waiting
    line.run(10.0)
    assert gone.waiting == left
    assert stays.waiting == 0
    last = Bytes(line, 1_000_000)
    pace.enter(last)
    pace.close()
    line.run(10.0)
    assert last.waiting
    assert line.due is None


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_moves_nothing_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="moves nothing"):
        Pace(rate)
