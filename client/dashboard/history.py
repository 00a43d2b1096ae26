"""The last hours of a swarm in a bounded ring: fine for an hour, coarse before it."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ...swarm.naming.announced import by_model, model_of
from ...swarm.runtime.histogram import Distribution
from ...swarm.types import NodeInfo, NodeState
from .coverage import coverage, throughput
from .picture import number
from .source import Counters

STEP_S = 10.0
"""Seconds between samples."""
FINE = 360
"""Samples of STEP_S: an hour."""
MERGED = 6
"""Fine samples that become one coarse sample: a minute."""
COARSE = 660
"""Coarse samples: eleven hours."""


@dataclass(frozen=True, slots=True)
class Sample:
    """``at``: seconds of Unix time at its end; ``seconds``: how long it is. The next ones are means over it:
    ``missing`` are blocks that nobody serves, ``kv`` is the part of the KV cache that is in use. ``joined``
    and the ones after it count what happened in it; distributions are of what happened in it, too."""

    at: float
    seconds: float
    nodes: float
    tokens_per_s: float
    sessions: float
    kv: float
    missing: float
    joined: int
    left: int
    answers: int
    failed: int
    repairs: int
    tokens: int
    first_token_s: Distribution
    token_s: Distribution


_MEANS = ("nodes", "tokens_per_s", "sessions", "kv", "missing")
_COUNTS = ("joined", "left", "answers", "failed", "repairs", "tokens")
COLUMNS = (
    *("at", *_MEANS, *_COUNTS, "own_tokens_per_s"),
    *("first_token_p50", "first_token_p95", "token_p50", "token_p95"),
)
"""What the numbers of an item mean, in order. Percentiles are in seconds; null where nothing was measured."""


class History:
    """``note`` takes a sample; ``items`` are all that are kept, by their time."""

    def __init__(self) -> None:
        self.items: dict[str, list[float | None]] = {}
        self._fine: deque[Sample] = deque()
        self._coarse: deque[Sample] = deque()
        self._peers: frozenset[str] | None = None
        self._counters = Counters()

    def note(self, at: float, nodes: Sequence[NodeInfo], counters: Counters | None) -> None:
        """``counters`` since the start of the process, which only grow."""
        online = [node for node in nodes if node.state is NodeState.ONLINE]
        peers = frozenset(node.peer_id for node in online)
        before, now = self._counters, counters or Counters()
        known = peers if self._peers is None else self._peers
        total = sum(node.total_kv_tokens for node in online)
        blocks = [(found, model_of(found).n_blocks) for found in by_model(nodes).values()]
        sample = Sample(
            at=at,
            seconds=STEP_S,
            nodes=len(online),
            tokens_per_s=sum(throughput(found, n_blocks) for found, n_blocks in blocks),
            sessions=sum(max((node.sessions for node in found), default=0) for found, _ in blocks),
            kv=1 - sum(node.free_kv_tokens for node in online) / total if total else 0.0,
            missing=sum(
                len(each.span)
                for found, n_blocks in blocks
                for each in coverage(found, n_blocks)
                if not each.servers
            ),
            joined=len(peers - known),
            left=len(known - peers),
            answers=now.answers - before.answers,
            failed=now.failed - before.failed,
            repairs=now.repairs - before.repairs,
            tokens=now.tokens - before.tokens,
            first_token_s=between(before.first_token_s, now.first_token_s),
            token_s=between(before.token_s, now.token_s),
        )
        self._peers, self._counters = peers, now
        self._keep(sample)

    def _keep(self, sample: Sample) -> None:
        self._fine.append(sample)
        self.items[_key(sample)] = _item(sample)
        if len(self._fine) >= FINE + MERGED:
            oldest = [self._fine.popleft() for _ in range(MERGED)]
            for each in oldest:
                del self.items[_key(each)]
            merged = merge(oldest)
            self._coarse.append(merged)
            self.items[_key(merged)] = _item(merged)
        if len(self._coarse) > COARSE:
            del self.items[_key(self._coarse.popleft())]


def merge(samples: Sequence[Sample]) -> Sample:
    """One sample over the time of neighbouring ones."""
    seconds = sum(sample.seconds for sample in samples)
    means = {
        name: sum(getattr(sample, name) * sample.seconds for sample in samples) / seconds for name in _MEANS
    }
    counts = {name: sum(getattr(sample, name) for sample in samples) for name in _COUNTS}
    return Sample(
        at=samples[-1].at,
        seconds=seconds,
        first_token_s=Distribution.of_all(sample.first_token_s for sample in samples),
        token_s=Distribution.of_all(sample.token_s for sample in samples),
        **means,
        **counts,
    )


def between(before: Distribution, now: Distribution) -> Distribution:
    """What was added to a distribution; all of it where there was none before."""
    if before.bounds != now.bounds:
        return now
    counts = tuple(new - old for new, old in zip(now.counts, before.counts, strict=True))
    return Distribution(now.bounds, counts, now.total - before.total)


def percentile(found: Distribution, part: float) -> float | None:
    """The value that ``part`` of all values do not exceed, linear between the bounds of its bucket; the last
    bound for what is above it. None without values."""
    wanted = part * found.count
    if not wanted:
        return None
    sums = list(accumulate(found.counts))
    bucket = bisect_left(sums, wanted)
    if bucket == len(found.bounds):
        return found.bounds[-1]
    low = found.bounds[bucket - 1] if bucket else 0.0
    inside = 1 - (sums[bucket] - wanted) / found.counts[bucket]
    return low + (found.bounds[bucket] - low) * inside


def _key(sample: Sample) -> str:
    return str(round(sample.at))


def _item(sample: Sample) -> list[float | None]:
    own = sample.tokens / sample.seconds
    percentiles = [
        percentile(found, part) for found in (sample.first_token_s, sample.token_s) for part in (0.5, 0.95)
    ]
    means = [number(getattr(sample, name), 3) for name in _MEANS]
    counts = [getattr(sample, name) for name in _COUNTS]
    return [
        round(sample.at),
        *means,
        *counts,
        number(own, 2),
        *(None if value is None else number(value, 4) for value in percentiles),
    ]
