"""Which of the paths to a peer to try, and when: a pure function of what is known of each.

Paths come in the order of preference. A path that works is kept, unless a preferred one was never tried, or
another is clearly faster; so small changes of a round trip move nothing. A path that failed rests for a time
that grows. After that it is tried beside one that works, so that a further failure costs no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NEXT_PATH_S = 0.25
"""Seconds after which the next path is tried beside one that has not answered: as long as RFC 8305 waits for
a further address."""
FIRST_REST_S = 5.0
"""Seconds that a path rests after a failure: a node that starts again is back by then. Doubled with each
further failure in a row."""
LONGEST_REST_S = 600.0
"""Seconds of the longest rest. A firewall seldom opens, and a try costs a few packets."""
FASTER_S = 0.005
"""A path is clearly faster from this many seconds of round trip on: as iroh (RTT_SWITCHING_MIN) has it."""
FASTER_PART = 0.2
"""And if that is at least this part of the slower one's: far away, 5 ms are noise."""
RISE = 0.25
"""A longer round trip moves what is remembered by this part of the difference: it may have been a busy peer.
A shorter one counts at once."""


@dataclass(frozen=True, slots=True)
class PathRecord:
    """What is known of one path to one peer. Times in seconds on the caller's clock. ``failures``: in a row.
    ``round_trip_s``: 0 where it was not measured."""

    worked_at: float | None = None
    failed_at: float = 0.0
    failures: int = 0
    round_trip_s: float = 0.0

    @property
    def works(self) -> bool:
        return self.worked_at is not None and not self.failures

    def worked(self, now: float) -> PathRecord:
        return PathRecord(now, self.failed_at, 0, self.round_trip_s)

    def failed(self, now: float) -> PathRecord:
        return PathRecord(self.worked_at, now, self.failures + 1, 0.0)

    def answered(self, seconds: float) -> PathRecord:
        """The peer's first answer on a new stream took ``seconds``."""
        before = self.round_trip_s
        smoothed = seconds if not before or seconds < before else before + RISE * (seconds - before)
        return PathRecord(self.worked_at, self.failed_at, self.failures, smoothed)

    def rests(self, now: float) -> bool:
        rest_s = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** min(self.failures - 1, 30))
        return self.failures > 0 and now < self.failed_at + rest_s


UNKNOWN = PathRecord()


@dataclass(frozen=True, slots=True)
class Start:
    """Try this path ``after_s`` seconds, or once all that were started before have failed."""

    path: str
    after_s: float


def choose(paths: Sequence[str], known: Mapping[str, PathRecord], kept: str, now: float) -> list[Start]:
    """When to try which of ``paths``, which come in the order of preference. ``kept``: the path that was used
    last; "": none. Those that rest are left out, unless all do."""
    records = {path: known.get(path, UNKNOWN) for path in paths}
    awake = [path for path in paths if not records[path].rests(now)] or list(paths)
    sound = [path for path in awake if not records[path].failures]
    lead = _lead(sound, records, kept) if sound else awake[0]
    rest = [path for path in awake if path != lead]
    again = [path for path in rest if sound and records[path].failures]
    later = [path for path in rest if path not in again]
    return [
        Start(lead, 0.0),
        *(Start(path, 0.0) for path in again),
        *(Start(path, place * NEXT_PATH_S) for place, path in enumerate(later, 1)),
    ]


def _lead(sound: Sequence[str], records: Mapping[str, PathRecord], kept: str) -> str:
    """The first of the paths to be tried, none of which has failed."""
    if not records[sound[0]].works:
        return sound[0]
    working = [path for path in sound if records[path].works]
    lead = kept if kept in working else working[0]
    fastest = min(working, key=lambda path: records[path].round_trip_s or float("inf"))
    return fastest if _clearly_faster(records[fastest], records[lead]) else lead


def _clearly_faster(one: PathRecord, than: PathRecord) -> bool:
    gain = than.round_trip_s - one.round_trip_s
    return bool(one.round_trip_s) and gain >= max(FASTER_S, FASTER_PART * than.round_trip_s)
