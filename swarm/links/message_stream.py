"""Messages over a stream: the one place where frames meet I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Generic, TypeVar

from ..errors import LocalProtocolError, PeerTimeoutError, StreamClosedError
from ..fairness.unfinished import UnfinishedFrame
from ..protocol.messages import MESSAGES, Message
from ..protocol.schema import MessageSet
from ..protocol.wire import DEFAULT_MAX_FRAME, FrameParser, Payload, encode_frame
from ..runtime.tasks import look_at
from ..timeouts import LEAST_RATE_BYTES_PER_S
from ..transport.interface import Stream
from ..types import short_peer_id

PARTING_S = 1.0
"""Seconds that a peer has to read a parting ERROR before the stream is closed."""


M = TypeVar("M")


class MessageStream(Generic[M]):
    """Sends and receives whole messages of one protocol. Any number of tasks may send; one at a time may
    receive.

    ``max_frame`` bounds what we accept. ``peer_max_frame`` bounds what we send; set it to what the peer said
    in HELLO or WELCOME. ``bytes_sent`` and ``bytes_received`` count everything that went over the stream.
    ``heard_at`` is when (perf_counter) the peer's last bytes came, or the connection was made. ``unfinished``
    is told how much of a frame waits here for the rest of it.
    """

    def __init__(self, stream: Stream, messages: MessageSet, max_frame: int = DEFAULT_MAX_FRAME) -> None:
        self.stream = stream
        self._messages = messages
        self.peer_max_frame = DEFAULT_MAX_FRAME
        self.bytes_sent = 0
        self.bytes_received = 0
        self.heard_at = perf_counter()
        self.unfinished: UnfinishedFrame | None = None
        self._parser = FrameParser(max_frame)
        self._sending = asyncio.Lock()

    @property
    def peer_id(self) -> str:
        return self.stream.peer_id

    @property
    def remote_maddr(self) -> str:
        return self.stream.remote_maddr

    @property
    def max_frame(self) -> int:
        """Bytes of a frame that we accept. A change is for the frames after the one received last."""
        return self._parser.max_frame

    @max_frame.setter
    def max_frame(self, size: int) -> None:
        self._parser.max_frame = size

    async def send(self, message: M) -> None:
        """Queue the whole message, then wait until the stream has room again.

        A sender that is cancelled while it waits has still sent the whole frame or none of it.
        Raises StreamClosedError, or LocalProtocolError for a message that must not be sent.
        """
        buffers = encode_frame(self._messages.encode(message))
        size = sum(map(len, buffers))
        if size > self.peer_max_frame:
            name, limit = type(message).__name__, self.peer_max_frame
            raise LocalProtocolError(f"{name} needs a frame of {size} bytes, but the peer accepts {limit}")
        # The lock keeps at most one frame queued beyond the stream's own limit, however many tasks send.
        async with self._sending:
            self.write(buffers)
            await self.stream.drain()

    def write(self, frames: Sequence[Payload]) -> int:
        """Queue whole frames without waiting; how many bytes they have. Raises StreamClosedError."""
        size = sum(map(len, frames))
        self.stream.write(frames)
        self.bytes_sent += size
        return size

    async def receive(self) -> M:
        """The next message.

        Raises StreamClosedError when the peer ends the stream between frames or it breaks on our side, and
        RemoteProtocolError for bytes or fields that break the protocol and for an end in mid-frame. After a
        RemoteProtocolError with code UNKNOWN_KIND one may go on receiving.
        """
        parser, unfinished = self._parser, self.unfinished
        while (frame := parser.next_frame()) is None:
            if unfinished is not None:
                unfinished.holds(parser.held)
            data = await self.stream.read()
            if not data:
                parser.end()
                raise StreamClosedError(f"peer {self.peer_id} closed the stream")
            self.bytes_received += len(data)
            self.heard_at = perf_counter()
            parser.receive(data)
        if unfinished is not None and unfinished.held:
            unfinished.holds(0)
        message: M = self._messages.decode(frame)
        return message

    async def receive_within(self, seconds: float) -> M:
        """As ``receive``, from a peer that owes an answer. Raises PeerTimeoutError if it sends nothing within
        ``seconds``, or less than LEAST_RATE_BYTES_PER_S."""
        receiving = asyncio.ensure_future(self.receive())
        receiving.add_done_callback(look_at)  # it may fail in the turn in which the caller is cancelled
        try:
            while True:
                received = self.bytes_received
                done, _ = await asyncio.wait([receiving], timeout=seconds)
                if done:
                    return receiving.result()
                if self.bytes_received - received < LEAST_RATE_BYTES_PER_S * seconds:
                    raise PeerTimeoutError(f"peer {short_peer_id(self.peer_id)} was silent for {seconds:g} s")
        finally:
            if not receiving.done():
                receiving.cancel()
                await asyncio.wait([receiving])

    def unread(self) -> bytes:
        """Take back what came behind the last message that was received."""
        return self._parser.unread()

    async def close_with(self, message: M) -> None:
        """Tell the peer why, then close.

        libp2p drops what is under way when a stream is closed with input unread, so the peer gets a moment to
        read the message and to close first; what it still sends is discarded.
        """
        try:
            async with asyncio.timeout(PARTING_S):
                await self.send(message)
                while await self.stream.read():
                    pass
        except (TimeoutError, StreamClosedError):
            pass  # it does not listen, or is gone
        finally:
            self.close()

    def close(self) -> None:
        """End the stream for both sides. Idempotent."""
        if self.unfinished is not None:
            self.unfinished.holds(0)
        self._parser.discard()
        self.stream.close()


class Connection(MessageStream[Message]):
    """A MessageStream of what clients and nodes say to each other."""

    def __init__(self, stream: Stream, max_frame: int = DEFAULT_MAX_FRAME) -> None:
        super().__init__(stream, MESSAGES, max_frame)
