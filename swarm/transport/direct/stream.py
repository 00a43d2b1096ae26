"""One stream of a yamux connection, as the rest of the project wants it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from ...errors import NetworkError, StreamClosedError
from ..interface import READ_SIZE, Buffer

HIGH_WATER = 256 * 1024
"""``drain`` waits while at least this many bytes are queued."""
JOINED = 16 * 1024
"""Pieces that wait are joined up to this many bytes: single bytes would take forty times their size."""


class Carrier(Protocol):
    """The connection that a stream is part of."""

    @property
    def peer_id(self) -> str: ...

    @property
    def remote_maddr(self) -> str: ...

    @property
    def draining(self) -> set[DirectStream]: ...

    serving: int
    """Streams of the peer whose handlers run."""

    def write(self, stream: DirectStream, buffers: Iterable[Buffer]) -> None: ...

    def queued(self, stream: DirectStream) -> int: ...

    def release(self, stream: DirectStream, size: int) -> None: ...

    def finish(self, stream: DirectStream, unread: int) -> None: ...


class DirectStream:
    """A ``transport.Stream``. What comes is kept here until it is read, within yamux's window."""

    __slots__ = (
        "__weakref__",
        "_arrived",
        "_changed",
        "_closed",
        "_ended",
        "_error",
        "_waiters",
        "agreement",
        "connection",
        "id",
    )

    def __init__(self, connection: Carrier, id: int) -> None:
        self.id = id
        self.connection = connection
        self._arrived: deque[bytes | bytearray] = deque()
        self._ended = False  # the peer writes no more
        self._closed = False  # here
        self._error: NetworkError | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.agreement: asyncio.Task[None] | None = None  # which reads what the peer says to the protocol

    @property
    def peer_id(self) -> str:
        return self.connection.peer_id

    @property
    def remote_maddr(self) -> str:
        return self.connection.remote_maddr

    @property
    def queued(self) -> int:
        """Bytes written that wait to be sent."""
        return self.connection.queued(self)

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        if self.agreement is not None:
            await asyncio.wait([self.agreement])
            if self.agreement.cancelled():
                raise self._closed_here()
            self.agreement.result()
            self.agreement = None
        return await self._read(max_bytes)

    async def _read(self, max_bytes: int) -> bytes:
        while True:
            if self._closed:
                raise self._closed_here()
            if self._arrived:
                data = self._take(max_bytes)
                self.connection.release(self, len(data))
                return data
            if self._ended:
                return b""
            await self._wait()

    async def read_exactly(self, size: int) -> bytes:
        """Exactly ``size`` bytes of what the peer says first, before ``read``. Raises as ``read``, and
        StreamClosedError if the peer ends the stream before."""
        data = b""
        while len(data) < size:
            more = await self._read(size - len(data))
            if not more:
                raise self._closed_there()
            data += more
        return data

    def write(self, buffers: Iterable[Buffer]) -> None:
        if self._closed:
            raise self._closed_here()
        if not self._ended:  # else ``read`` says so
            self.connection.write(self, buffers)

    async def drain(self) -> None:
        if self._closed:
            raise self._closed_here()
        connection = self.connection
        connection.draining.add(self)
        try:
            while connection.queued(self) > HIGH_WATER:
                if self._ended:
                    raise self._closed_there()
                await self._wait()
                if self._closed:
                    raise self._closed_here()
        finally:
            connection.draining.discard(self)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            unread = sum(map(len, self._arrived))
            self._arrived.clear()
            self.connection.finish(self, unread)
            self.wake()

    # The connection's side.

    def deliver(self, data: bytes) -> None:
        arrived = self._arrived
        if arrived and len(arrived[-1]) + len(data) <= JOINED:
            last = arrived[-1]
            if isinstance(last, bytes):
                last = arrived[-1] = bytearray(last)
            last += data
        else:
            arrived.append(data)
        if self._waiters:
            self.wake()

    def end(self, error: NetworkError | None = None) -> None:
        """Nothing more comes; ``error``: why, if the peer did not simply close."""
        self._ended = True
        self._error = self._error or error
        self.wake()

    def wake(self) -> None:
        """Something is to be read, or there may be room to write."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _take(self, max_bytes: int) -> bytes:
        data = self._arrived.popleft()
        if len(data) > max_bytes:
            self._arrived.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        return bytes(data)

    def _closed_here(self) -> StreamClosedError:
        return StreamClosedError(f"the stream to peer {self.peer_id} was closed on this side")

    def _closed_there(self) -> StreamClosedError:
        why = "" if self._error is None else f": {self._error.message}"
        return StreamClosedError(f"peer {self.peer_id} closed the stream{why}")
