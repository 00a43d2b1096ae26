"""Answers while they are made: as an async iterator, and over a background loop for all other callers."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self

from ..swarm.errors import UsageError
from ..swarm.types import Route
from .background import BackgroundLoop, Job
from .decoding.answer import TokenEvent
from .generation import Generation, GenerationRun
from .hops.trace import Repair
from .routing.route_wait import Waiting

_END: Final = None


class TextStream(AsyncIterator[str]):
    """Pieces of an answer; ``result`` when they are over. Stop early with ``aclose`` or ``async with``.

    Closing it, dropping it, or cancelling the task that iterates frees the session on every hop at once.
    """

    def __init__(self, begin: Callable[[], Awaitable[GenerationRun]]) -> None:
        """``begin`` is called when the first piece is asked for."""
        self._begun: list[GenerationRun] = []  # it, once it has begun
        self._events = _events(begin, self._begun)

    @property
    def result(self) -> Generation:
        """The whole answer and its timings. Raises UsageError before the stream is at its end."""
        if self._run is None or self._run.result is None:
            raise _unfinished()
        return self._run.result

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """The prompt; empty before it is read."""
        return () if self._run is None else self._run.prompt_token_ids

    @property
    def route(self) -> Route | None:
        """The hops that compute the answer now, or did last; None before there are any."""
        return None if self._run is None else self._run.route

    @property
    def repaired(self) -> tuple[Repair, ...]:
        """The repairs of the route so far."""
        return () if self._run is None else self._run.repaired

    @property
    def waiting(self) -> Waiting | None:
        """What the answer waits for now; None while it goes on."""
        return None if self._run is None else self._run.waiting

    @property
    def so_far(self) -> Generation | None:
        """The answer up to now, or to where it was stopped or failed; None before its first token."""
        return None if self._run is None else self._run.so_far

    async def finish(self) -> Generation:
        """Read to the end; the result."""
        async for _ in self.events():
            pass
        return self.result

    async def events(self) -> AsyncIterator[TokenEvent]:
        """The same answer token by token; what is taken here does not come as a piece."""
        while (event := await self._next()) is not None:
            yield event

    async def aclose(self) -> None:
        """Stop here. Idempotent."""
        await self._events.aclose()

    async def _next(self) -> TokenEvent | None:
        """None at the end. Raises what ended the answer."""
        async for event in self._events:
            return event
        return None

    @property
    def _run(self) -> GenerationRun | None:
        return self._begun[0] if self._begun else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while (event := await self._next()) is not None:
            if event.text:
                return event.text
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _events(
    begin: Callable[[], Awaitable[GenerationRun]], begun: list[GenerationRun]
) -> AsyncGenerator[TokenEvent, None]:
    """Knows nothing of its stream, so that dropping that ends the run at once."""
    run = await begin()
    begun.append(run)
    async with aclosing(run.events()) as events:
        async for event in events:
            yield event


class _BackgroundStream:
    """A stream whose answer is made on a background loop, at full speed."""

    _stream: TextStream
    _job: Job[Generation] | None = None
    _over = False

    @property
    def result(self) -> Generation:
        """The whole answer and its timings. Raises UsageError before the stream is at its end."""
        if self._job is None or not self._job.done:
            raise _unfinished()
        return self._job.future.result()

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        """The prompt; empty before it is read."""
        return self._stream.prompt_token_ids

    @property
    def route(self) -> Route | None:
        """The hops that compute the answer now, or did last; None before there are any."""
        return self._stream.route

    @property
    def repaired(self) -> tuple[Repair, ...]:
        """The repairs of the route so far."""
        return self._stream.repaired

    @property
    def waiting(self) -> Waiting | None:
        """What the answer waits for now; None while it goes on."""
        return self._stream.waiting

    @property
    def so_far(self) -> Generation | None:
        """The answer up to now, or to where it was stopped or failed; None before its first token."""
        return self._stream.so_far

    def __del__(self) -> None:
        if self._job is not None:
            self._job.cancel()


class SyncTextStream(_BackgroundStream, Iterator[str]):
    """Pieces of an answer for code without an event loop; ``result`` when they are over.

    The answer goes on being made while the caller is busy with a piece. Stop early with ``close`` or
    ``with``; dropping the stream stops it too.
    """

    def __init__(self, loop: BackgroundLoop, stream: TextStream) -> None:
        self._queue: queue.SimpleQueue[TokenEvent | None] = queue.SimpleQueue()
        self._stream = stream
        self._job: Job[Generation] = loop.submit(_pump(stream, self._queue.put))

    def close(self) -> None:
        """Stop here and wait until the hops are told. Idempotent."""
        self._over = True
        self._job.stop()

    def __iter__(self) -> Self:
        return self

    def events(self) -> Iterator[TokenEvent]:
        """The same answer token by token; what is taken here does not come as a piece."""
        return iter(self._next, _END)

    def __next__(self) -> str:
        while (event := self._next()) is not None:
            if event.text:
                return event.text
        raise StopIteration

    def _next(self) -> TokenEvent | None:
        """Waits; None at the end. Raises what ended the answer."""
        if self._over:
            return None
        try:
            event = self._queue.get()
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if event is _END:
            self._over = True
            self._job.result()
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BridgedTextStream(_BackgroundStream, TextStream):
    """A TextStream of a background loop, iterated in the caller's own loop."""

    def __init__(self, loop: BackgroundLoop, stream: TextStream) -> None:
        self._background = loop
        self._stream = stream
        self._queue: asyncio.Queue[TokenEvent | None] = asyncio.Queue()

    async def aclose(self) -> None:
        """Stop here. Idempotent."""
        self._over = True
        if self._job is not None and not self._job.done:
            self._job.cancel()
            ended = asyncio.wrap_future(self._job.future)
            await asyncio.wait([ended])
            ended.exception()  # that it was stopped, which is known

    async def _next(self) -> TokenEvent | None:
        if self._over:
            return None
        job = self._job or self._start()
        try:
            event = await self._queue.get()
        except BaseException:
            self._over = True
            job.cancel()
            raise
        if event is _END:
            self._over = True
            await job.wait()
        return event

    def _start(self) -> Job[Generation]:
        loop, events = asyncio.get_running_loop(), self._queue

        def put(event: TokenEvent | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        self._job = self._background.submit(_pump(self._stream, put))
        return self._job


async def _pump(stream: TextStream, put: Callable[[TokenEvent | None], None]) -> Generation:
    """Make the answer at full speed, handing over its events and at the end _END; the result."""
    try:
        async with stream:
            async for event in stream.events():
                put(event)
            return stream.result
    finally:
        put(_END)


def _unfinished() -> UsageError:
    return UsageError("the answer is not complete", hint="Read the stream to its end first.")
