"""Which waiting steps run in the next batch. Plain ints: no tensor, no thread, no clock.

Decode goes first, all of it up to the session bound, oldest first. Prefill fills what is left of the token
budget in order of arrival, cut into slices so that nobody's prompt stalls everybody's decode: beside decoding
sessions a batch carries at most ``prefill_beside_decode`` prompt tokens, alone it takes the whole budget.
Prefill always gets at least one token a batch, so neither side can starve the other.

A session has one step in a batch at most; its steps run in the order they came.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..swarm.errors import LocalProtocolError, UsageError

Key = TypeVar("Key", bound=Hashable)

DECODE_TOKENS = 8
"""A step this short counts as decode: one token, or a draft of a few for speculative decoding."""


@dataclass(frozen=True, slots=True)
class Slice(Generic[Key]):
    """``count`` tokens of ``key``'s oldest step, ``offset`` tokens into it. ``last`` ends the step."""

    key: Key
    offset: int
    count: int
    last: bool


class _Lane:
    """The waiting steps of one session: token counts, and how far the oldest one has come."""

    __slots__ = ("done", "steps")

    def __init__(self) -> None:
        self.steps: deque[int] = deque()
        self.done = 0


class Scheduler(Generic[Key]):
    """Waiting steps by session key. Not thread-safe: the compute thread alone owns it."""

    __slots__ = ("_decode", "_lanes", "_max_sessions", "_max_tokens", "_prefill", "_prefill_beside_decode")

    def __init__(self, max_tokens: int, *, max_sessions: int = 64, prefill_beside_decode: int = 128) -> None:
        if max_tokens < DECODE_TOKENS or max_sessions < 1 or prefill_beside_decode < 1:
            raise UsageError(
                f"a batch of {max_tokens} tokens, {max_sessions} sessions and "
                f"{prefill_beside_decode} prompt tokens beside decode cannot be",
                hint=f"A batch needs at least {DECODE_TOKENS} tokens.",
            )
        self._max_tokens = max_tokens
        self._max_sessions = max_sessions
        self._prefill_beside_decode = prefill_beside_decode
        self._lanes: dict[Key, _Lane] = {}
        # Keys whose oldest step is decode or prefill, oldest first.
        self._decode: OrderedDict[Key, None] = OrderedDict()
        self._prefill: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        """Waiting steps, begun ones included."""
        return sum(len(lane.steps) for lane in self._lanes.values())

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def add(self, key: Key, tokens: int) -> None:
        """Queue a step of ``tokens`` tokens behind the other steps of ``key``."""
        if tokens < 1:
            raise LocalProtocolError(f"a step of {tokens} tokens cannot be scheduled")
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        lane.steps.append(tokens)
        if len(lane.steps) == 1:
            self._enqueue(key, lane)

    def remove(self, key: Key) -> int:
        """Forget every step of ``key``; returns how many there were."""
        lane = self._lanes.pop(key, None)
        self._decode.pop(key, None)
        self._prefill.pop(key, None)
        return 0 if lane is None else len(lane.steps)

    def next_batch(self) -> list[Slice[Key]]:
        """Take the next batch off the queue: at most ``max_tokens`` tokens of ``max_sessions`` sessions."""
        batch: list[Slice[Key]] = []
        budget = self._max_tokens
        # One prompt token's room stays free while prompts wait.
        reserve = 1 if self._prefill else 0
        decode_sessions = max(1, self._max_sessions - reserve) if self._decode else 0
        for key in list(self._decode)[:decode_sessions]:
            lane = self._lanes[key]
            count = lane.steps[0]
            if count > budget - reserve:
                break
            batch.append(Slice(key, 0, count, True))
            budget -= count
        if self._prefill:
            prefill = min(budget, self._prefill_beside_decode) if batch else budget
            # At least one prompt a batch even when a bound of one session leaves no place for it.
            places = max(1, self._max_sessions - len(batch))
            for key in list(self._prefill)[:places]:
                if prefill < 1:
                    break
                lane = self._lanes[key]
                left = lane.steps[0] - lane.done
                count = min(left, prefill)
                batch.append(Slice(key, lane.done, count, count == left))
                prefill -= count
        for piece in batch:
            self._advance(piece)
        return batch

    def _advance(self, piece: Slice[Key]) -> None:
        lane = self._lanes[piece.key]
        if not piece.last:
            lane.done += piece.count
            return
        lane.steps.popleft()
        lane.done = 0
        self._decode.pop(piece.key, None)
        self._prefill.pop(piece.key, None)
        if lane.steps:
            self._enqueue(piece.key, lane)
        else:
            del self._lanes[piece.key]

    def _enqueue(self, key: Key, lane: _Lane) -> None:
        waiting = self._decode if lane.steps[0] <= DECODE_TOKENS else self._prefill
        waiting[key] = None
