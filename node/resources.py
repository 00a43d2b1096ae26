"""What this machine lets one node use: cores and memory, seen through affinity and container limits."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")


def default_threads() -> int:
    """Real cores that this process may use: hyper-threads share the units that matrix products keep busy."""
    logical = psutil.cpu_count() or 1
    real = psutil.cpu_count(logical=False) or logical
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    if usable < logical:
        real = max(1, real * usable // logical)
    if (quota := _cgroup_cpus()) is not None:
        real = min(real, max(1, math.floor(quota)))
    return max(1, real)


def available_memory(device: torch.device) -> int:
    """Bytes that this process may still take on ``device`` (the host's for a device that shares its
    memory)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    if (left := _cgroup_memory_left()) is not None:
        free = min(free, left)
    return free


def _cgroup_cpus() -> float | None:
    """CPUs of the control group's quota; None without one."""
    fields = _read(_CGROUP / "cpu.max").split()
    if len(fields) != 2 or not fields[0].isdigit() or not fields[1].isdigit():
        return None
    return int(fields[0]) / int(fields[1])


def _cgroup_memory_left() -> int | None:
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    if not limit.isdigit() or not used.isdigit():
        return None
    return max(0, int(limit) - int(used))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
