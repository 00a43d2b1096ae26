"""Hours of the day, as a person writes them: ``22:00-07:00``, or several such."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import time

from ...swarm.errors import UsageError

_HOURS = re.compile(r"(\d{1,2})(?::(\d{2}))?-(\d{1,2})(?::(\d{2}))?")
_DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class Hours:
    """From ``start`` to before ``end``, in minutes since midnight by the machine's own clock, so that summer
    time needs no care. An ``end`` that is not after ``start`` is on the next day."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Hours:
        """``22:00-07:00``, ``9-17``, ``0-24``. Raises UsageError."""
        if match := _HOURS.fullmatch(text.strip()):
            start, end = (int(match[i]) * 60 + int(match[i + 1] or 0) for i in (1, 3))
            minutes_fit = all(int(match[i] or 0) < 60 for i in (2, 4))
            if minutes_fit and start < _DAY and end <= _DAY and start != end:
                return cls(start, end % _DAY)
        raise UsageError(f"cannot read {text!r} as hours of the day", hint="Write 22:00-07:00, or 9-17.")

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.start, self.end))

    def holds(self, now: time) -> bool:
        minute = now.hour * 60 + now.minute
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


def any_holds(hours: Iterable[Hours], now: time) -> bool:
    return any(each.holds(now) for each in hours)
