"""Where a step is, by what hops tell: honest hops are never blamed, and a mute one always is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.protocol.field_types import Progress
from swarm_node.swarm.protocol.step_watch import Fault, StepWatch
from swarm_node.swarm.timeouts import (
    COLD_LEAST_S,
    LEAST_RATE_BYTES_PER_S,
    TRANSIT_LEAST_S,
    WORK_LEAST_S,
    is_trickle,
    transit_within_s,
    work_within_s,
)

WORK_S, TRANSIT_S = 10.0, 1.0


def told(received: int, done: int, work: int = 0) -> Progress:
    return Progress(bytes(16), received, done, work, False)


def watch(hops: int) -> StepWatch:
    return StepWatch(hops, lambda _: WORK_S, lambda _: TRANSIT_S)


@pytest.mark.parametrize(
    ("number", "report", "fault"),
    [
        (0, None, Fault.MUTE),
        (2, None, Fault.MUTE),
        (0, told(4, 4), Fault.MUTE),  # step 5 was sent to it before it was asked
        (2, told(5, 5), Fault.LOST),  # its answer would have come before this, but who fed it may lie
        (0, told(5, 4), None),
        (0, told(6, 5), None),
        (1, told(4, 4), None),  # on its way, perhaps
        (1, told(5, 5), None),
        (2, told(4, 4), None),
        (2, told(5, 4), None),
    ],
)
def test_what_one_report_tells(number: int, report: Progress | None, fault: Fault | None) -> None:
    verdict = watch(3).heard(number, report, 5, 0.0)
    assert (verdict and verdict.fault) == fault
    assert verdict is None or verdict.number == number


def test_one_that_is_fed_here_and_claims_to_have_answered() -> None:
    verdict = watch(1).heard(0, told(5, 5), 5, 0.0)
    assert verdict is not None
    assert verdict.fault is Fault.MUTE


def test_progress_without_an_end_is_none() -> None:
    """A node that tells of other work each time, for one token."""
    judge = watch(1)
    faults = [judge.heard(0, told(5, 4, second), 5, float(second)) for second in range(20)]
    assert faults[: int(WORK_S)] == [None] * int(WORK_S)
    assert faults[12] is not None
    assert faults[12].fault is Fault.LATE


def test_a_step_that_is_on_its_way_for_too_long_is_lost_between_two() -> None:
    judge = watch(3)
    for at in (0.0, 0.5, 1.0, 1.5):
        assert judge.heard(0, told(5, 5), 5, at) is None
        verdict = judge.heard(1, told(4, 4), 5, at)
        assert judge.heard(2, told(4, 4), 5, at) is None
    assert verdict is not None
    assert (verdict.number, verdict.fault) == (1, Fault.LOST)


def test_work_that_stands_still_is_late_and_work_that_grows_is_not() -> None:
    for grows in (False, True):
        judge = watch(2)
        found = []
        for second in range(40):
            report = told(5, 4, second if grows else 7)
            found.append(judge.heard(0, report, 5, float(second), tokens=64))
        assert [verdict is None for verdict in found[:11]] == [True] * 11
        assert (found[12] is None) is grows
        assert grows or (found[12] is not None and found[12].fault is Fault.LATE)


@given(st.data())
def test_hops_that_tell_the_truth_are_never_blamed(data: st.DataObject) -> None:
    """Steps go through honest hops at any pace within the limits; reports come when they come."""
    hops = data.draw(st.integers(1, 4))
    judge = watch(hops)
    received, done = [0] * hops, [0] * hops
    sent, oldest, now, moved = 0, 1, 0.0, 0.0
    for _ in range(data.draw(st.integers(1, 60))):
        now += data.draw(st.floats(0, 0.4))
        action = data.draw(st.integers(0, 3))
        number = data.draw(st.integers(0, hops - 1))
        if action == 0:
            sent += 1
            received[0] = sent  # the reader of the stream is in order
        elif action == 1 and done[number] < received[number]:
            done[number] += 1
            moved = now
        elif action == 2 and number and received[number] < done[number - 1]:
            received[number] += 1
            moved = now
        elif action == 3 and oldest <= sent:
            oldest = max(oldest, done[-1] + 1)  # its results come before its report
            if oldest <= sent:
                report = told(received[number], done[number])
                assert judge.heard(number, report, oldest, now) is None
        if now - moved > TRANSIT_S / 2:  # nobody stands still for long
            for i in range(hops):
                received[i] = sent if i == 0 else max(received[i], done[i - 1])
                done[i] = received[i]
            moved = now


@given(
    expected=st.floats(0, 1e6),
    queue=st.floats(0, 1e6),
    more=st.floats(0, 1e3),
    cold=st.booleans(),
    most=st.floats(60, 300),
)
def test_patience_with_work(expected: float, queue: float, more: float, cold: bool, most: float) -> None:
    allowed = work_within_s(expected, queue, cold=cold, most_s=most)
    assert (COLD_LEAST_S if cold else WORK_LEAST_S) <= allowed <= most
    assert allowed >= min(most, expected + queue)
    assert work_within_s(expected + more, queue, cold=cold, most_s=most) >= allowed
    assert work_within_s(expected, queue, cold=True, most_s=most) >= allowed


@given(st.integers(0, 2**24), st.floats(0, 10))
def test_patience_with_what_is_on_its_way(size: int, round_trip: float) -> None:
    allowed = transit_within_s(size, round_trip)
    assert allowed >= TRANSIT_LEAST_S + round_trip
    assert transit_within_s(size + 1, round_trip) > allowed
    assert transit_within_s(size, round_trip, 1e6) >= allowed


def test_a_trickle() -> None:
    assert not is_trickle(0, 1.0, 1.0)
    assert is_trickle(0, 1.1, 1.0)
    assert is_trickle(5, 6.0, 1.0)  # a byte a second
    assert not is_trickle(int(10 * LEAST_RATE_BYTES_PER_S), 10.0, 1.0)


def test_a_report_of_another_step_is_no_progress_of_this_one() -> None:
    judge = watch(1)
    first = told(9, 4)
    assert judge.heard(0, first, 5, 0.0) is None
    late = judge.heard(0, replace(first, received=9), 5, WORK_S + 1)
    assert late is not None
    assert late.fault is Fault.LATE
