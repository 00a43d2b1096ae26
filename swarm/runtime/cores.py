"""The cores that this process may use, seen through affinity and container limits."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """Real cores that this process may use: hyper-threads share the units that matrix products keep busy.

    Processes do not see each other: an engine that may narrow takes fewer while others want the cores.
    """
    import psutil  # here: many commands never ask

    logical = psutil.cpu_count() or 1
    real = psutil.cpu_count(logical=False) or logical
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    if usable < logical:
        real = max(1, real * usable // logical)
    if (quota := _quota()) is not None:
        real = min(real, max(1, math.floor(quota)))
    return max(1, real)


def cgroup_file(name: str) -> str:
    """What the control group's file says; empty where there is none."""
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""


def _quota() -> float | None:
    """CPUs that the control group may use; None where it has no quota."""
    fields = cgroup_file("cpu.max").split()
    if len(fields) != 2 or not fields[0].isdecimal() or not fields[1].isdecimal():
        return None
    return int(fields[0]) / int(fields[1])
