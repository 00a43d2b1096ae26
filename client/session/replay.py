"""Feeding a new hop what it lacks from here: embeddings of token ids, or rows that the hop before replays.

Its steps are held: the hop computes them and keeps the results in its journal, and sends them to no other
hop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import numpy as np

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

    def __init__(self, hop: HopClient, alarm: asyncio.Event) -> None:
        self.hop = hop
        self.alarm = alarm
        self.rows: asyncio.Queue[Result | None] = asyncio.Queue()  # None: no more will come
        self._wanted = range(0)  # positions whose rows are still to come
        self._failed = False
        self._since = perf_counter()
        self._feed: Segment | None = None
        self._last_feed: Segment | None = None

    @property
    def waiting_since(self) -> float | None:
        return self._since

    @property
    def awaited_payloads(self) -> Sequence[tuple[Payload, int]]:
        return self._last_feed.awaited_payloads if self._last_feed is not None else ()

    def question(self, hop: HopClient) -> StepTold | None:
        return self._feed.question(hop) if self._feed is not None else None

    @contextmanager
    def feeding(self) -> Iterator[Segment]:
        """Inside, the segment that is given takes held steps for the hop."""
        self._feed = self._last_feed = Segment([self.hop])
        self.hop.listen(self)
        try:
            yield self._feed
        finally:
            self._feed = None

    @contextmanager
    def taking_rows(self, start: int, until: int) -> Iterator[None]:
        """Inside, the rows of positions [start, until) that the hop sends come into ``rows``: checked, in
        order, each once. What it sends beyond them is dropped."""
        self._wanted = range(start, until)
        try:
            yield
        finally:
            self._wanted = range(0)

    def take(self, hop: HopClient, result: Result) -> None:
        if result.tokens == 0 and self._feed is not None:
            self._feed.take(hop, result)
        elif self._wanted:
            try:
                self._check(result)
            except RemoteProtocolError as error:
                hop.mark_lost(error)
            else:
                self._wanted = self._wanted[result.tokens :]
                self.rows.put_nowait(result)

    def mark_broken(self) -> None:
        if self._feed is not None:
            self._feed.mark_broken()
        if self.hop.failure is not None or self.hop.state.step_error is not None:
            if not self._failed:
                self._failed = True
                self.rows.put_nowait(None)
            self.alarm.set()

    def _check(self, result: Result) -> None:
        """Raises RemoteProtocolError for rows that are not the next ones."""
        left, at = len(self._wanted), self._wanted.start
        if result.position != at or not 0 < result.tokens <= left:
            raise RemoteProtocolError(
                f"{self.hop.link.name}: replays {result.tokens} rows at {result.position}, not up to "
                f"{left} at {at}"
            )
        check_size(self.hop, result)


async def feed_ids(
    listener: HopListener,
    start: int,
    until: int,
    step: int,
    embed: Callable[[int, int], np.ndarray],
    cost: ReplayCost,
) -> None:
    """Feed positions [start, until) from their token ids, with step numbers from ``step`` on. Raises
    BrokenError."""
    size = max(1, min(listener.hop.max_step_tokens, HELD_STEP_TOKENS))

    async def chunks() -> AsyncIterator[_Chunk]:
        for at in range(start, until, size):
            x = embed(at, min(until, at + size))  # (tokens, hidden)
            yield listener.hop.codec.encode(x), len(x), at

    await _feed(listener, chunks(), step, cost)


async def relay_rows(
    source: HopListener, target: HopListener, start: int, until: int, step: int, cost: ReplayCost
) -> None:
    """Let ``source`` replay positions [start, until) to us, and pass them on to ``target``; from then on its
    results come to us. Raises BrokenError and what ``HopClient.replay`` raises."""
    hop = source.hop
    row = hop.reply_codec.row_bytes(hop.reply_width)

    async def chunks() -> AsyncIterator[_Chunk]:
        at = start
        while at < until:
            result = await source.rows.get()
            if result is None:
                raise BrokenError
            cost.by_nodes(0, len(result.payload))
            rows = memoryview(result.payload)
            size = max(1, target.hop.max_step_tokens)
            for first in range(0, result.tokens, size):
                tokens = min(size, result.tokens - first)
                yield rows[first * row : (first + tokens) * row], tokens, at + first
            at += result.tokens

    async def replay() -> None:
        await hop.replay(start, until, step, None)

    with source.taking_rows(start, until):
        await all_of(replay(), _feed(target, chunks(), step, cost))


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
