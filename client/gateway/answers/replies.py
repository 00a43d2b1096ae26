"""Replies to requests that run: in one piece, or as a stream."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from time import perf_counter
from urllib.parse import quote

from ....swarm.types import Route
from ...decoding.answer import TokenEvent
from ...generation import Generation
from ...http.call import HttpCall
from .generations import Answering
from .parts import Part, Said, Thinking, Usage
from .preparing import Prepared
from .swarm_news import SwarmNews
from .writer import Writer

MAX_TOLD = 10
"""Fields that a header names."""
QUIET_S = 5.0
"""After this many seconds without a token a stream says that it lives. Proxies take those for dead that say
nothing for 30 s and more."""


class Reply(ABC):
    """``take`` gets what the generations make, ``end`` comes after all of it."""

    def __init__(
        self, call: HttpCall, job: Prepared, writer: Writer, answering: Answering, began: float
    ) -> None:
        self._call = call
        self._job = job
        self._writer = writer
        self._answering = answering
        self._began = began
        self._readers = job.readers()
        self._usage = Usage(job.prompt_tokens)

    @abstractmethod
    async def take(self, index: int, item: TokenEvent | Generation) -> None: ...

    @abstractmethod
    async def end(self) -> None: ...

    @abstractmethod
    async def beat(self, every_s: float) -> None:
        """Say, beside all that, that the answer is being made. Raises ClientGoneError."""

    def _parts(self, index: int, item: TokenEvent | Generation) -> Sequence[Part]:
        """What a choice says with ``item``, which is counted."""
        parts = self._readers[index].push(item)
        if isinstance(item, TokenEvent):
            self._usage.completion += 1
            if parts and type(parts[0]) is Thinking:
                self._usage.thinking += 1
        elif index % self._job.n == 0:  # the first choice of a prompt, which feeds it
            self._usage.cached += item.cached_tokens
        return parts

    def _headers(
        self, route: Route | None, last: str, timings: Mapping[str, float] | None = None
    ) -> dict[str, str]:
        """What was measured so far, and the route, of the first choice. ``last``: what is reached now."""
        seconds = {"queue": self._answering.queued_s, last: perf_counter() - self._began, **(timings or {})}
        headers = {
            "Server-Timing": ", ".join(f"{name};dur={value * 1000:.1f}" for name, value in seconds.items())
        }
        headers.update(ignored_header(self._job.request.ignored))
        if route is not None:
            headers["X-Swarm-Route"] = ", ".join(f"{hop.peer_id}={hop.span}" for hop in route.hops)
        return headers


def ignored_header(fields: Sequence[str]) -> dict[str, str]:
    """Names fields of the request that are not known; nothing where all were."""
    if not fields:
        return {}
    return {"X-Ignored-Fields": ", ".join(quote(name, safe="/[]") for name in fields[:MAX_TOLD])}


class WholeReply(Reply):
    def __init__(
        self, call: HttpCall, job: Prepared, writer: Writer, answering: Answering, began: float
    ) -> None:
        super().__init__(call, job, writer, answering, began)
        self._choices = [Said() for _ in job.wanted]

    async def take(self, index: int, item: TokenEvent | Generation) -> None:
        for part in self._parts(index, item):
            self._choices[index].add(part)

    async def beat(self, every_s: float) -> None:
        """Nothing can be said before all is there."""

    async def end(self) -> None:
        route, seconds = None, dict[str, float]()
        if self._choices:  # a request may ask for no answer
            first = self._choices[0].finish.result
            route, timings = first.route, first.timings
            seconds = {
                "route": timings.route_s,
                "prefill": timings.prefill_s,
                "decode": timings.decode_s,
                "local": timings.local_s,
                "repair": timings.repair_s,
            }
        headers = self._headers(route, "total", seconds)
        await self._call.reply(self._writer.whole(self._choices, self._usage), headers=headers)


class StreamedReply(Reply):
    """It begins with the first token, or with the first beat: what fails before fails with its own status."""

    def __init__(
        self, call: HttpCall, job: Prepared, writer: Writer, answering: Answering, began: float
    ) -> None:
        super().__init__(call, job, writer, answering, began)
        call.tell_failure = writer.failure or call.tell_failure
        self._begun: set[int] = set()
        self._turn = asyncio.Lock()  # choices are made side by side, and sending may wait
        self._spoke = False  # since the last beat
        self._news = SwarmNews(answering, job.forgotten) if job.request.swarm_events else None

    async def take(self, index: int, item: TokenEvent | Generation) -> None:
        parts, write, usage = self._parts(index, item), self._writer.part, self._usage
        text = ""
        if index not in self._begun:
            self._begun.add(index)
            text = self._writer.begin(index, usage)
        text += "".join([write(index, part, usage) for part in parts])
        if self._news is not None and index == 0:
            text = self._told(self._news, item if isinstance(item, Generation) else None) + text
        await self.send(text)

    async def beat(self, every_s: float) -> None:
        quiet_s = 0.0
        while True:
            await asyncio.sleep(every_s)
            quiet_s = 0.0 if self._spoke else quiet_s + every_s
            self._spoke = False
            if self._turn.locked():
                continue  # something is being sent
            text = self._told(self._news) if self._news is not None else ""
            if not text and self._call.streaming and quiet_s < QUIET_S:
                continue
            await self.send(text or self._call.pulse)

    def _told(self, news: SwarmNews, result: Generation | None = None) -> str:
        told = news.take(result)
        return self._writer.swarm(told) if told else ""

    async def send(self, text: str) -> None:
        """Send a whole number of events, between those of others; the stream begins with the first."""
        await self._turn.acquire()  # "async with" takes twice as long, and this is done for each token
        try:
            if not self._call.streaming:
                await self._call.begin_events(self._headers(self._answering.route, "first"))
            if text:
                await self._call.send_events(text)
            self._spoke = True
        finally:
            self._turn.release()

    async def end(self) -> None:
        async with self._turn:
            await self._call.end_events(self._writer.end(self._usage))
