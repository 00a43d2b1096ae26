"""Whether our clock agrees with those of the peers that we begin with."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from .entry_check import MAX_CLOCK_SKEW_S


@dataclass(frozen=True, slots=True)
class ClockReading:
    """How far a peer's clock is ahead of ours, in seconds, known to ± ``uncertainty``."""

    ahead: float
    uncertainty: float

    @property
    def skewed(self) -> bool:
        return abs(self.ahead) - self.uncertainty > MAX_CLOCK_SKEW_S


def clock_problem(readings: Mapping[str, ClockReading]) -> str | None:
    """A sentence for people if every peer (by id) that was read disagrees with our clock, else None."""
    if not readings or not all(reading.skewed for reading in readings.values()):
        return None
    ahead = statistics.median(reading.ahead for reading in readings.values())
    whom = f"peer {next(iter(readings))}" if len(readings) == 1 else f"all {len(readings)} initial peers"
    how = "behind" if ahead > 0 else "ahead of"
    return (
        f"this computer's clock is {abs(ahead):.1f} s {how} that of {whom}; "
        f"announcements need clocks within {MAX_CLOCK_SKEW_S:.0f} s of each other"
    )
