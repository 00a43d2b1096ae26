"""Feeding a new hop what it lacks from here: embeddings of token ids, or rows that the hop before replays.

Its steps are held: the hop computes them and keeps the results in its journal, and sends them to no other
hop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from torch import Tensor

from ...swarm.codecs import activations
from ...swarm.errors import BrokenError, RemoteProtocolError
from ...swarm.protocol.messages import Result, Want
from ...swarm.protocol.wire import Payload
from ...swarm.runtime.tasks import all_of
from ..hops.hop import HopClient, StepTold
from ..hops.segment import Segment, check_size
from .repair_record import ReplayCost

HELD_STEP_TOKENS = 256
"""A held step has at most this many tokens: others' decode steps wait for one at most."""

_Chunk = tuple[Payload, int, int]  # payload, tokens, position


class HopListener:
    """Listens to a hop while its route is repaired; a ``hop.Listener``.

    Rows that the hop replays to us and its answers to held steps may come at the same time. ``alarm`` is set
    when the hop fails.
    """

    is_chain = False

    def __init__(self, hop: HopClient, alarm: asyncio.Event, hidden_size: int) -> None:
        self.hop = hop
        self.alarm = alarm
        self.hidden_size = hidden_size
        self.rows: asyncio.Queue[Result | None] = asyncio.Queue()  # None: no more will come
        self._takes_rows = False
        self._since = perf_counter()
        self._feed: Segment | None = None
        self._last_feed: Segment | None = None

    @property
    def waiting_since(self) -> float | None:
        return self._since

    @property
    def awaited_payload(self) -> tuple[Payload, int] | None:
        return self._last_feed.awaited_payload if self._last_feed is not None else None

    def question(self, hop: HopClient) -> StepTold | None:
        return self._feed.question(hop) if self._feed is not None else None

    @contextmanager
    def feeding(self) -> Iterator[Segment]:
        """Inside, the segment that is given takes held steps for the hop."""
        self._feed = self._last_feed = Segment([self.hop], self.hidden_size)
        self.hop.listen(self)
        try:
            yield self._feed
        finally:
            self._feed = None

    @contextmanager
    def taking_rows(self) -> Iterator[None]:
        """Inside, rows that the hop sends come into ``rows``."""
        self._takes_rows = True
        try:
            yield
        finally:
            self._takes_rows = False

    def take(self, hop: HopClient, result: Result) -> None:
        if result.tokens == 0 and self._feed is not None:
            self._feed.take(hop, result)
        elif self._takes_rows:
            self.rows.put_nowait(result)

    def mark_broken(self) -> None:
        if self._feed is not None:
            self._feed.mark_broken()
        if self.hop.failure is not None or self.hop.state.step_error is not None:
            self.rows.put_nowait(None)
            self.alarm.set()


async def feed_ids(
    listener: HopListener,
    start: int,
    until: int,
    step: int,
    embed: Callable[[int, int], Tensor],
    cost: ReplayCost,
) -> None:
    """Feed positions [start, until) from their token ids, with step numbers from ``step`` on. Raises
    BrokenError."""
    size = max(1, min(listener.hop.max_step_tokens, HELD_STEP_TOKENS))

    async def chunks() -> AsyncIterator[_Chunk]:
        for at in range(start, until, size):
            x = embed(at, min(until, at + size))  # (tokens, hidden)
            yield activations.encode(listener.hop.codec, x), len(x), at

    await _feed(listener, chunks(), step, cost)


async def relay_rows(
    source: HopListener, target: HopListener, start: int, until: int, step: int, cost: ReplayCost
) -> None:
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
            cost.by_nodes(0, len(result.payload))
            rows = memoryview(result.payload)
            size = max(1, target.hop.max_step_tokens)
            for first in range(0, result.tokens, size):
                tokens = min(size, result.tokens - first)
                yield rows[first * row : (first + tokens) * row], tokens, at + first
            at += result.tokens

    async def replay() -> None:
        await hop.replay(start, until, step, None)

    with source.taking_rows():
        await all_of(replay(), _feed(target, chunks(), step, cost))


def _check_rows(hop: HopClient, result: Result, at: int, until: int, hidden_size: int) -> None:
    try:
        if result.position != at or not 0 < result.tokens <= until - at:
            raise RemoteProtocolError(
                f"{hop.link.name}: replays {result.tokens} rows at {result.position}, not up to "
                f"{until - at} at {at}"
            )
        check_size(hop, result, hidden_size)
    except RemoteProtocolError as error:
        hop.mark_lost(error)
        raise BrokenError from error


async def _feed(listener: HopListener, chunks: AsyncIterator[_Chunk], step: int, cost: ReplayCost) -> None:
    sent = asyncio.Semaphore(0)
    done = False

    async def send() -> None:
        nonlocal done
        number = step
        async for payload, tokens, position in chunks:
            await feed.room(len(payload))
            feed.post(number, payload, tokens, position, Want.NOTHING, hold=True)
            cost.by_client(tokens, len(payload))
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

    with listener.feeding() as feed:
        await all_of(send(), take())
