"""Replies to requests that run: in one piece, or as a stream that begins with the first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from ...swarm.types import Route
from ..async_model import AsyncSwarmModel
from ..generation import Generation, TokenEvent
from .answering import Answering, Item, Wanted
from .answers import ChoiceShape, Envelope, to_json, usage_of
from .body import ClientGoneError
from .calls import Call
from .sampling_fields import Streaming


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is ready to run. ``prompt_tokens``: of all prompts together. ``n``: choices for each of
    them. ``guide_field``: which field asks for a guide, if any does."""

    model: AsyncSwarmModel
    envelope: Envelope
    wanted: Sequence[Wanted]
    shapes: Sequence[ChoiceShape]
    prompt_tokens: int
    n: int
    streaming: Streaming | None
    guide_field: str


async def watch(call: Call, answering: Answering) -> None:
    """End the answer once its client has hung up."""
    await call.until_gone()
    answering.fail(ClientGoneError())


async def reply_whole(call: Call, job: Job, answering: Answering, began: float) -> None:
    results: dict[int, Generation] = {}
    while items := await answering.next():
        for index, item in items:
            shape = job.shapes[index]
            if isinstance(item, TokenEvent):
                shape.push(item)
            else:
                shape.finish(item)
                results[index] = item
    usage = _usage(job, results, sum(len(result.token_ids) for result in results.values()))
    choices = [shape.whole(results[shape.index]) for shape in job.shapes]
    headers = _headers(answering, results[0].route, {"total": perf_counter() - began}, results[0])
    await call.reply(job.envelope.whole(choices, usage), headers=headers)


async def reply_stream(
    call: Call, job: Job, streaming: Streaming, answering: Answering, began: float
) -> None:
    items = await answering.next()  # what fails before the first token fails with its own status
    await call.begin_events(_headers(answering, answering.route, {"first": perf_counter() - began}))
    written = _Written(job, streaming)
    while items:
        if text := written.events(items):
            await call.send_events(text)
        items = await answering.next()
    await call.end_events(written.last())


class _Written:
    """What a stream has said so far; items in, events out."""

    def __init__(self, job: Job, streaming: Streaming) -> None:
        self._job = job
        self._streaming = streaming
        self._tokens = 0
        self._begun: set[int] = set()
        self._results: dict[int, Generation] = {}

    def events(self, items: Sequence[Item]) -> str:
        chunk = self._job.envelope.chunk
        parts = []
        for index, item in items:
            shape = self._job.shapes[index]
            entries = []
            if index not in self._begun:
                self._begun.add(index)
                entries = shape.begin()
            if isinstance(item, TokenEvent):
                self._tokens += 1
                entries += shape.push(item)
            else:
                self._results[index] = item
                entries += shape.finish(item)
            parts += [chunk((entry,), self._usage_now()) for entry in entries]
        return "".join(parts)

    def last(self) -> str:
        if not self._streaming.usage:
            return ""
        return self._job.envelope.chunk((), to_json(_usage(self._job, self._results, self._tokens)))

    def _usage_now(self) -> str:
        if self._streaming.continuous:
            return to_json(usage_of(self._job.prompt_tokens, self._tokens))
        return "null" if self._streaming.usage else ""


def _usage(job: Job, results: dict[int, Generation], tokens: int) -> dict[str, object]:
    """A prompt counts once, however many answers were asked for."""
    cached = sum(results[index].cached_tokens for index in range(0, len(job.wanted), job.n))
    return usage_of(job.prompt_tokens, tokens, cached)


def _headers(
    answering: Answering, route: Route | None, seconds: dict[str, float], result: Generation | None = None
) -> dict[str, str]:
    """What was measured so far, and the route, of the first choice."""
    seconds = {"queue": answering.queued_s, **seconds}
    if result is not None:
        timings = result.timings
        seconds |= {
            "route": timings.route_s,
            "prefill": timings.prefill_s,
            "decode": timings.decode_s,
            "local": timings.local_s,
            "repair": timings.repair_s,
        }
    headers = {
        "Server-Timing": ", ".join(f"{name};dur={value * 1000:.1f}" for name, value in seconds.items())
    }
    if route is not None:
        headers["X-Swarm-Route"] = ", ".join(f"{hop.peer_id}={hop.span}" for hop in route.hops)
    return headers
