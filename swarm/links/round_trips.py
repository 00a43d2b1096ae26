"""How long a peer usually takes to answer, and how long it may: the estimator of TCP (RFC 6298)."""

from __future__ import annotations

SLOW_LINE_BYTES_PER_S = 1.25e6
"""A PING may wait behind what was posted before it, which goes at 10 Mbit/s on a slow line."""
SLOW_LINE_BYTES = 1024 * 1024
"""A PING is given time for at most this many bytes before it."""
NEWEST_WEIGHT = 0.25
"""The weight of a new round trip in the moving average, and of its difference in that of the jitter."""
JITTERS = 4.0
"""Round trips longer than the average by this many usual differences are rare (RFC 6298)."""
LONGEST_PONG_S = 10.0


class RoundTrips:
    """Moving averages over the round trips to one peer. ``mean_s`` is 0 before the first."""

    __slots__ = ("_jitter_s", "mean_s")

    def __init__(self) -> None:
        self.mean_s = 0.0
        self._jitter_s = 0.0

    def measured(self, seconds: float) -> None:
        if not self.mean_s:
            self.mean_s = seconds
            return
        difference = seconds - self.mean_s
        self.mean_s += NEWEST_WEIGHT * difference
        self._jitter_s += NEWEST_WEIGHT * (abs(difference) - self._jitter_s)

    def answer_within(self, least_s: float, posted_bytes: int) -> float:
        """Seconds for an answer: a usual round trip, at least ``least_s``, and the time of the bytes that
        were posted before the question."""
        usual = min(LONGEST_PONG_S, 2 * self.mean_s + JITTERS * self._jitter_s)
        behind = min(posted_bytes, SLOW_LINE_BYTES) / SLOW_LINE_BYTES_PER_S
        return max(least_s, usual) + behind
