"""One connection to an authenticated peer, with its streams: yamux over Noise, in callbacks, not in tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from ...errors import LocalProtocolError, NetworkError, RemoteProtocolError, StreamClosedError
from ...fairness.buckets import Bucket
from ..interface import Buffer
from ..protocols.yamux import Data, Ended, GoneAway, Incoming, YamuxSession
from .channel import NoiseChannel
from .stream import DirectStream

logger = logging.getLogger(__name__)

LINGER_S = 5.0
"""Seconds that a peer has to take what was written to a stream that is closed here, and to close it too."""
KEEP_ALIVE_S = 15.0
"""Seconds of silence after which a connection is asked whether it lives."""
MUCH_UNREAD = 256 * 1024
"""When one connection holds more than this many unread bytes, those of all connections are counted."""
SILENT_S = 30.0
"""Seconds of silence after which a connection counts as dead: two questions were not answered. So does one
that takes nothing of what is sent for as long."""
MUCH_UNSENT = 8 * 1024 * 1024
"""When more than this many bytes wait to be sent on one connection, those of all connections are counted."""
TOIL_PER_S = 2000.0
"""A peer may make us do this much for little in a second: frames without data, or with almost none. An opened
stream counts as ``yamux.OPENING``. All of it takes about 0.5 % of a core."""
TOIL_AT_ONCE = 20_000.0
"""And this much after a rest. One that exceeds it is cut off."""
TINY = 32
"""A message of Noise that says fewer bytes counts as toil."""


class Owner(Protocol):
    def on_stream(self, stream: DirectStream) -> None:
        """The peer has opened a stream."""

    def on_end(self, connection: YamuxConnection) -> None:
        """The connection is over; called once."""


class Totals(Protocol):
    """What is counted over all connections."""

    def unread(self) -> None:
        """Much of what the peer sent was not read yet."""

    def unsent(self) -> None:
        """Much of what is to be sent was not taken yet."""

    def toil(self, amount: int) -> None:
        """The peer makes us do ``amount`` more for little."""


class YamuxConnection:
    """``initiator``: we dialled. Tells its owner what the peer does."""

    def __init__(
        self, channel: NoiseChannel, peer_id: str, *, initiator: bool, owner: Owner, totals: Totals
    ) -> None:
        self.peer_id = peer_id
        self.initiator = initiator
        self.ended_of: NetworkError | None = None
        self.unread = 0  # bytes that came and were not read
        self.draining: set[DirectStream] = set()  # streams whose writers wait for room
        self._channel = channel
        self._session = YamuxSession(initiator)
        self._streams: dict[int, DirectStream] = {}
        self._lingering: dict[int, asyncio.TimerHandle] = {}
        self._owner = owner
        self._totals = totals
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._toil = Bucket(TOIL_PER_S, TOIL_AT_ONCE, self._heard_at)
        self._unsent_before = 0  # when it was last looked
        self._stuck = 0  # looks since something was sent
        self.serving = 0  # streams of the peer whose handlers run
        self._timer = self._loop.call_later(KEEP_ALIVE_S, self._look)
        channel.attach(self)

    @property
    def remote_maddr(self) -> str:
        return self._channel.remote_maddr

    @property
    def usable(self) -> bool:
        """Whether new streams may be opened."""
        return self.ended_of is None and not self._session.going_away

    @property
    def in_use(self) -> bool:
        """Whether there are streams."""
        return bool(self._streams)

    @property
    def heard_at(self) -> float:
        """When (the loop's time) the peer's last bytes came."""
        return self._heard_at

    @property
    def unsent(self) -> int:
        """Bytes that wait to be sent, on all its streams."""
        return self._session.unsent

    @property
    def toil(self) -> float:
        """What it has made us do for little lately."""
        return self._toil.owed(self._loop.time())

    def open(self) -> DirectStream:
        """Raises StreamClosedError."""
        try:
            if self.ended_of is not None:
                raise self.ended_of
            stream = self._add(self._session.open())
        except LocalProtocolError as error:
            raise StreamClosedError(error.message) from None
        self._flush()
        return stream

    def close(self) -> None:
        """End the connection and all its streams; what was written is still sent, if the peer reads it."""
        for stream in list(self._streams.values()):
            stream.close()
        self._session.go_away()
        self._flush()
        self._over(StreamClosedError("the connection was closed on this side"))
        self._channel.shut()

    def abort(self, error: NetworkError) -> None:
        """End it at once."""
        self._over(error)
        self._channel.abort()

    # For the streams.

    def write(self, stream: DirectStream, buffers: Iterable[Buffer]) -> None:
        buffers = buffers if isinstance(buffers, list) else list(buffers)
        if not self._channel.full and (frame := self._session.write_now(stream.id, buffers)):
            self._channel.write(frame)
            return
        self._session.write(stream.id, buffers)
        self._flush()
        if self._session.unsent > MUCH_UNSENT:
            self._totals.unsent()

    def queued(self, stream: DirectStream) -> int:
        return self._session.queued(stream.id)

    def release(self, stream: DirectStream, size: int) -> None:
        self.unread -= size
        self._session.release(stream.id, size)
        if self._session.has_output:
            self._flush()

    def finish(self, stream: DirectStream, unread: int) -> None:
        """``unread``: bytes of it that will not be read any more."""
        self.unread -= unread
        if self._streams.pop(stream.id, None) is None or self.ended_of is not None:
            return
        self._session.finish(stream.id)
        self._flush()
        if self._session.knows(stream.id):
            self._lingering[stream.id] = self._loop.call_later(LINGER_S, self._cut, stream.id)

    # Sink of the channel.

    def received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        if self.ended_of is not None:
            return
        session = self._session
        toil_before = session.toil
        if len(data) < TINY:
            session.toil += 1
        try:
            for event in session.receive(data):
                if type(event) is Data:
                    if (stream := self._streams.get(event.stream)) is not None:
                        self.unread += len(event.data)
                        stream.deliver(event.data)
                    continue
                match event:
                    case Incoming(id):
                        if id in self._streams or id in self._lingering:
                            raise RemoteProtocolError(f"stream {id} was opened once before")
                        self._owner.on_stream(self._add(id))
                    case Ended(id, reset):
                        self._ended(id, reset)
                    case GoneAway():
                        logger.debug("peer %s takes no new streams", self.peer_id)
        except RemoteProtocolError as error:
            logger.info("peer %s breaks the protocol: %s", self.peer_id, error.message)
            self.abort(StreamClosedError(error.message))
            return
        if session.toil != toil_before and self.ended_of is None:
            self._count(session.toil - toil_before)
        if session.has_output:
            self._flush()
        if self.unread > MUCH_UNREAD:
            self._totals.unread()

    def ended(self, error: NetworkError) -> None:
        self._over(error)

    def writable(self) -> None:
        self._flush()

    def _add(self, id: int) -> DirectStream:
        stream = self._streams[id] = DirectStream(self, id)
        return stream

    def _ended(self, id: int, reset: bool) -> None:
        if (reset or not self._session.knows(id)) and (timer := self._lingering.pop(id, None)):
            timer.cancel()
        if (stream := self._streams.get(id)) is not None:
            stream.end(StreamClosedError("it was reset") if reset else None)

    def _flush(self) -> None:
        """Send what waits, as long as the socket takes it."""
        if self.ended_of is not None:
            return
        wrote = False
        while not self._channel.full and (data := self._session.next_output()):
            self._channel.write(data)
            wrote = True
        if wrote:
            for stream in list(self.draining):
                stream.wake()

    def _count(self, toil: int) -> None:
        if self._toil.take(toil, self._heard_at):
            logger.info("peer %s asks for too much", self.peer_id)
            self.abort(StreamClosedError("the peer sends too many frames that carry nothing"))
        else:
            self._totals.toil(toil)

    def _cut(self, id: int) -> None:
        del self._lingering[id]
        self._session.reset(id)
        self._flush()

    def _look(self) -> None:
        silent = self._loop.time() - self._heard_at
        if silent > SILENT_S:
            self.abort(StreamClosedError(f"the peer is silent for {silent:.0f} s"))
            return
        unsent = self._channel.unsent
        self._stuck = self._stuck + 1 if unsent and unsent == self._unsent_before else 0
        self._unsent_before = unsent
        if self._stuck * KEEP_ALIVE_S >= SILENT_S:
            self.abort(StreamClosedError("the peer takes nothing of what is sent to it"))
            return
        if silent > KEEP_ALIVE_S / 2:
            self._session.ping()
            self._flush()
        self._timer = self._loop.call_later(KEEP_ALIVE_S, self._look)

    def _over(self, error: NetworkError) -> None:
        if self.ended_of is not None:
            return
        self.ended_of = error
        self._timer.cancel()
        for timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.end(error)
        self._owner.on_end(self)
