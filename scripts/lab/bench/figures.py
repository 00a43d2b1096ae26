"""Figures of single runs, and what is shown of several."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from typing import Any

import psutil


def rss_mb() -> float:
    """This process's memory, in 10^6 bytes."""
    return psutil.Process().memory_info().rss / 1e6


def processor_s(pids: Sequence[int] = ()) -> float:
    """Seconds of processor time of this process, of ``pids``, and of all that these have started."""
    found: dict[int, float] = {}
    for pid in (psutil.Process().pid, *pids):
        for process in (each := psutil.Process(pid), *each.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[process.pid] = sum(process.cpu_times()[:2])
    return sum(found.values())


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the runs that have it; ``errors`` are added up instead.

    With ``runs``, so that the spread can be seen.
    """
    numbers: dict[str, list[float]] = {}
    for run in runs:
        for key, value in run.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.setdefault(key, []).append(value)
    summary: dict[str, Any] = {
        key: sum(values) if key == "errors" else statistics.median(values) for key, values in numbers.items()
    }
    return {**summary, "runs": list(runs)}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of the values do not exceed; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def high(values: Sequence[float]) -> float:
    """What nine of ten stay below: on a machine where others work too, nearest to what it can do alone."""
    return percentile(values, 0.9)


def spread_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest of some times, in milliseconds."""
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(percentile(seconds, share) * 1000, 3) for name, share in shares.items()}
