"""How many tokens per second a set of spans computes together, with work shared out as well as it can be.

A node computes ``rate`` blocks per second, of any blocks of its span; every block of the model must be
computed as often as every other. Whether T tokens per second can be had is a matching of intervals to points:
block by block, those nodes first whose spans end first (earliest deadline first is optimal for intervals).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import accumulate

PRECISION = 1e-3
"""The answer is too low by at most this part."""

Rates = Mapping[tuple[int, int], float]
"""Blocks per second of all nodes with one span, by its first block and the block after its last."""


def throughput(rates: Rates, n_blocks: int, *, at_least: float = 0.0) -> float:
    """Tokens per second; 0 where a block is missing, or where there would be fewer than ``at_least``."""
    begins: list[list[tuple[int, float]]] = [[] for _ in range(n_blocks)]
    change = [0.0] * (n_blocks + 1)
    copies = [0] * (n_blocks + 1)
    for (start, end), rate in sorted(rates.items()):
        begins[start].append((end, rate))
        change[start] += rate
        change[end] -= rate
        copies[start] += 1
        copies[end] -= 1
    if min(list(accumulate(copies))[:n_blocks]) < 1:
        return 0.0
    reach = list(accumulate(change))[:n_blocks]  # what a block could have alone
    high = max(min(min(reach), sum(rates.values()) / n_blocks), 0.0)
    if high < at_least:
        return 0.0
    if _feasible(begins, high):
        return high
    low = at_least
    if low > 0 and not _feasible(begins, low):
        return 0.0
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _feasible(begins, middle) else (low, middle)
    return low


def _feasible(begins: Sequence[Sequence[tuple[int, float]]], tokens_per_s: float) -> bool:
    active: list[tuple[int, float]] = []  # (end of span, what the node has left)
    slack = 1e-9 * tokens_per_s
    for block, new in enumerate(begins):
        for entry in new:
            heappush(active, entry)
        wanted = tokens_per_s
        while wanted > slack:
            while active and active[0][0] <= block:
                heappop(active)
            if not active:
                return False
            end, left = active[0]
            if left > wanted:
                heapreplace(active, (end, left - wanted))
                break
            wanted -= left
            heappop(active)
    return True
