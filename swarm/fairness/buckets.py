"""Token buckets: a rate a second, and an amount at once after a rest; one alone, or one for each name.

Pure: every call brings ``now``, in seconds on any steady clock.
"""

from __future__ import annotations

from .recent import RecentMap

_NO_WAIT_S = 1e-6
"""Seconds of wait that count as none: sums of small numbers are rounded by about this much."""


class Bucket:
    """Fills by ``rate`` a second up to ``most``. More may be taken than is in it: then it is in debt."""

    __slots__ = ("_at", "_left", "most", "rate")

    def __init__(self, rate: float, most: float, now: float) -> None:
        self.rate, self.most, self._left, self._at = rate, most, most, now

    def take(self, amount: float, now: float) -> float:
        """Seconds to wait; 0 if it was taken."""
        if wait := self.wait_s(amount, now):
            return wait
        self.owe(amount)
        return 0.0

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until ``amount``, or the bucket if that is less, is in it."""
        self._left = min(self.most, self._left + (now - self._at) * self.rate)
        self._at = now
        wait_s = (min(amount, self.most) - self._left) / self.rate
        return wait_s if wait_s > _NO_WAIT_S else 0.0

    def owed(self, now: float) -> float:
        """What was taken and has not come back."""
        return max(0.0, self.most - self._left - (now - self._at) * self.rate)

    def owe(self, amount: float) -> None:
        """Take it whether it is there or not."""
        self._left -= amount


class Buckets:
    """A bucket for each of ``max_names`` names. With more names, those that asked longest ago begin anew."""

    def __init__(self, rate: float, most: float, max_names: int) -> None:
        self._rate = rate
        self._most = most
        self._buckets: RecentMap[str, Bucket] = RecentMap(max_names)

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, name: str, now: float) -> Bucket:
        bucket = self._buckets[name] = self._buckets.get(name) or Bucket(self._rate, self._most, now)
        return bucket
