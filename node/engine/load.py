"""How busy the engine is, for heartbeats, announcements and people. Plain numbers; times are passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass

RATE_SECONDS = 3.0
"""The speed is averaged over about this many seconds, and idle figures fade in the same time."""
_WEIGHT = 0.1
"""The weight of the newest batch in the averages over batches."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """A moment's load. Slots are pages of one block, states those of one block at one position; tokens are of
    the node's whole span.

    ``queued``: steps without an answer. ``running``: sessions of the last batch; ``batch``: their mean
    number. ``queue_ms``: mean time from a decode step's arrival to its computation. ``tokens_per_s``: over
    the last seconds. ``cached``: held by the prefix cache alone and free for every session that needs them;
    ``free_tokens`` counts those too, less what open sessions were promised. ``threads`` compute a batch. The
    last three count since the start.
    """

    queued: int
    running: int
    batch: float
    tokens_per_s: float
    queue_ms: float
    free_tokens: int
    total_tokens: int
    cached_tokens: int
    total_slots: int
    free_slots: int
    used_slots: int
    cached_slots: int
    reserved_slots: int
    total_states: int
    free_states: int
    used_states: int
    cached_states: int
    reserved_states: int
    sequences: int
    threads: int
    prefix_hit_tokens: int
    tokens: int
    batches: int


class LoadMeter:
    """Averages over batches. ``now`` is nanoseconds of any one clock."""

    def __init__(self) -> None:
        self.tokens = 0
        self.batches = 0
        self.running = 0
        self.batch = 0.0
        self._rate = 0.0
        self._queue_ms = 0.0
        self._last_ns = 0

    def on_batch(self, now: int, sessions: int, tokens: int, decode_steps: int, queue_ns: int) -> None:
        """``queue_ns``: what the batch's ``decode_steps`` waited, all together."""
        self.tokens += tokens
        self.batches += 1
        self.running = sessions
        self.batch += (sessions - self.batch) * (_WEIGHT if self.batches > 1 else 1.0)
        self._rate = self._rate * self._fading(now) + tokens / RATE_SECONDS
        self._last_ns = now
        if decode_steps:
            self._queue_ms += (queue_ns / decode_steps / 1e6 - self._queue_ms) * _WEIGHT

    def tokens_per_s(self, now: int) -> float:
        return self._rate * self._fading(now)

    def queue_ms(self, now: int) -> float:
        return self._queue_ms * self._fading(now)

    def _fading(self, now: int) -> float:
        return math.exp(-max(0, now - self._last_ns) / 1e9 / RATE_SECONDS) if self._last_ns else 0.0
