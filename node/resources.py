"""What this machine lets one node use: cores and memory, seen through affinity and container limits."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil
import torch

from ..swarm.errors import UsageError

_CGROUP = Path("/sys/fs/cgroup")

KV_SHARE = 0.25
"""Part of the available memory that the default gives to KV cache: weights of other nodes, the page cache
and the machine's owner need the rest."""
KV_CEILING = 0.8
"""Part of the available memory that one full context may claim when it needs more than its share."""
MAX_CONTEXTS = 64
"""The default stops at this many full contexts: more sessions than a node can decode at a useful speed."""


def default_kv_tokens(available_bytes: int, bytes_per_token: int, context_tokens: int) -> int:
    """Tokens of KV cache for a node that was not told: a share of the available memory.

    At least one full context where that fits into KV_CEILING, at most MAX_CONTEXTS of them, never less than
    one token. ``bytes_per_token`` is for the whole span.
    """
    if bytes_per_token < 1 or context_tokens < 1:
        raise UsageError(f"{bytes_per_token} bytes a token and a context of {context_tokens} make no cache")
    share = int(available_bytes * KV_SHARE) // bytes_per_token
    ceiling = int(available_bytes * KV_CEILING) // bytes_per_token
    wanted = max(share, min(context_tokens, ceiling))
    return max(1, min(wanted, MAX_CONTEXTS * context_tokens))


def default_threads() -> int:
    """Real cores that this process may use: hyper-threads share the units that matrix products keep busy.

    Nodes do not see each other; ``--threads`` gives each its part where that is wanted.
    """
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
