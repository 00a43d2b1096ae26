"""Which waiting steps run in the next batch. Plain ints: no tensor, no thread, no clock (pass ``now``).

Decode goes first, up to the session bound or that of its ``Cohorts``. Steps with guesses come behind those
of certain rows alone, and may make their batch a little longer. What does not fit waits: for one batch, if it
has a certain row, else for PATIENCE_NS; what then was too dear goes without its branches. It counts as
certain from then on, but the batch that takes it has little else of its kind. Where nothing certain waits,
batches are short.

Prefill fills what is left of the token budget, cut into slices: beside decoding sessions a slice is sized by
what it costs them (``PrefillPace``), alone it takes the whole budget. Sessions that decoded a moment ago
count as decoding: their next token is on its way. Prefill always gets a few tokens a batch, so neither side
can starve the other. Where the two gain nothing from one batch, they alternate: then a token waits for a
slice at most, and is not computed as slowly as one.

Address groups take turns, and owners within a group, in prefill always, in decode when not all sessions fit
into a batch. Within an owner it is first come, first served. A session has one step in a batch at most; its
steps run in the order they came. A step whose deadline has passed leaves the queue before it costs anything,
or anything more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

from ....swarm.errors import LocalProtocolError, UsageError
from ....swarm.fairness.queue import FairQueue
from .cohorts import DECODE_LINGERS_NS, Cohorts
from .guesses import PATIENCE_NS, rows_alone, rows_beside, rows_late
from .prefill_pace import MIN_SLICE, PrefillPace
from .row_time import RowTime

Key = TypeVar("Key", bound=Hashable)

DECODE_TOKENS = 8
"""A step this short counts as decode: one token, or a draft of a few for speculative decoding."""


class Certain(Enum):
    """Which rows of a step are wanted whatever comes of others: ALL, or SOME and guesses, or NONE, which are
    guesses alone."""

    ALL = auto()
    SOME = auto()
    NONE = auto()


@dataclass(slots=True)
class Slice(Generic[Key]):
    """``count`` tokens of ``key``'s oldest step, ``offset`` tokens into it. ``last`` ends the step. ``bare``:
    without its branches."""

    key: Key
    offset: int
    count: int
    last: bool
    bare: bool = False


@dataclass(slots=True)
class Batch(Generic[Key]):
    """``slices`` to compute, decode first; ``expired``: keys whose oldest step was dropped for its deadline,
    once for each step. ``again``: rows before the decode steps that are fed again."""

    slices: list[Slice[Key]] = field(default_factory=list)
    expired: list[Key] = field(default_factory=list)
    decode_rows: int = 0
    prefill_tokens: int = 0
    again: int = 0


class _Waiting(NamedTuple):
    """A step. ``again``: rows that are fed again before it, or computed for its branches, which are the last
    ``branches`` of them."""

    tokens: int
    deadline: int
    again: int
    certain: Certain
    branches: int


class _WaitingSteps:
    """The waiting steps of one session, and how far the oldest one has come. ``passed_at``: when that was
    first passed over for others' certain rows. ``counts_as_certain``: that was for long enough. ``bare``: the
    branches of the oldest step are left out."""

    def __init__(self, owner: str, group: str) -> None:
        self.owner = owner
        self.group = group
        self.steps: deque[_Waiting] = deque()
        self.done = 0
        self.passed_at: int | None = None
        self.counts_as_certain = False
        self.bare = False

    def pass_over(self, now: int, *, dear: bool) -> bool:
        """The oldest step, which has guesses, is left out of a batch; whether it was for the last time. Then
        it counts as certain; not so its branches, if its rows were too ``dear``: its session can go on
        without these."""
        if self.passed_at is None:
            self.passed_at = now
        in_part = self.steps[0].certain is Certain.SOME
        self.counts_as_certain = in_part or now - self.passed_at >= PATIENCE_NS
        step = self.steps[0]
        if self.counts_as_certain and dear and step.branches:
            self.steps[0] = step._replace(again=step.again - step.branches, branches=0)
            self.bare = True
        return self.counts_as_certain


class Scheduler(Generic[Key]):
    """Waiting steps by session key. Not thread-safe: the compute thread alone owns it."""

    def __init__(
        self,
        max_tokens: int,
        *,
        max_sessions: int = 64,
        prefill_target_us: int = 25_000,
        mixed: bool = True,
        row_time: RowTime | None = None,
    ) -> None:
        """``mixed``: decode and prefill may share a batch. ``row_time``: what rows of decode steps take, as
        its owner measures."""
        if max_tokens <= DECODE_TOKENS or max_sessions < 1:
            raise UsageError(
                f"a batch of {max_tokens} tokens and {max_sessions} sessions is not possible",
                hint=f"A batch needs more than {DECODE_TOKENS} tokens.",
            )
        self._max_tokens = max_tokens
        self._max_sessions = max_sessions
        self._pace = PrefillPace(prefill_target_us)
        self._row_time = RowTime() if row_time is None else row_time
        self._cohorts = Cohorts()
        self._sessions: dict[Key, _WaitingSteps] = {}
        # Keys by what their oldest step is.
        self._decode: FairQueue[Key] = FairQueue()
        self._late: FairQueue[Key] = FairQueue()  # that count as certain
        self._mixed_steps: FairQueue[Key] = FairQueue()
        self._guesses: FairQueue[Key] = FairQueue()
        self._prefill: FairQueue[Key] = FairQueue()
        self._last_decode: int | None = None
        self._mixed = mixed
        self._prefill_is_next = False
        self._late_is_next = False

    def __len__(self) -> int:
        """Waiting steps, begun ones included."""
        return sum(len(waiting.steps) for waiting in self._sessions.values())

    def __bool__(self) -> bool:
        return bool(self._sessions)

    def add(
        self,
        key: Key,
        owner: str,
        tokens: int,
        deadline: int = 0,
        group: str = "",
        again: int = 0,
        certain: Certain = Certain.ALL,
        branches: int = 0,
    ) -> None:
        """Queue a step of ``tokens`` tokens behind the other steps of ``key``. ``deadline`` is of the clock
        of ``next_batch``'s ``now``; 0: none. A key belongs to one owner, an owner to one ``group``.
        ``again``: rows before the step that are fed again with it, up to a page. They count in the budget,
        or a peer whose sessions always go back by a token would make batches of many times that.
        ``branches``: rows that are computed for its branches, and count as those do."""
        if tokens < 1:
            raise LocalProtocolError(f"a step of {tokens} tokens cannot be scheduled")
        waiting = self._sessions.get(key)
        if waiting is None:
            waiting = self._sessions[key] = _WaitingSteps(owner, group)
        waiting.steps.append(_Waiting(tokens, deadline, again + branches, certain, branches))
        if len(waiting.steps) == 1:
            self._enqueue(key, waiting)

    def remove(self, key: Key) -> int:
        """Forget every step of ``key``; returns how many there were."""
        waiting = self._sessions.pop(key, None)
        if waiting is None:
            return 0
        for queue in (self._decode, self._late, self._mixed_steps, self._guesses, self._prefill):
            queue.discard(waiting.owner, key, waiting.group)
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
        decodes = any(map(len, (self._decode, self._late, self._mixed_steps, self._guesses)))
        both = decodes and bool(self._prefill)
        if decodes:
            self._last_decode = now
        prefill_first = not self._mixed and both and self._prefill_is_next
        if prefill_first:
            self._add_prefill(batch, now)
        if decodes and not batch.slices:
            self._add_decode(batch, now)
            self._add_guesses(batch, now)
        if self._prefill and not prefill_first and (self._mixed or not batch.slices):
            self._add_prefill(batch, now)
        self._prefill_is_next = both and not batch.prefill_tokens
        for part in batch.slices:
            self._advance(part)
        for key in batch.expired:
            self._finish_oldest(key)
        return batch

    def _add_decode(self, batch: Batch[Key], now: int) -> None:
        """Certain steps; and of those that only count as certain the first in turn, and as many more as make
        the batch twice as long at most. All of a session that sends nothing but guesses come to count so
        where it takes longer than their patience to compute them.

        These have turns of their own, and none is passed over for a shorter one: else one that is long would
        wait for ever, as its owner's other steps use up the turns. Where not both kinds fit, they alternate.
        """
        budget, places = self._decode_room(now)
        late = [key for key in self._late.in_turn() if not self._drop_expired(batch, key, now)]
        if late and self._late_is_next:
            self._take(batch, late[0], now)
        first = batch.decode_rows + batch.again
        for key in self._decode.in_turn():
            if self._drop_expired(batch, key, now):
                continue
            if not self._fits(batch, self._rows(key), budget, places):
                break
            self._take(batch, key, now)
        room = rows_late(batch.decode_rows + batch.again - first, self._row_time) - first
        taken = int(first > 0)
        for key in late[taken:]:
            rows = self._rows(key)
            if (taken and rows > room) or not self._fits(batch, rows, budget, places):
                break
            self._take(batch, key, now)
            room -= rows
            taken += 1
        self._late_is_next = not taken

    def _drop_expired(self, batch: Batch[Key], key: Key, now: int) -> bool:
        """Whether the deadline of its oldest step has passed."""
        expired = 0 < self._sessions[key].steps[0].deadline < now
        if expired:
            batch.expired.append(key)
        return expired

    def _rows(self, key: Key) -> int:
        """Of its oldest step."""
        step = self._sessions[key].steps[0]
        return step.tokens + step.again

    @staticmethod
    def _fits(batch: Batch[Key], rows: int, budget: int, places: int) -> bool:
        slices = batch.slices
        return len(slices) < places and (not slices or batch.decode_rows + batch.again + rows <= budget)

    def _take(self, batch: Batch[Key], key: Key, now: int) -> None:
        """Its oldest step, a whole one."""
        waiting = self._sessions[key]
        step = waiting.steps[0]
        batch.slices.append(Slice(key, 0, step.tokens, True, waiting.bare))
        self._cohorts.decodes(hash(key), now)
        batch.decode_rows += step.tokens
        batch.again += step.again

    def _decode_room(self, now: int) -> tuple[int, int]:
        """Rows and sessions: some prompt tokens' room, and a place, stay free while prompts wait."""
        prompts = len(self._prefill) > 0
        spare = min(MIN_SLICE, self._max_tokens - DECODE_TOKENS) if prompts else 0
        places = max(1, self._max_sessions - prompts)
        most = self._cohorts.most(now)
        return self._max_tokens - spare, places if most is None else min(places, most)

    def _add_guesses(self, batch: Batch[Key], now: int) -> None:
        """Steps with guesses, those with a certain row first, behind ``batch``'s certain ones."""
        if not self._mixed_steps and not self._guesses:
            return
        budget, places = self._decode_room(now)
        certain = batch.decode_rows + batch.again
        room = rows_beside(certain, self._row_time) if certain else rows_alone(self._row_time)
        waited: list[Key] = []
        its_turn = False  # of a step that does not count as certain next: no shorter one goes before it
        for key in chain(self._mixed_steps.in_turn(), self._guesses.in_turn()):
            waiting = self._sessions[key]
            count, deadline, again, kind, _ = waiting.steps[0]
            if 0 < deadline < now:
                batch.expired.append(key)
                continue
            rows = count + again
            fits = not batch.slices or (rows <= room and self._fits(batch, rows, budget, places))
            if not fits or (kind is Certain.SOME and its_turn):
                if certain or kind is Certain.NONE:
                    if waiting.pass_over(now, dear=rows > room):
                        waited.append(key)
                else:
                    its_turn = True
                continue
            self._take(batch, key, now)
            room -= rows
        for key in waited:
            waiting = self._sessions[key]
            for queue in (self._mixed_steps, self._guesses):
                queue.discard(waiting.owner, key, waiting.group)
            self._enqueue(key, waiting)

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
            tokens, deadline, again, *_ = waiting.steps[0]
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
        queue = self._queue_of(waiting)
        queue.discard(waiting.owner, key, waiting.group)
        queue.rotate(waiting.owner, waiting.group)
        waiting.steps.popleft()
        waiting.done, waiting.passed_at = 0, None
        waiting.counts_as_certain = waiting.bare = False
        if waiting.steps:
            self._enqueue(key, waiting)
        else:
            del self._sessions[key]

    def _enqueue(self, key: Key, waiting: _WaitingSteps) -> None:
        self._queue_of(waiting).push(waiting.owner, key, waiting.group)

    def _queue_of(self, waiting: _WaitingSteps) -> FairQueue[Key]:
        """Of its oldest step."""
        step = waiting.steps[0]
        if step.tokens > DECODE_TOKENS:
            return self._prefill
        if waiting.counts_as_certain:
            return self._late
        if step.certain is Certain.ALL:
            return self._decode
        return self._mixed_steps if step.certain is Certain.SOME else self._guesses
