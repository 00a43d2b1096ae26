"""A TCP connection and, over it, one encrypted by Noise: bytes as they come, first asked for, then pushed.

Handshakes ask for a number of bytes at a time; once they are over, what comes is handed to a sink in the same
turn of the event loop, so that a connection needs no task of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

from ...errors import NetworkError, RemoteProtocolError, StreamClosedError
from ..protocols.noise import Cipher

if TYPE_CHECKING:
    from collections.abc import Callable

HIGH_WATER = 256 * 1024
"""The writer pauses when this many bytes wait in a socket's buffer. Later bytes then stay sorted by
stream."""
MAX_UNASKED = 128 * 1024
"""A peer may send this many bytes before the handshake asks for them. After that its socket is not read."""


class Sink(Protocol):
    def received(self, data: bytes) -> None: ...

    def ended(self, error: NetworkError) -> None:
        """Nothing more comes, and nothing that is written arrives."""

    def writable(self) -> None:
        """The buffer has room again."""


class _Inbox:
    """Bytes that came: for a caller that asks for a number of them, or for the sink."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.error: NetworkError | None = None
        self._bytes = bytearray()
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._bytes)

    def put(self, data: bytes) -> None:
        if self.sink is not None:
            self.sink.received(data)
            return
        self._bytes += data
        if len(self._bytes) >= self._wanted:
            self._wake()

    def end(self, error: NetworkError) -> None:
        if self.error is None:
            self.error = error
            self._wake()
            if self.sink is not None:
                self.sink.ended(error)

    async def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises the error that ended the channel."""
        while len(self._bytes) < size:
            if self.error is not None:
                raise self.error
            self._wanted = size
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = bytes(self._bytes[:size])
        del self._bytes[:size]
        return data

    def attach(self, sink: Sink) -> None:
        self.sink = sink
        if self._bytes:
            data, self._bytes = bytes(self._bytes), bytearray()
            sink.received(data)
        if self.error is not None:
            sink.ended(self.error)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class TcpChannel(asyncio.Protocol):
    """One TCP connection. ``on_made`` is called once it stands."""

    def __init__(self, on_made: Callable[[TcpChannel], None] | None = None) -> None:
        self._on_made = on_made
        self._inbox = _Inbox()
        self._transport: asyncio.Transport | None = None
        self._unread = False
        self.full = False
        self.remote_host = ""
        self.remote_maddr = ""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        host, port = (transport.get_extra_info("peername") or ("", 0))[:2]
        self.remote_host = str(host)
        self.remote_maddr = f"/ip{6 if ':' in self.remote_host else 4}/{host}/tcp/{port}" if host else ""
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        if self._on_made is not None:
            self._on_made(self)

    def data_received(self, data: bytes) -> None:
        self._inbox.put(data)
        if self._inbox.sink is None and len(self._inbox) > MAX_UNASKED and self._transport is not None:
            self._unread = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False  # libp2p has no use for half of a connection

    def connection_lost(self, error: Exception | None) -> None:
        why = "the connection was closed" if error is None else f"the connection was lost: {error}"
        self._inbox.end(StreamClosedError(why))

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self._inbox.sink is not None:
            self._inbox.sink.writable()

    # For us.

    async def read_exactly(self, size: int) -> bytes:
        data = await self._inbox.take(size)
        if self._unread and self._transport is not None:
            self._unread = False
            self._transport.resume_reading()
        return data

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def attach(self, sink: Sink) -> None:
        if self._unread and self._transport is not None:
            self._unread = False
            self._transport.resume_reading()
        self._inbox.attach(sink)

    @property
    def unsent(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def shut(self) -> None:
        """Close once what was sent is out."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class RawChannel(Protocol):
    """A way to one peer, in the clear: a TcpChannel, or another that has what is used of it."""

    @property
    def remote_maddr(self) -> str:
        """The other end's address, or that of the relay before it; "" if unknown."""

    @property
    def full(self) -> bool:
        """Whether the writer should wait for the sink's ``writable``."""

    @property
    def unsent(self) -> int:
        """Bytes that the other side, or the network, has not taken yet."""

    def write(self, data: bytes) -> None: ...

    async def read_exactly(self, size: int) -> bytes: ...

    def attach(self, sink: Sink) -> None: ...

    def shut(self) -> None: ...

    def abort(self) -> None: ...


class NoiseChannel:
    """What Noise makes of a RawChannel after its handshake."""

    def __init__(self, tcp: RawChannel, send: Cipher, receive: Cipher) -> None:
        self._tcp = tcp
        self._encrypt = send.encrypt
        self._decrypt = receive.decrypt
        self._begun = bytearray()  # the beginning of a message whose rest has not come
        self._inbox = _Inbox()
        self._failed = False
        tcp.attach(self)

    @property
    def full(self) -> bool:
        """Whether the writer should wait for ``writable``."""
        return self._tcp.full

    @property
    def unsent(self) -> int:
        return self._tcp.unsent

    @property
    def remote_maddr(self) -> str:
        return self._tcp.remote_maddr

    def write(self, data: bytes) -> None:
        """At most 65519 bytes, one message of Noise: its length has 16 bits, its tag 16 bytes."""
        message = self._encrypt(data)
        self._tcp.write(len(message).to_bytes(2) + message)

    async def read_exactly(self, size: int) -> bytes:
        return await self._inbox.take(size)

    def attach(self, sink: Sink) -> None:
        self._inbox.attach(sink)

    def shut(self) -> None:
        self._tcp.shut()

    def abort(self) -> None:
        self._failed = True
        self._tcp.abort()

    # Sink of the TcpChannel.

    def received(self, data: bytes) -> None:
        """Most often this is one whole message, or a few. Only one that comes in parts is put together."""
        at, size = 0, len(data)
        if begun := self._begun:
            while len(begun) < 2 and at < size:
                begun.append(data[at])
                at += 1
            end = at + 2 + int.from_bytes(begun[:2]) - len(begun)
            begun += data[at:end]
            if len(begun) < 2 or size < end:
                return
            at, self._begun = end, bytearray()
            self._message(bytes(begun[2:]))
        while size - at >= 2:
            end = at + 2 + (data[at] << 8 | data[at + 1])
            if end > size:
                break
            self._message(data[at + 2 : end])
            at = end
        if at < size:
            self._begun += data[at:]

    def ended(self, error: NetworkError) -> None:
        self._inbox.end(error)

    def writable(self) -> None:
        if self._inbox.sink is not None:
            self._inbox.sink.writable()

    def _message(self, message: bytes) -> None:
        if self._failed:
            return
        try:
            self._inbox.put(self._decrypt(message))
        except RemoteProtocolError as error:
            self._fail(f"received {error.message}")
        if self._inbox.sink is None and len(self._inbox) > MAX_UNASKED:
            self._fail("the peer sends more than it was asked for")

    def _fail(self, why: str) -> None:
        self._inbox.end(StreamClosedError(why))
        self.abort()
