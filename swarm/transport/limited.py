"""A transport whose streams together take no more of the line than a person allows, up and down.

What is written waits here until it may go; what came is shown when it may have come, and its sender then
waits for room. All peers share the line fairly, whatever way their streams take and whatever they are for.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..errors import NetworkError, StreamClosedError
from ..fairness.pace import Pace
from ..fairness.shares import Holder
from ..figures import MAX_LINE_BYTES_PER_S
from .address_groups import address_group
from .interface import DIAL_TIMEOUT, READ_SIZE, Buffer, Stream, StreamHandler, Transport

BYTES_PER_MBIT = 125_000
HIGH_WATER = 64 * 1024
"""``drain`` waits while more bytes than this wait to go."""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What the streams of a process may take of its line, in bytes a second; ``math.inf``: no bound."""

    up: float = math.inf
    down: float = math.inf

    @property
    def narrowest(self) -> float:
        """The less of the two: what a request and its answer are held to."""
        return min(self.up, self.down)


def announced(bytes_per_s: float) -> int:
    """A bound as peers are told it: 0 for none."""
    return 0 if math.isinf(bytes_per_s) else min(round(bytes_per_s), MAX_LINE_BYTES_PER_S)


UNLIMITED = Bandwidth()


def limited(transport: Transport, bandwidth: Bandwidth) -> Transport:
    """The transport itself where there is no bound."""
    return transport if bandwidth == UNLIMITED else LimitedTransport(transport, bandwidth)


class LimitedTransport:
    """``transport``, within ``bandwidth``; implements Transport."""

    def __init__(self, transport: Transport, bandwidth: Bandwidth) -> None:
        self._transport = transport
        self._up = None if math.isinf(bandwidth.up) else Pace(bandwidth.up)
        self._down = None if math.isinf(bandwidth.down) else Pace(bandwidth.down)

    @property
    def peer_id(self) -> str:
        return self._transport.peer_id

    async def maddrs(self) -> tuple[str, ...]:
        return await self._transport.maddrs()

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        async def accept(stream: Stream) -> None:
            paced = LimitedStream(stream, self._up, self._down)
            try:
                await handler(paced)
                paced.close()
                await paced.gone()  # the stream below is closed when this returns
            finally:
                paced.close()

        await self._transport.serve(protocol_id, accept)

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = DIAL_TIMEOUT,
        *,
        lazy: bool = False,
    ) -> Stream:
        stream = await self._transport.open_stream(peer_id, protocol_id, maddrs, timeout, lazy=lazy)
        return LimitedStream(stream, self._up, self._down)

    async def check(self, remote_maddr: str = "") -> None:
        await self._transport.check(remote_maddr)

    async def close(self) -> None:
        for pace in (self._up, self._down):
            if pace is not None:
                pace.close()
        await self._transport.close()


class LimitedStream:
    """``inner``, of which ``up`` lets out what is written and ``down`` in what is read (None: no bound);
    implements Stream."""

    def __init__(self, inner: Stream, up: Pace | None, down: Pace | None) -> None:
        self.peer_id = inner.peer_id
        self._inner = inner
        holder = Holder(inner.peer_id, address_group(inner.remote_maddr))
        self._outgoing = None if up is None else _Outgoing(inner, up, holder)
        self._incoming = None if down is None else _Incoming(inner, down, holder)
        self._closed = False

    @property
    def remote_maddr(self) -> str:
        return self._inner.remote_maddr

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        self._check_open()
        try:
            data = await (self._incoming or self._inner).read(max_bytes)
        except NetworkError:
            self._drop()
            raise
        self._check_open()
        if not data:
            self._drop()
        return data

    def write(self, buffers: Iterable[Buffer]) -> None:
        self._check_open()
        (self._outgoing or self._inner).write(buffers)

    async def drain(self) -> None:
        if self._outgoing is not None:
            await self._outgoing.room.wait()
        self._check_open()
        await self._inner.drain()

    def close(self) -> None:
        """What was written before still goes."""
        if self._closed:
            return
        self._closed = True
        if self._incoming is not None:
            self._incoming.drop()
        if self._outgoing is None:
            self._inner.close()
        else:
            self._outgoing.finish(self._inner.close)

    async def gone(self) -> None:
        """Wait until all that was written before ``close`` is out."""
        if self._outgoing is not None:
            await self._outgoing.finished.wait()

    def _drop(self) -> None:
        """The peer takes nothing any more."""
        if self._outgoing is not None:
            self._outgoing.drop()

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError(f"the stream to peer {self.peer_id} was closed on this side")


class _Outgoing:
    """What was written and has not gone; a ``Paced``. ``room`` is set while that is little, and when nobody
    wants it any more; ``finished`` once everything has gone after ``finish``."""

    def __init__(self, inner: Stream, pace: Pace, holder: Holder) -> None:
        self.holder = holder
        self.waiting = 0
        self.room = asyncio.Event()
        self.room.set()
        self.finished = asyncio.Event()
        self._inner = inner
        self._pace = pace
        self._queue: deque[memoryview] = deque()
        self._on_finish: Callable[[], None] | None = None

    def write(self, buffers: Iterable[Buffer]) -> None:
        views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        self._queue.extend(views)
        self.waiting += sum(map(len, views))
        if self.waiting > HIGH_WATER:
            self.room.clear()
        if self.waiting:
            self._pace.enter(self)

    def go(self, most: int) -> None:
        self.waiting -= most
        parts: list[Buffer] = []
        while most:
            view = self._queue.popleft()
            if len(view) > most:
                self._queue.appendleft(view[most:])
                view = view[:most]
            parts.append(view)
            most -= len(view)
        try:
            self._inner.write(parts)
        except NetworkError:  # which ``read`` tells
            self.drop()
        self._look()

    def drop(self) -> None:
        """Nothing that waits has to go. Idempotent."""
        self._queue.clear()
        self.waiting = 0
        self._pace.leave(self)
        self._look()

    def finish(self, on_finish: Callable[[], None]) -> None:
        """Call it once nothing waits."""
        self._on_finish = on_finish
        self._look()

    def _look(self) -> None:
        ends = self._on_finish is not None
        if ends or self.waiting <= HIGH_WATER:
            self.room.set()
        if not self.waiting and (on_finish := self._on_finish) is not None:
            self._on_finish = None
            on_finish()
            self.finished.set()


class _Incoming:
    """What came and may not be shown yet; a ``Paced``."""

    def __init__(self, inner: Stream, pace: Pace, holder: Holder) -> None:
        self.holder = holder
        self.waiting = 0
        self._inner = inner
        self._pace = pace
        self._held = b""  # also where its reader was cancelled
        self._shown = asyncio.Event()

    async def read(self, max_bytes: int) -> bytes:
        if not self._held:
            self._held = await self._inner.read(min(max_bytes, self._pace.at_once))
            if self._held:
                self._shown.clear()
                self.waiting = len(self._held)
                self._pace.enter(self)
        if self.waiting:
            await self._shown.wait()
        data, self._held = self._held, b""
        return data

    def go(self, most: int) -> None:
        self.waiting -= most
        if not self.waiting:
            self._shown.set()

    def drop(self) -> None:
        """Nobody reads any more."""
        self._held = b""
        self.waiting = 0
        self._pace.leave(self)
        self._shown.set()
