"""What is asked of a node about one session (OPEN, ATTACH, REPLAY), and which answers are still to come.

One request waits at a time. A request that was given up is answered all the same, perhaps while the next one
waits: answers of a kind are counted, so that an old one is not taken for the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from ...swarm.errors import ErrorCode, ReplayRefusedError, SwarmError
from ...swarm.links.link import Reply
from ...swarm.protocol.messages import Attach, Attached, Open, Opened, Replay, Replayed

Expected = type[Opened] | type[Attached] | type[Replayed]


class Requests:
    """The requests of one session. ``since``: when (perf_counter) the request that waits was sent; None: none
    waits. ``expected``: its answer's type. ``replay_step``: the first step number of a replay that waits."""

    def __init__(self) -> None:
        self.since: float | None = None
        self.expected: Expected | None = None
        self.replay_step: int | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self._attaches = 0  # asked for and not answered
        self._replays = 0  # asked for, and perhaps not answered yet
        self._replay_steps: set[int] = set()  # all that were ever asked for
        self._grace: asyncio.TimerHandle | None = None
        self._work = -1  # what the node told last of a replay under way, and when that was new
        self._work_at = 0.0

    @contextmanager
    def asking(self, message: Open | Attach | Replay, expected: Expected) -> Iterator[asyncio.Future[Reply]]:
        """A request waits inside; its answer comes in what is given."""
        self._answer = answer = asyncio.get_running_loop().create_future()
        self.expected, self.since = expected, perf_counter()
        if isinstance(message, Attach):
            self._attaches += 1
        elif isinstance(message, Replay):
            self.replay_step = message.step
            self._replays += 1
            self._replay_steps.add(message.step)
        try:
            yield answer
        finally:
            self._answer = self.expected = self.since = self.replay_step = None
            if self._grace is not None:
                self._grace.cancel()
                self._grace = None
            if answer.done() and not answer.cancelled():
                answer.exception()  # looked at, even if its asker gave up

    @property
    def pending(self) -> asyncio.Future[Reply] | None:
        """The answer that is waited for."""
        return self._answer if self._answer is not None and not self._answer.done() else None

    def take(self, reply: Reply) -> bool:
        """Whether it was asked for."""
        pending = self.pending
        awaits = self.expected if pending is not None else None
        match reply:
            case Replayed() if self._replays and awaits is not Replayed:
                self._replays -= 1  # of one that was given up; the node may leave out such answers
            case Attached() if self._attaches > (awaits is Attached):
                self._attaches -= 1  # likewise, but it answers each
            case _ if pending is not None:
                # Counted now: the asker may be cancelled before it sees the answer.
                self._replays -= isinstance(reply, Replayed) and self._replays > 0
                self._attaches -= isinstance(reply, Attached) and self._attaches > 0
                pending.set_result(reply)
            case _:
                return False
        return True

    def fail(self, error: SwarmError) -> None:
        """The session is over."""
        if (pending := self.pending) is not None:
            pending.set_exception(error)

    def is_replay(self, step: int | None) -> bool:
        """Whether a step is the first of any replay that was asked for."""
        return step in self._replay_steps

    def refuse_replay(self, error: SwarmError, code: ErrorCode) -> None:
        self.fail(ReplayRefusedError(error, journal_lost=code is ErrorCode.JOURNAL_LOST))

    def refuse_replay_soon(self, seconds: float, error: SwarmError, code: ErrorCode) -> None:
        """Unless it is answered before: the error may be of the hop before this replay."""
        if self._grace is None:
            loop = asyncio.get_running_loop()
            self._grace = loop.call_later(seconds, self.refuse_replay, error, code)

    def still_s(self, work: int) -> float:
        """Seconds without progress of a replay of which the node tells now that it is at ``work``."""
        if work != self._work:
            self._work, self._work_at = work, perf_counter()
        return perf_counter() - max(self._work_at, self.since or 0.0)
