from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.errors import LocalProtocolError, RouteError, UsageError
from swarm_node.swarm.faults import MAX_TRIES, Faults


def adding(bad: set[int], fault: Exception | None = None) -> object:
    def work(records: Sequence[int]) -> int:
        if bad & set(records):
            raise fault or ZeroDivisionError()
        return sum(records)

    return work


@given(st.sets(st.integers(0, 200), max_size=3), st.integers(1, 200))
def test_the_work_is_done_without_those_that_it_fails_over(bad: set[int], count: int) -> None:
    records = list(range(count))
    faults = Faults("test")
    if len(bad & set(records)) == len(records):
        return
    result = faults.without_culprits(adding(bad), records, str)  # type: ignore[arg-type]
    assert result == sum(set(records) - bad)
    assert faults.count == len(bad & set(records))


def test_a_fault_is_told_once_with_its_traceback_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults("test")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            faults.without_culprits(adding({2}), [1, 2, 3], lambda record: f"peer-{record}")  # type: ignore[arg-type]
    assert faults.count == 3
    assert [record.exc_info is not None for record in caplog.records] == [True, False, False]
    assert all("peer=peer-2" in record.getMessage() for record in caplog.records)


def test_an_answer_is_no_fault() -> None:
    def work(records: Sequence[int]) -> int:
        raise RouteError("nobody serves it")

    faults = Faults("test")
    with pytest.raises(RouteError):
        faults.without_culprits(work, [1, 2], str)
    assert faults.count == 0


@pytest.mark.parametrize(
    "fault", [UsageError("a link of nan s is not possible"), LocalProtocolError("no span")]
)
def test_what_says_that_we_are_wrong_is_a_fault(fault: Exception) -> None:
    faults = Faults("test")
    assert faults.without_culprits(adding({2}, fault), [1, 2, 3], str) == 4  # type: ignore[arg-type]
    assert faults.count == 1


def test_a_fault_of_nobodys_records_is_raised() -> None:
    def work(records: Sequence[int]) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Faults("test").without_culprits(work, [1, 2, 3], str)


def test_the_search_for_culprits_is_bounded() -> None:
    calls = 0

    def work(records: Sequence[int]) -> int:
        nonlocal calls
        calls += 1
        if len(records) > 1:
            raise ZeroDivisionError
        return 0

    Faults("test").without_culprits(work, list(range(1000)), str)
    assert calls <= MAX_TRIES + 2


def test_a_loop_survives_and_its_fault_is_told(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults("test")
    for _ in range(2):
        with faults.survived():
            raise ZeroDivisionError
    assert faults.count == 2
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(KeyboardInterrupt), faults.survived():
        raise KeyboardInterrupt
