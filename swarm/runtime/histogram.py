"""How often something took how long, in a few fixed buckets: cheap to add to, small to keep and hand on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Distribution:
    """How often values fell into each bucket. ``counts[i]``: values up to ``bounds[i]`` and above the bound
    before it; the last count: above all. ``total``: the sum of all values."""

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    total: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    @classmethod
    def of_all(cls, parts: Iterable[Distribution]) -> Distribution:
        """The values of all parts, which have the same bounds, or none and no values."""
        some = [part for part in parts if part.bounds]
        if not some:
            return cls()
        counts = tuple(map(sum, zip(*(part.counts for part in some), strict=True)))
        return cls(some[0].bounds, counts, sum(part.total for part in some))


class Histogram:
    """``bounds``: the upper ends of its buckets, from the least on."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def totals(self) -> Distribution:
        return Distribution(self._bounds, tuple(self._counts), self._total)
