"""What decode steps lately took at each hop of a route: for the question whether one is too slow. Steps that
were sent behind others do not count: they wait for those."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import perf_counter

from ...swarm.routing.slow_hop import GROSS_STEPS, ChainSpent, HopSpent
from .hop import HopClient
from .segment import Segment
from .trace import Phase

LOOK_TOKENS = 8
LOOK_S = 2.0
"""There are at least this many seconds between two looks."""
LOOKS = 5
"""This many marks are kept: means are over the last four intervals, 32 steps or more."""

_Sums = tuple[int, float, float, float, int]  # steps; queue, compute, codec in seconds; tokens


class _Counted:
    """Steps of a run of hops and their seconds on links, without the slowest step of each interval."""

    def __init__(self) -> None:
        self._seen: tuple[int, float] = (0, 0.0)
        self._marks: deque[tuple[int, float]] = deque([(0, 0.0)], maxlen=LOOKS)

    def look(self, steps: int, wire_s: float, slowest_s: float) -> tuple[int, float]:
        """Sums up to now in, those of the last intervals out."""
        new_steps, new_s = steps - self._seen[0], wire_s - self._seen[1]
        self._seen = steps, wire_s
        latest = self._marks[-1]
        if new_steps > 1:
            latest = latest[0] + new_steps - 1, latest[1] + max(0.0, new_s - slowest_s)
        self._marks.append(latest)
        return latest[0] - self._marks[0][0], latest[1] - self._marks[0][1]


class StepTimes:
    """Sums of the traces at each look; differences of them are what happened lately."""

    def __init__(self) -> None:
        self._looked_at = perf_counter()
        self._looked_token = 0
        self._marks: dict[bytes, deque[_Sums]] = {}  # by session
        self._wires: dict[Segment, _Counted] = {}

    def begin(self, hops: Sequence[HopClient]) -> None:
        """The route has (some) new hops: forget those that left."""
        marks = self._marks
        self._marks = {hop.session: marks.get(hop.session, deque(maxlen=LOOKS)) for hop in hops}
        self._wires = {}

    def is_time(self, tokens: int) -> bool:
        """Whether it is time for a look, at a sequence of ``tokens`` tokens."""
        now = perf_counter()
        if tokens - self._looked_token < LOOK_TOKENS or now - self._looked_at < LOOK_S:
            return False
        self._looked_token, self._looked_at = tokens, now
        return True

    def look(self, segments: Sequence[Segment]) -> tuple[list[HopSpent], list[ChainSpent]]:
        """The means over the last looks, of each hop and of each run of chained hops."""
        hops: list[HopSpent] = []
        chains: list[ChainSpent] = []
        for segment in segments:
            steps, wire_s = self._wire(segment)
            if segment.is_chain:
                last = len(hops) + len(segment.hops) - 1
                chains.append(ChainSpent(len(hops), last, steps, wire_s or 0.0))
                hops += [self._spent(hop, None) for hop in segment.hops]
            else:
                hops.append(self._spent(segment.first, wire_s))
        return hops, chains

    def _wire(self, segment: Segment) -> tuple[int, float | None]:
        """(steps, what one took that no hop accounts for, or None while that says little). The slowest step
        between two looks is left out: a pause says nothing of a hop's speed."""
        alone = segment.trace.alone
        counted = self._wires.setdefault(segment, _Counted())
        steps, wire_s = counted.look(alone.steps, alone.wire_s, segment.take_slowest_wire_s())
        return alone.steps, wire_s / steps if steps >= GROSS_STEPS - 2 else None

    def _spent(self, hop: HopClient, wire_s: float | None) -> HopSpent:
        marks = self._marks.setdefault(hop.session, deque(maxlen=LOOKS))
        now = _sums(hop.trace.alone)
        then = marks[0] if marks else (0, 0.0, 0.0, 0.0, 0)
        marks.append(now)
        steps = max(1, now[0] - then[0])
        queue_s, compute_s, codec_s, tokens = (
            (b - a) / steps for a, b in zip(then[1:], now[1:], strict=True)
        )
        return HopSpent(now[0], queue_s, compute_s, codec_s, max(1.0, tokens), wire_s)


def _sums(phase: Phase) -> _Sums:
    return phase.steps, phase.queue_s, phase.compute_s, phase.codec_s, phase.tokens
