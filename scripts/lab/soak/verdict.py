"""What the samples of a soak test say: is everything given back, and is memory flat?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

GROWTH_MB = {"rss_mb": 8.0, "p2pd_rss_mb": 16.0}
"""Most that memory may grow over the second half of a run, along the line that fits its samples best. The
daemon's garbage collector lets its own swing more."""
SLOPE_FROM_S = 300.0
"""A shorter run has no steady half: caches fill, and KV pages take memory when they are first written."""
SHORT_GROWTH_MB = 160.0
"""Most that memory may grow in a shorter run, where a third of it is KV pages written for the first time."""
MORE_FDS = 4
MORE_DAEMON_FDS = 16
MORE_THREADS = 8
"""Above the number at the start: sockets about to close; the pool for blocking calls starts lazily."""
HELD = ("used_slots", "reserved_slots", "used_states", "reserved_states")
MUST_BE_ZERO = ("sessions", "connections", "queued", "sequences", *HELD)
"""When all clients are gone. A slot is a KV page of one block, a state that of one block."""

MOST_OF_A_LINE = 300
TOLD_CALLS = 4
"""Of a traceback, the innermost."""

_BAD_LINE = re.compile(r"Traceback|\bERROR\b|\bCRITICAL\b|exception was never retrieved|never awaited")


@dataclass(frozen=True, slots=True)
class Sample:
    """One node at one moment, ``at`` seconds into the run."""

    at: float
    rss_mb: float
    fds: int
    threads: int
    tasks: int
    sessions: int
    connections: int
    queued: int
    sequences: int
    used_slots: int
    reserved_slots: int
    cached_slots: int
    used_states: int
    reserved_states: int
    cached_states: int
    p2pd_rss_mb: float
    p2pd_fds: int

    @classmethod
    def of(cls, at: float, statistics: dict[str, Any]) -> Sample:
        """From what ``NodeProcess.statistics`` gives."""
        server, engine = statistics["server"], statistics["engine"]
        return cls(
            at=round(at, 2),
            rss_mb=statistics["process"]["rss"] / 1e6,
            fds=statistics["process"]["fds"],
            threads=statistics["process"]["threads"],
            tasks=sum(statistics["tasks"].values()),
            p2pd_rss_mb=sum(daemon["rss"] for daemon in statistics["daemon"]) / 1e6,
            p2pd_fds=sum(daemon["fds"] for daemon in statistics["daemon"]),
            **{name: server[name] for name in ("sessions", "connections", "queued")},
            **{name: engine[name] for name in ("sequences", *HELD, "cached_slots", "cached_states")},
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through (x, y) with the least squares; 0 where there is none."""
    n = len(points)
    if n < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / n
    mean_y = sum(y for _, y in points) / n
    width = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / width if width else 0.0


def second_half_growth(samples: Sequence[Sample], name: str) -> float:
    """MB along the fitted line, from the middle of the run to its end."""
    end = samples[-1].at
    half = [sample for sample in samples if sample.at >= end / 2]
    return slope([(sample.at, getattr(sample, name)) for sample in half]) * end / 2


def node_problems(start: Sample, samples: Sequence[Sample], final: Sample) -> list[str]:
    """What a node still holds when everybody has left, or holds more of all the time.

    ``start``: idle, before the first client. ``samples``: under load. ``final``: when all clients are gone.
    """
    problems = [f"{getattr(final, name)} {name} at the end" for name in MUST_BE_ZERO if getattr(final, name)]
    bounds = {"fds": MORE_FDS, "p2pd_fds": MORE_DAEMON_FDS, "threads": MORE_THREADS, "tasks": 0}
    for name, more in bounds.items():
        before, after = getattr(start, name), getattr(final, name)
        if after > before + more:
            problems.append(f"{name} went from {before} to {after}, at most {before + more} expected")
    if not samples:
        return [*problems, "no samples"]
    if samples[-1].at >= SLOPE_FROM_S:
        for name, most in GROWTH_MB.items():
            if (growth := second_half_growth(samples, name)) > most:
                problems.append(f"{name} grew by {growth:.1f} MB over the second half, {most} allowed")
    elif final.rss_mb > start.rss_mb + SHORT_GROWTH_MB:
        problems.append(
            f"rss_mb went from {start.rss_mb:.0f} to {final.rss_mb:.0f}, {SHORT_GROWTH_MB:.0f} more allowed"
        )
    return problems


def log_problems(stderr: str) -> list[str]:
    """Lines of a node's log that tell of a fault of its own, not of a peer's. That of a traceback is followed
    by where it happened and what was raised."""
    problems: list[str] = []
    lines = stderr.splitlines()
    for number, line in enumerate(lines):
        if not _BAD_LINE.search(line):
            continue
        text = line.strip()[:MOST_OF_A_LINE]
        if line.startswith("Traceback"):
            inside = takewhile(lambda each: each.startswith("  "), lines[number + 1 :])
            place = [each.strip() for each in inside if each.startswith('  File "')]
            raised = next((each for each in lines[number + 1 :] if not each.startswith("  ")), "")
            text = " ".join((*place[-TOLD_CALLS:], raised.strip()[:MOST_OF_A_LINE]))
        problems.append(f"log: {text}")
    return problems
