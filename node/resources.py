"""The memory that this machine lets one node use, seen through container limits."""

from __future__ import annotations

import gc
import sys

import psutil

from ..shards.loading import device_memory
from ..swarm.errors import UsageError
from ..swarm.runtime.cores import cgroup_file
from ..swarm.runtime.heap import trim_heap

KV_SHARE = 0.25
"""The default gives this part of the available memory to KV cache: weights of other nodes, the page cache and
the machine's owner need the rest."""
KV_CEILING = 0.8
"""One full context may claim this part of the available memory when it needs more than its share."""
MAX_CONTEXTS = 64
"""The default stops at this many full contexts: more sessions than a node can decode at a useful speed."""
USABLE_SHARE = 0.8
"""A node that chooses its blocks itself plans with this part of the available memory: activations, journals
and the machine's owner need the rest."""


class MemoryShortError(UsageError):
    """What was to be loaded does not fit: fewer blocks may."""


def default_kv_bytes(available_bytes: int, context_bytes: int, *, is_budget: bool = False) -> int:
    """Bytes of KV cache for a node that was not told: a share of the available memory.

    At least one full context, of ``context_bytes`` (0 for blocks that cache nothing), where that fits into
    KV_CEILING, and at most MAX_CONTEXTS of them. ``is_budget``: all of ``available_bytes`` is meant for the
    cache.
    """
    if context_bytes < 0:
        raise UsageError(f"a context of {context_bytes} bytes is not possible")
    share = int(available_bytes * (1 if is_budget else KV_SHARE))
    ceiling = int(available_bytes * KV_CEILING)
    return min(max(share, min(context_bytes, ceiling)), MAX_CONTEXTS * context_bytes)


def available_memory(device: str) -> int:
    """Bytes that this process may still take on ``device`` (the host's for a device that shares its
    memory)."""
    if (own := device_memory(device)) is not None:
        return own
    free = int(psutil.virtual_memory().available)
    if (left := _cgroup_memory_left()) is not None:
        free = min(free, left)
    return free


def usable_memory(device: str, limit: int | None) -> int:
    """Bytes that a node may plan to fill with weights and KV cache; ``limit``: what it was allowed."""
    available = available_memory(device)
    return int(available * USABLE_SHARE) if limit is None else min(limit, available)


def give_memory_back(device: str) -> None:
    """Return what was freed to the system, or to the device: others shall have it."""
    gc.collect()
    kind = device.partition(":")[0]
    torch, mlx = sys.modules.get("torch"), sys.modules.get("mlx.core")  # there, if any memory was taken
    if kind == "cuda" and torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif kind == "mps" and torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()
    elif kind == "mlx" and mlx is not None:
        mlx.clear_cache()
    trim_heap()


def _cgroup_memory_left() -> int | None:
    limit, used = cgroup_file("memory.max"), cgroup_file("memory.current")
    if not limit.isdecimal() or not used.isdecimal():
        return None
    return max(0, int(limit) - int(used))
