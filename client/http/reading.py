"""Requests while they are read: their bodies bounded together, those that take long in turn, beside the loop.

A request's bytes count from the first one until its prompts are tokens. When there are too many, one request
ends: of the caller that holds most, the one that wastes most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from ...swarm.fairness.shares import Holder, ShareLimits
from ...swarm.fairness.thread import FairThread
from ...swarm.fairness.unfinished import UnfinishedFrames
from .errors import too_many

MOST_BYTES = 64 * 2**20
"""Bytes of all bodies together at most, or four of the largest if that is more."""
INLINE_BYTES = 32 * 1024
"""A body of up to this many bytes is parsed at once, in some milliseconds at worst; a larger one is parsed in
a thread."""

T = TypeVar("T")


class Reading:
    """One request that is being read; ``nbytes`` of its body are here."""

    def __init__(self, caller: str, frames: UnfinishedFrames, thread: FairThread) -> None:
        self.nbytes = 0
        self._thread = thread
        self._ended: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        self._frame = frames.on_stream(Holder(caller, caller), self._end)

    def holds(self, nbytes: int) -> None:
        """``nbytes`` of its body are here now. A request that has too many ends in ``until``."""
        self.nbytes = nbytes
        self._frame.holds(nbytes)

    async def until(self, work: Awaitable[T], *ends: Awaitable[NoReturn]) -> T:
        """What ``work`` gives. Cancels it, and raises, when one of ``ends`` does, or ApiError 429 when others
        need the room more."""
        working = asyncio.ensure_future(work)
        ending: list[asyncio.Future[NoReturn]] = [asyncio.ensure_future(each) for each in ends]
        own: list[asyncio.Future[Any]] = [working, *ending]
        try:
            await asyncio.wait((*own, self._ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in own:
                each.cancel()
            await asyncio.wait(own)
        over = [each for each in (self._ended, *ending) if each.done() and not each.cancelled()]
        failed = [each for each in over if each.exception() is not None]
        return failed[0].result() if failed and working.cancelled() else working.result()

    async def parsed(self, parse: Callable[[], T]) -> T:
        """What ``parse`` makes of the body."""
        return parse() if self.nbytes <= INLINE_BYTES else await self._thread.run(parse)

    def close(self) -> None:
        self._frame.holds(0)
        if self._ended.done():
            self._ended.exception()  # looked at
        self._ended.cancel()

    def _end(self, _: str) -> None:
        if not self._ended.done():
            self._ended.set_exception(too_many("too many large requests are being read; try again soon", 1))


class Readings:
    """The readings of all requests. ``max_body_bytes``: the bound of one."""

    def __init__(self, max_body_bytes: int) -> None:
        limits = ShareLimits(max(MOST_BYTES, 4 * max_body_bytes))
        self._frames = UnfinishedFrames(time.monotonic, limits)
        self._thread = FairThread("swarm-bodies")

    def close(self) -> None:
        self._thread.close()

    @property
    def held(self) -> int:
        """Bytes."""
        return self._frames.held

    @contextmanager
    def of(self, caller: str) -> Iterator[Reading]:
        """A request of ``caller``, as long as it is being read."""
        reading = Reading(caller, self._frames, self._thread)
        try:
            yield reading
        finally:
            reading.close()
