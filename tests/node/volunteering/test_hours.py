"""Hours of the day in which a node serves."""

from __future__ import annotations

from datetime import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.volunteering.hours import Hours
from swarm_node.swarm.errors import UsageError


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("22:00-07:00", ["22:00", "23:59", "00:00", "06:59"], ["07:00", "12:00", "21:59"]),
        ("9-17", ["09:00", "16:59"], ["08:59", "17:00"]),
        ("20-24", ["20:00", "23:59"], ["00:00", "19:59"]),
        ("0-24", ["00:00", "12:00", "23:59"], []),
    ],
)
def test_what_hours_mean(text: str, inside: list[str], outside: list[str]) -> None:
    hours = Hours.parse(text)
    assert [now for now in inside if not hours.holds(time.fromisoformat(now))] == []
    assert [now for now in outside if hours.holds(time.fromisoformat(now))] == []


@pytest.mark.parametrize(
    "text", ["", "9", "9-9", "25-3", "9-25", "9:60-10", "24:01-3", "-1-3", "9–17", "24-3"]
)
def test_what_are_no_hours(text: str) -> None:
    with pytest.raises(UsageError, match="hours of the day"):
        Hours.parse(text)


minutes = st.integers(0, 24 * 60 - 1)


@given(minutes, minutes, minutes)
def test_hours_and_those_between_them_make_a_day(start: int, end: int, now: int) -> None:
    if start != end:
        moment = time(now // 60, now % 60)
        assert Hours(start, end).holds(moment) is not Hours(end, start).holds(moment)
        assert Hours.parse(str(Hours(start, end))) == Hours(start, end)
