"""What decode steps lately took at each hop of a route: for the question whether one is too slow."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import perf_counter

from ..swarm.slow_hop import HopSpent
from .hop import HopClient

LOOK_TOKENS = 16
LOOK_S = 2.0
"""Looks are at least so far apart."""
LOOKS = 3
"""Marks kept: means are over the last two intervals, 32 steps or more."""

_Sums = tuple[int, float, float, float, int]  # steps; queue, compute, codec in seconds; tokens


class Pace:
    """Sums of the hops' traces at each look; differences of them are what happened lately."""

    def __init__(self) -> None:
        self._looked_at = perf_counter()
        self._looked_token = 0
        self._marks: dict[bytes, deque[_Sums]] = {}  # by session

    def begin(self, hops: Sequence[HopClient]) -> None:
        """The route has (some) new hops: forget those that left."""
        marks = self._marks
        self._marks = {hop.session: marks.get(hop.session, deque(maxlen=LOOKS)) for hop in hops}

    def is_time(self, tokens: int) -> bool:
        """Whether to look, at a sequence of so many tokens."""
        now = perf_counter()
        if tokens - self._looked_token < LOOK_TOKENS or now - self._looked_at < LOOK_S:
            return False
        self._looked_token, self._looked_at = tokens, now
        return True

    def spent(self, hops: Sequence[HopClient]) -> list[HopSpent]:
        """Look: for each hop, the means over the steps since the look before the last."""
        return [self._spent(hop) for hop in hops]

    def _spent(self, hop: HopClient) -> HopSpent:
        decode = hop.trace.decode
        marks = self._marks.setdefault(hop.session, deque(maxlen=LOOKS))
        now = (decode.steps, decode.queue_s, decode.compute_s, decode.codec_s, decode.tokens)
        then = marks[0] if marks else (0, 0.0, 0.0, 0.0, 0)
        marks.append(now)
        steps = max(1, now[0] - then[0])
        queue_s, compute_s, codec_s, tokens = (
            (b - a) / steps for a, b in zip(then[1:], now[1:], strict=True)
        )
        return HopSpent(decode.steps, queue_s, compute_s, codec_s, max(1.0, tokens))
