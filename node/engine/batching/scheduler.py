"""Which waiting steps run in the next batch. Plain ints: no tensor, no thread, no clock (pass ``now``).

Decode goes first, up to the session bound or that of its ``Cohorts``. Prefill fills what is left of the token
budget, cut into slices: beside decoding sessions a slice is sized by what it costs them (``PrefillPace``),
alone it takes the whole budget. Sessions that decoded a moment ago count as decoding: their next token is on
its way. Prefill always gets a few tokens a batch, so neither side can starve the other. Where the two gain
nothing from one batch, they alternate: then a token waits for a slice at most, and is not computed as slowly
as one.

Address groups take turns, and owners within a group, in prefill always, in decode when not all sessions fit
into a batch. Within an owner it is first come, first served. A session has one step in a batch at most; its
steps run in the order they came. A step whose deadline has passed leaves the queue before it costs anything,
or anything more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ....swarm.errors import LocalProtocolError, UsageError
from ....swarm.fairness.queue import FairQueue
from .cohorts import DECODE_LINGERS_NS, Cohorts
from .prefill_pace import MIN_SLICE, PrefillPace

Key = TypeVar("Key", bound=Hashable)

DECODE_TOKENS = 8
"""A step this short counts as decode: one token, or a draft of a few for speculative decoding."""


@dataclass(slots=True)
class Slice(Generic[Key]):
    """``count`` tokens of ``key``'s oldest step, ``offset`` tokens into it. ``last`` ends the step."""

    key: Key
    offset: int
    count: int
    last: bool


@dataclass(slots=True)
class Batch(Generic[Key]):
    """``slices`` to compute, decode first; ``expired``: keys whose oldest step was dropped for its deadline,
    once for each step. ``again``: rows before the decode steps that are fed again."""

    slices: list[Slice[Key]] = field(default_factory=list)
    expired: list[Key] = field(default_factory=list)
    decode_rows: int = 0
    prefill_tokens: int = 0
    again: int = 0


class _WaitingSteps:
    """The waiting steps of one session as (tokens, deadline, rows that are fed again before them), and how
    far the oldest one has come."""

    def __init__(self, owner: str, group: str) -> None:
        self.owner = owner
        self.group = group
        self.steps: deque[tuple[int, int, int]] = deque()
        self.done = 0


