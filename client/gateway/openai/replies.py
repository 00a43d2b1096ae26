"""Replies to requests that run: in one piece, or as a stream that begins with the first token."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from urllib.parse import quote

from ....swarm.types import Route
from ...async_model import AsyncSwarmModel
from ...decoding.answer import TokenEvent
from ...generation import Generation
from ...http.body import to_json
from ...http.call import HttpCall
from .generations import Answering, WantedChoice
from .responses import ChoiceShape, Envelope, usage_of
from .sampling_fields import Streaming

MAX_TOLD = 10
"""Fields that a header names."""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that is ready to run. ``prompt_tokens``: of all prompts together. ``n``: choices for each of
    them. ``guide_field``: which field asks for a guide, if any does. ``ignored``: fields that are not
    known."""

    model: AsyncSwarmModel
    envelope: Envelope
    wanted: Sequence[WantedChoice]
    shapes: Sequence[ChoiceShape]
    prompt_tokens: int
    n: int
    streaming: Streaming | None
    guide_field: str
    ignored: Sequence[str] = ()


class Reply(ABC):
    """``take`` gets what the generations make, ``end`` comes after all of it."""

    def __init__(self, call: HttpCall, job: PreparedRequest, answering: Answering, began: float) -> None:
        self._call = call
        self._job = job
        self._answering = answering
        self._began = began
        self._results: dict[int, Generation] = {}

    @abstractmethod
    async def take(self, index: int, item: TokenEvent | Generation) -> None: ...

    @abstractmethod
    async def end(self) -> None: ...

    def _usage(self, tokens: int) -> dict[str, object]:
        """A prompt counts once, however many answers were asked for."""
        job = self._job
        cached = sum(self._results[index].cached_tokens for index in range(0, len(job.wanted), job.n))
        return usage_of(job.prompt_tokens, tokens, cached)

    def _headers(
        self, route: Route | None, last: str, timings: Mapping[str, float] | None = None
    ) -> dict[str, str]:
        """What was measured so far, and the route, of the first choice. ``last``: what is reached now."""
        seconds = {"queue": self._answering.queued_s, last: perf_counter() - self._began, **(timings or {})}
        headers = {
            "Server-Timing": ", ".join(f"{name};dur={value * 1000:.1f}" for name, value in seconds.items())
        }
        if self._job.ignored:
            headers["X-Ignored-Fields"] = ", ".join(
                quote(name, safe="/[]") for name in self._job.ignored[:MAX_TOLD]
            )
        if route is not None:
            headers["X-Swarm-Route"] = ", ".join(f"{hop.peer_id}={hop.span}" for hop in route.hops)
        return headers


class WholeReply(Reply):
    async def take(self, index: int, item: TokenEvent | Generation) -> None:
        shape = self._job.shapes[index]
        if isinstance(item, TokenEvent):
            shape.push(item)
        else:
            shape.finish(item)
            self._results[index] = item

    async def end(self) -> None:
        job, results = self._job, self._results
        usage = self._usage(sum(len(result.token_ids) for result in results.values()))
        choices = [shape.whole(results[shape.index]) for shape in job.shapes]
        timings = results[0].timings
        seconds = {
            "route": timings.route_s,
            "prefill": timings.prefill_s,
            "decode": timings.decode_s,
            "local": timings.local_s,
            "repair": timings.repair_s,
        }
        headers = self._headers(results[0].route, "total", seconds)
        await self._call.reply(job.envelope.whole(choices, usage), headers=headers)


class StreamedReply(Reply):
    """It begins with the first token: what fails before that fails with its own status."""

    def __init__(
        self, call: HttpCall, job: PreparedRequest, answering: Answering, began: float, streaming: Streaming
    ) -> None:
        super().__init__(call, job, answering, began)
        self._streaming = streaming
        self._tokens = 0
        self._begun: set[int] = set()
        self._turn = asyncio.Lock()  # choices are made side by side, and sending may wait

    async def take(self, index: int, item: TokenEvent | Generation) -> None:
        text = self._events(index, item)
        async with self._turn:
            if not self._call.streaming:
                await self._call.begin_events(self._headers(self._answering.route, "first"))
            if text:
                await self._call.send_events(text)

    async def end(self) -> None:
        last = ""
        if self._streaming.usage:
            last = self._job.envelope.chunk("", to_json(self._usage(self._tokens)))
        await self._call.end_events(last)

    def _events(self, index: int, item: TokenEvent | Generation) -> str:
        shape = self._job.shapes[index]
        entries: list[str] = []
        if index not in self._begun:
            self._begun.add(index)
            entries = shape.begin()
        if isinstance(item, TokenEvent):
            self._tokens += 1
            entries += shape.push(item)
        else:
            self._results[index] = item
            entries += shape.finish(item)
        usage = self._usage_now()
        chunk = self._job.envelope.chunk
        return "".join([chunk(entry, usage) for entry in entries])

    def _usage_now(self) -> str:
        if self._streaming.continuous:
            return to_json(usage_of(self._job.prompt_tokens, self._tokens))
        return "null" if self._streaming.usage else ""
