"""Where the oldest step without a result is, by what the hops that it passes tell: a pure judge.

Each report is judged when it comes. What it says about order needs no clock (see ``patience``): the first
hop got the step on the stream of the question, and the last one's result comes on the stream of the report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import inf

from .field_types import Progress

SLICE_TOKENS = 16
"""A node that computes a prompt in slices makes progress by at least this many tokens. So reports of progress
can put off a verdict only a bounded number of times."""


class Fault(Enum):
    """MUTE: the hop breaks its word. LATE: it shows no progress for too long. SLOW: it shows no progress for
    long enough that another hop might be faster. LOST: a step that the hop before it has sent on has not
    reached it, and either may be the cause."""

    MUTE = "mute"
    LATE = "late"
    SLOW = "slow"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``number``: of the hop."""

    number: int
    fault: Fault
    reason: str


class StepWatch:
    """Reports of ``hops`` hops in a chain, of which one may be all. How long a hop may show no progress,
    ``work_within_s(number)`` tells, and ``doubt_within_s(number)`` before it counts as slow;
    ``transit_within_s(number)`` how long the way to it may take. Times are of any one clock, in seconds."""

    def __init__(
        self,
        hops: int,
        work_within_s: Callable[[int], float],
        transit_within_s: Callable[[int], float],
        doubt_within_s: Callable[[int], float] = lambda _: inf,
    ) -> None:
        self._told: list[Progress | None] = [None] * hops
        self._work_within_s = work_within_s
        self._transit_within_s = transit_within_s
        self._doubt_within_s = doubt_within_s
        self._place: tuple[object, ...] = ()
        self._place_since = 0.0
        self._state: tuple[int, ...] = ()
        self._state_since = 0.0

    def heard(
        self, number: int, told: Progress | None, oldest: int, now: float, *, tokens: int = 1
    ) -> Verdict | None:
        """Hop ``number`` told so of the session; None: that it has none. ``oldest``: the step that was the
        oldest without a result when the hop was asked, and is it still; of ``tokens`` tokens."""
        if told is None:
            return Verdict(number, Fault.MUTE, "does not know a session that it has opened")
        if number == 0 and told.received < oldest:
            return Verdict(number, Fault.MUTE, "does not have a step that it was sent")
        if number == len(self._told) - 1 and told.done >= oldest:
            # Who is fed by another may have been sent something else under that number.
            fault = Fault.LOST if number else Fault.MUTE
            return Verdict(number, fault, "claims to have answered a step, and has not")
        self._told[number] = told
        place = next((i for i, each in enumerate(self._told) if each is None or each.done < oldest), 0)
        here = self._told[place]
        if here is None:
            return None  # it has not been heard yet
        works = here.received >= oldest
        still_s, whole_s = self._still_s((oldest, place, works), (here.received, here.done, here.work), now)
        if number != place:
            return None  # what is known of that hop may be old
        if works:
            stands_s = max(still_s, whole_s / (1 + tokens / SLICE_TOKENS))
            late = stands_s > self._work_within_s(place)
            if not late and stands_s <= self._doubt_within_s(place):
                return None
            reason = f"has a step for {still_s:.1f} s, and makes no progress"
            return Verdict(place, Fault.LATE if late else Fault.SLOW, reason)
        if still_s > self._transit_within_s(place):
            return Verdict(
                place, Fault.LOST, f"did not receive within {still_s:.1f} s what the hop before it sent"
            )
        return None

    def _still_s(self, place: tuple[object, ...], state: tuple[int, ...], now: float) -> tuple[float, float]:
        """Seconds for which nothing has changed, and for which the step has been where it is."""
        if place != self._place:
            self._place, self._place_since = place, now
            self._state, self._state_since = state, now
        elif state != self._state:
            self._state, self._state_since = state, now
        return now - self._state_since, now - self._place_since