class Scheduler(Generic[Key]):
    """Waiting steps by session key. Not thread-safe: the compute thread alone owns it."""

    def __init__(
        self, max_tokens: int, *, max_sessions: int = 64, prefill_target_us: int = 25_000, mixed: bool = True
    ) -> None:
        """``mixed``: decode and prefill may share a batch."""
        if max_tokens <= DECODE_TOKENS or max_sessions < 1:
            raise UsageError(
                f"a batch of {max_tokens} tokens and {max_sessions} sessions is not possible",
                hint=f"A batch needs more than {DECODE_TOKENS} tokens.",
            )
        self._max_tokens = max_tokens
        self._max_sessions = max_sessions
        self._pace = PrefillPace(prefill_target_us)
        self._cohorts = Cohorts()
        self._sessions: dict[Key, _WaitingSteps] = {}
        # Keys whose oldest step is decode or prefill.
        self._decode: FairQueue[Key] = FairQueue()
        self._prefill: FairQueue[Key] = FairQueue()
        self._last_decode: int | None = None
        self._mixed = mixed
        self._prefill_is_next = False

    def __len__(self) -> int:
        """Waiting steps, begun ones included."""
        return sum(len(waiting.steps) for waiting in self._sessions.values())

    def __bool__(self) -> bool:
        return bool(self._sessions)

    def add(
        self, key: Key, owner: str, tokens: int, deadline: int = 0, group: str = "", again: int = 0
    ) -> None:
        """Queue a step of ``tokens`` tokens behind the other steps of ``key``. ``deadline`` is of the clock
        of ``next_batch``'s ``now``; 0: none. A key belongs to one owner, an owner to one ``group``.
        ``again``: rows before the step that are fed again with it, up to a page. They count in the budget,
        or a peer whose sessions always go back by a token would make batches of many times that."""
        if tokens < 1:
            raise LocalProtocolError(f"a step of {tokens} tokens cannot be scheduled")
        waiting = self._sessions.get(key)
        if waiting is None:
            waiting = self._sessions[key] = _WaitingSteps(owner, group)
        waiting.steps.append((tokens, deadline, again))
        if len(waiting.steps) == 1:
            self._enqueue(key, waiting)

    def remove(self, key: Key) -> int:
        """Forget every step of ``key``; returns how many there were."""
        waiting = self._sessions.pop(key, None)
        if waiting is None:
            return 0
        self._decode.discard(waiting.owner, key, waiting.group)
        self._prefill.discard(waiting.owner, key, waiting.group)
        return len(waiting.steps)

    def cut(self, key: Key) -> None:
        """The oldest step of ``key``, which was begun, has failed: forget the rest of it."""
        self._finish_oldest(key)

    def observe(self, prefill_tokens: int, decode_rows: int, elapsed_us: int) -> None:
        """What a batch cost; sizes the prefill slices of the next ones."""
        self._pace.observe(prefill_tokens, decode_rows, elapsed_us)

    def computed(self, began: int, ended: int) -> None:
        """When the last batch was computed, of the clock of ``next_batch``'s ``now``."""
        self._cohorts.computed(began, ended)

    def computed_alone(self, key: Key, began: int, ended: int) -> None:
        """A decode step of ``key`` was computed that was never queued, as nothing else was."""
        self._last_decode = began
        self._cohorts.decodes(hash(key), began)
        self._cohorts.computed(began, ended)

    def next_batch(self, now: int = 0) -> Batch[Key]:
        """Take the next batch off the queue: at most ``max_tokens`` tokens of ``max_sessions`` sessions, and
        little more where the rows before a step are fed again."""
        batch: Batch[Key] = Batch()
        both = bool(self._decode) and bool(self._prefill)
        if self._decode:
            self._last_decode = now
        prefill_first = not self._mixed and both and self._prefill_is_next
        if prefill_first:
            self._add_prefill(batch, now)
        if self._decode and not batch.slices:
            self._add_decode(batch, now)
        if self._prefill and not prefill_first and (self._mixed or not batch.slices):
            self._add_prefill(batch, now)
        self._prefill_is_next = both and not batch.prefill_tokens
        for part in batch.slices:
            self._advance(part)
        for key in batch.expired:
            self._finish_oldest(key)
        return batch

    def _add_decode(self, batch: Batch[Key], now: int) -> None:
        # Some prompt tokens' room, and a place, stay free while prompts wait.
        prompts = len(self._prefill) > 0
        budget = self._max_tokens - (min(MIN_SLICE, self._max_tokens - DECODE_TOKENS) if prompts else 0)
        places = max(1, self._max_sessions - prompts)
        if (most := self._cohorts.most(now)) is not None:
            places = min(places, most)
        sessions, slices, rows = self._sessions, batch.slices, 0
        for key in self._decode.in_turn():
            count, deadline, again = sessions[key].steps[0]
            if 0 < deadline < now:
                batch.expired.append(key)
                continue
            if len(slices) == places or (slices and rows + batch.again + count + again > budget):
                break
            slices.append(Slice(key, 0, count, True))
            self._cohorts.decodes(hash(key), now)
            rows += count
            batch.again += again
        batch.decode_rows = rows

    def _add_prefill(self, batch: Batch[Key], now: int) -> None:
        room = self._max_tokens - batch.decode_rows
        budget = max(min(MIN_SLICE, room), room - batch.again)
        if batch.slices or (
            now and self._last_decode is not None and now - self._last_decode < DECODE_LINGERS_NS
        ):
            budget = self._pace.slice_tokens(budget)
        places = max(1, self._max_sessions - len(batch.slices))
        first = len(batch.slices)
        for key in self._prefill.in_turn():
            waiting = self._sessions[key]
            tokens, deadline, again = waiting.steps[0]
            if 0 < deadline < now:
                batch.expired.append(key)
                continue
            left = tokens - waiting.done
            count = min(left, budget)
            begun = len(batch.slices) - first
            if not count or begun == places or (begun and count < min(left, MIN_SLICE)):
                break  # a sliver would cost a turn and gain nothing
            batch.slices.append(Slice(key, waiting.done, count, count == left))
            batch.prefill_tokens += count
            budget = max(0, budget - count - (0 if waiting.done else again))

    def _advance(self, part: Slice[Key]) -> None:
        if part.last:
            self._finish_oldest(part.key)
        else:
            waiting = self._sessions[part.key]
            waiting.done += part.count
            self._prefill.rotate(waiting.owner, waiting.group)

    def _finish_oldest(self, key: Key) -> None:
        waiting = self._sessions[key]
        queue = self._decode if waiting.steps[0][0] <= DECODE_TOKENS else self._prefill
        queue.discard(waiting.owner, key, waiting.group)
        queue.rotate(waiting.owner, waiting.group)
        waiting.steps.popleft()
        waiting.done = 0
        if waiting.steps:
            self._enqueue(key, waiting)
        else:
            del self._sessions[key]

    def _enqueue(self, key: Key, waiting: _WaitingSteps) -> None:
        queue = self._decode if waiting.steps[0][0] <= DECODE_TOKENS else self._prefill
        queue.push(waiting.owner, key, waiting.group)
