"""Feeding a new hop what it lacks, from here: embeddings of token ids, or rows that the hop before replays.

Its steps are held: computed and kept in its journal, and sent on to nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from ...swarm.codecs import activations
from ...swarm.errors import BrokenError, RemoteProtocolError
from ...swarm.protocol.messages import Result, Want
from ...swarm.protocol.wire import Payload
from ...swarm.runtime.tasks import all_of
from ..hops.hop import HopClient, StepTold
from ..hops.segment import Segment, check_size

REFEED_TOKENS = 256
"""Of one step: others' decode steps wait for one at most."""

_Chunk = tuple[Payload, int, int]  # payload, tokens, position


@dataclass(slots=True)
class Fed:
    """What was computed once more, and who sent the activations for it."""

    tokens: int = 0
    node_bytes: int = 0
    client_bytes: int = 0

    def by_nodes(self, tokens: int, size: int) -> None:
        self.tokens += tokens
        self.node_bytes += size

    def by_client(self, tokens: int, size: int) -> None:
        self.tokens += tokens
        self.client_bytes += size


class Port:
    """Listens to a hop while its route is mended; a ``hop.Listener``.

    Rows that the hop replays to us and its answers to held steps may come at the same time. ``alarm`` is set
    when the hop fails.
    """

    is_chain = False

    def __init__(self, hop: HopClient, alarm: asyncio.Event, hidden_size: int) -> None:
        self.hop = hop
        self.alarm = alarm
        self.hidden_size = hidden_size
        self.rows: asyncio.Queue[Result | None] = asyncio.Queue()  # None: no more will come
        self.feed: Segment | None = None
        self.taking = False
        self._since = perf_counter()
        self._last_feed: Segment | None = None

    @property
    def waiting_since(self) -> float | None:
        return self._since

    @property
    def awaited_payload(self) -> tuple[Payload, int] | None:
        return self._last_feed.awaited_payload if self._last_feed is not None else None

    def question(self, hop: HopClient) -> StepTold | None:
        return self.feed.question(hop) if self.feed is not None else None

    def feeding(self) -> Segment:
        """What takes held steps for the hop from now on."""
        self.feed = self._last_feed = Segment([self.hop], self.hidden_size)
        self.hop.listener = self
        return self.feed

    def take(self, hop: HopClient, result: Result) -> None:
        if result.tokens == 0 and self.feed is not None:
            self.feed.take(hop, result)
        elif self.taking:
            self.rows.put_nowait(result)

    def trouble(self) -> None:
        if self.feed is not None:
            self.feed.trouble()
        if self.hop.failure is not None or self.hop.step_error is not None:
            self.rows.put_nowait(None)
            self.alarm.set()


async def feed_ids(
    port: Port, start: int, until: int, step: int, embed: Callable[[int, int], Tensor], fed: Fed
) -> None:
    """Feed positions [start, until) from their token ids, with step numbers from ``step`` on. Raises
    BrokenError."""
    size = max(1, min(port.hop.max_step_tokens, REFEED_TOKENS))

    async def chunks() -> AsyncIterator[_Chunk]:
        for at in range(start, until, size):
            x = embed(at, min(until, at + size))  # (tokens, hidden)
            yield activations.encode(port.hop.codec, x), len(x), at

    await _feed(port, chunks(), step, fed)


async def relay_rows(source: Port, target: Port, start: int, until: int, step: int, fed: Fed) -> None:
    """Let ``source`` replay positions [start, until) to us, and pass them on to ``target``; from then on its
    results come to us. Raises BrokenError and what ``HopClient.replay`` raises."""
    hop, hidden_size = source.hop, source.hidden_size
    row = activations.payload_bytes(hop.reply_codec, 1, hidden_size)

    async def chunks() -> AsyncIterator[_Chunk]:
        at = start
        while at < until:
            result = await source.rows.get()
            if result is None:
                raise BrokenError
            _check_rows(hop, result, at, until, hidden_size)
            fed.node_bytes += len(result.payload)
            rows = memoryview(result.payload)
            size = max(1, target.hop.max_step_tokens)
            for first in range(0, result.tokens, size):
                tokens = min(size, result.tokens - first)
                yield rows[first * row : (first + tokens) * row], tokens, at + first
            at += result.tokens

    async def replay() -> None:
        await hop.replay(start, until, step, None)

    source.taking = True
    try:
        await all_of(replay(), _feed(target, chunks(), step, fed))
    finally:
        source.taking = False


def _check_rows(hop: HopClient, result: Result, at: int, until: int, hidden_size: int) -> None:
    try:
        if result.position != at or not 0 < result.tokens <= until - at:
            raise RemoteProtocolError(
                f"{hop.link.name}: replays {result.tokens} rows at {result.position}, not up to "
                f"{until - at} at {at}"
            )
        check_size(hop, result, hidden_size)
    except RemoteProtocolError as error:
        hop.end(error)
        raise BrokenError from error


async def _feed(port: Port, chunks: AsyncIterator[_Chunk], step: int, fed: Fed) -> None:
    feed = port.feeding()
    sent = asyncio.Semaphore(0)
    done = False

    async def send() -> None:
        nonlocal done
        number = step
        async for payload, tokens, position in chunks:
            await feed.room(len(payload))
            feed.post(number, payload, tokens, position, Want.NOTHING, hold=True)
            fed.by_client(tokens, len(payload))
            number += 1
            sent.release()
        done = True
        sent.release()

    async def take() -> None:
        while True:
            await sent.acquire()
            if done and not feed.awaited:
                return
            await feed.receive()

    try:
        await all_of(send(), take())
    finally:
        port.feed = None
