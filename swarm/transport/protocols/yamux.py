"""Yamux: many streams over one connection, without doing any I/O. Bytes in, events out.

    offset  size  field
    0       1     version, 0
    1       1     type: 0 data, 1 window update, 2 ping, 3 go away
    2       2     flags: 1 SYN (opens), 2 ACK, 4 FIN (the sender writes no more), 8 RST
    4       4     stream, 0 for the connection; odd ids are of the side that dialled
    8       4     data: bytes that follow; window update: bytes more that may come; ping: any; go away: reason

A stream's receiver grants 256 KiB, and more as its reader takes what came. Specification:
https://github.com/hashicorp/yamux/blob/master/spec.md and https://github.com/libp2p/specs/tree/master/yamux

Whatever bytes a peer sends, ``receive`` gives events or raises RemoteProtocolError. What a peer can make us
keep is bounded: unread data by the windows granted, streams by ``max_inbound``, answers by MAX_ANSWERS. What
it makes us do for little is counted in ``toil``, for the connection to bound.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ...errors import LocalProtocolError, RemoteProtocolError
from ..interface import Buffer

INITIAL_WINDOW = 256 * 1024
"""Each side may send this many bytes on a new stream, by the specification."""
MAX_WINDOW = 1024 * 1024
"""A busy stream's peer may send this many bytes ahead of its reader: 50 ms at 20 MB/s."""
GROWN_TOTAL = 16 * 1024 * 1024
"""The windows of all streams together may grow by this many bytes beyond the initial ones."""
MAX_DATA = 64 * 1024 - 40
"""One data frame that we send has at most this many bytes: with its header it fits into one message of
Noise."""
MAX_ANSWERS = 1024
"""At most this many control frames wait to be sent. A peer that makes us queue more and reads none is cut
off."""
MAX_INBOUND = 128
"""A peer may have this many streams open towards us on one connection."""

SMALL = 64
"""A data frame of fewer bytes counts as toil, as frames without data do."""
OPENING = 20
"""A stream that the peer opens counts as so many frames: it costs a task."""
EARNED = 16 * 1024
"""A window update is no toil where this many bytes were sent for it."""

_HEADER = struct.Struct("!BBHII")
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8
_CREDIT_LIMIT = 2**31  # of what a peer lets us send on a stream; go-yamux grants 16 MiB at most


class _Type(IntEnum):
    DATA = 0
    WINDOW_UPDATE = 1
    PING = 2
    GO_AWAY = 3


_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = map(int, _Type)


@dataclass(frozen=True, slots=True)
class Incoming:
    """The peer has opened a stream."""

    stream: int


@dataclass(slots=True)  # not frozen: there is one for each message, and frozen ones are slow to make
class Data:
    """Bytes of a stream. Call ``release`` once they are read."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The peer writes no more; ``reset``: it does not read either."""

    stream: int
    reset: bool


@dataclass(frozen=True, slots=True)
class Pong:
    """The peer has answered ``ping``."""

    value: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The peer takes no new streams."""

    reason: int


Event = Incoming | Data | Ended | Pong | GoneAway


class _Stream:
    __slots__ = (
        "credit",
        "ended",
        "finished",
        "finishing",
        "granted",
        "queue",
        "queued",
        "ready",
        "released",
        "window",
    )

    def __init__(self) -> None:
        self.credit = INITIAL_WINDOW  # bytes that we may still send
        self.granted = INITIAL_WINDOW  # bytes that the peer may still send
        self.window = INITIAL_WINDOW  # bytes that we grant ahead of the reader
        self.released = 0  # bytes that were read and not granted again
        self.queue: deque[memoryview] = deque()
        self.queued = 0  # bytes in it
        self.finishing = False  # FIN follows the queue, and this side reads no more
        self.finished = False  # FIN is sent
        self.ended = False  # the peer has sent FIN
        self.ready = False  # it is among those that have something to send


class YamuxSession:
    """One side of a connection. ``initiator``: we dialled.

    ``next_output`` gives what is to be sent: ask until it is empty, after each other call.
    """

    def __init__(self, initiator: bool, *, max_inbound: int = MAX_INBOUND) -> None:
        self._next_id = 1 if initiator else 2
        self._max_inbound = max_inbound
        self._inbound = 0  # streams that the peer has opened
        self._streams: dict[int, _Stream] = {}
        self._ready: deque[int] = deque()  # streams that have something to send and credit for it
        self._answers: deque[bytes] = deque()  # control frames
        self._header = bytearray()
        self._missing = 0  # bytes of the current data frame that are still to come
        self._current = 0  # its stream
        self._after = 0  # flags that count once it is complete
        self._grown = 0
        self._lost = 0  # bytes that may still come on streams that were reset here
        self._pings = 0
        self._earned = 0  # bytes that were sent and not yet set against a window update
        self.going_away = False
        self.unsent = 0  # bytes that wait here, of all streams
        self.toil = 0  # frames that carried little or nothing, since the start

    def knows(self, stream: int) -> bool:
        """Whether at least one side has not ended the stream yet."""
        return stream in self._streams

    # What we do. Streams that are over are no error: the peer may have ended them a moment ago.

    def open(self) -> int:
        """A new stream. Raises LocalProtocolError where the peer takes none any more."""
        if self.going_away or self._next_id > 0xFFFFFFF0:
            raise LocalProtocolError("the connection takes no new streams")
        stream, self._next_id = self._next_id, self._next_id + 2
        self._streams[stream] = _Stream()
        self._answer(_WINDOW_UPDATE, _SYN, stream, 0)
        return stream

    @property
    def has_output(self) -> bool:
        """Whether ``next_output`` may have something."""
        return bool(self._answers or self._ready)

    def write_now(self, stream: int, buffers: Sequence[Buffer]) -> bytes:
        """The frame to send for them at once; b"" where they do not fit into one that may go before anything
        else: ``write`` them then."""
        state = self._streams.get(stream)
        size = sum(map(len, buffers))
        if (
            state is None
            or state.queue
            or not 0 < size <= min(state.credit, MAX_DATA)
            or state.finishing
            or self._ready
            or self._answers
        ):
            return b""
        state.credit -= size
        self._earned += size
        return b"".join((_HEADER.pack(0, _DATA, 0, stream, size), *buffers))

    def write(self, stream: int, buffers: Iterable[Buffer]) -> None:
        state = self._streams.get(stream)
        if state is None or state.finishing:
            return
        for buffer in buffers:
            if size := len(buffer):
                state.queue.append(memoryview(buffer))
                state.queued += size
                self.unsent += size
        self._make_ready(stream, state)

    def queued(self, stream: int) -> int:
        """Bytes that wait for room at the peer, or to be fetched by ``next_output``."""
        state = self._streams.get(stream)
        return 0 if state is None else state.queued

    def finish(self, stream: int) -> None:
        """Write no more and read no more. What was written is still sent."""
        state = self._streams.get(stream)
        if state is not None and not state.finishing:
            state.finishing = True
            self._make_ready(stream, state)

    def reset(self, stream: int) -> None:
        """End a stream at once; what is queued is dropped."""
        if (state := self._streams.get(stream)) is not None:
            self._lost += state.granted
            self._forget(stream)
            self._answer(_WINDOW_UPDATE, _RST, stream, 0)

    def release(self, stream: int, size: int) -> None:
        """``size`` bytes of the stream were read, so the peer may send as many more."""
        state = self._streams.get(stream)
        if state is None or state.ended or state.finishing:
            return
        state.released += size
        if state.released < state.window // 2:
            return
        more, state.released = state.released, 0
        if (growth := min(state.window, MAX_WINDOW - state.window)) and self._grown + growth <= GROWN_TOTAL:
            state.window += growth
            self._grown += growth
            more += growth
        state.granted += more
        self._answer(_WINDOW_UPDATE, 0, stream, more)

    def ping(self) -> int:
        """Ask whether the peer is there; Pong has the value returned."""
        self._pings += 1
        self._answer(_PING, _SYN, 0, self._pings)
        return self._pings

    def go_away(self) -> None:
        """Tell the peer that the connection ends here."""
        self._answer(_GO_AWAY, 0, 0, 0)

    def next_output(self, limit: int = MAX_DATA + _HEADER.size) -> bytes:
        """Up to ``limit`` bytes to send, whole frames; b"" if there is nothing to send now."""
        parts: list[Buffer] = []
        room = limit
        while self._answers and room >= _HEADER.size:
            parts.append(self._answers.popleft())
            room -= _HEADER.size
        while self._ready and room > _HEADER.size:
            stream = self._ready.popleft()
            state = self._streams.get(stream)
            if state is None:
                continue
            state.ready = False
            size = min(state.queued, state.credit, room - _HEADER.size, MAX_DATA)
            last = state.finishing and size == state.queued
            if size:
                parts.append(_HEADER.pack(0, _DATA, _FIN if last else 0, stream, size))
                _cut(state.queue, size, parts)
                state.queued -= size
                state.credit -= size
                self.unsent -= size
                self._earned += size
            elif last:
                parts.append(_HEADER.pack(0, _WINDOW_UPDATE, _FIN, stream, 0))
            room -= _HEADER.size + size
            if last:
                state.finished = True
                if state.ended:
                    self._forget(stream)
            else:
                self._make_ready(stream, state)
        return b"".join(parts)

    # What the peer does.

    def receive(self, data: bytes) -> list[Event]:
        """Take the next bytes. Raises RemoteProtocolError; the connection must end then."""
        events: list[Event] = []
        at, end = 0, len(data)
        while at < end:
            if self._missing:
                piece = data[at : at + self._missing]
                at += len(piece)
                self._missing -= len(piece)
                state = self._streams.get(self._current)
                if state is not None and not state.finishing:
                    events.append(Data(self._current, piece))
                if not self._missing:
                    self._end(self._current, self._after, events)
                continue
            if self._header or end - at < _HEADER.size:
                taken = _HEADER.size - len(self._header)
                self._header += data[at : at + taken]
                at += taken
                if len(self._header) < _HEADER.size:
                    break
                header = _HEADER.unpack(self._header)
                self._header.clear()
            else:
                header = _HEADER.unpack_from(data, at)
                at += _HEADER.size
            self._frame(events, *header)
            if len(self._answers) > MAX_ANSWERS:
                raise RemoteProtocolError(f"yamux: the peer reads none of {MAX_ANSWERS} answers")
        return events

    def _frame(
        self, events: list[Event], version: int, kind: int, flags: int, stream: int, length: int
    ) -> None:
        if version != 0 or kind > _GO_AWAY:
            raise RemoteProtocolError(f"yamux: version {version}, type {kind} is not a frame")
        if kind == _WINDOW_UPDATE and not flags and length and self._earned >= EARNED:
            self._earned -= EARNED
        elif kind != _DATA or length < SMALL:
            self.toil += 1
        if kind == _PING:
            if flags & _SYN:
                self._answer(_PING, _ACK, 0, length)
            elif flags & _ACK:
                events.append(Pong(length))
            return
        if kind == _GO_AWAY:
            self.going_away = True
            events.append(GoneAway(length))
            return
        if stream == 0:
            raise RemoteProtocolError("yamux: a frame without a stream")
        if flags & _SYN:
            self._open_inbound(stream, events)
        state = self._streams.get(stream)
        if kind == _DATA:
            self._missing, self._current = length, stream
            if state is None:
                # Of a stream that was reset here, which the peer need not know yet.
                if length > self._lost:
                    raise RemoteProtocolError(f"yamux: {length} bytes of an unknown stream {stream}")
                self._lost -= length
            elif state.ended or length > state.granted:
                raise RemoteProtocolError(
                    f"yamux: {length} bytes on stream {stream}, where {state.granted} may come"
                )
            else:
                state.granted -= length
        elif state is not None:
            state.credit += length
            if state.credit > _CREDIT_LIMIT:
                raise RemoteProtocolError(f"yamux: a window of {state.credit} bytes on stream {stream}")
            self._make_ready(stream, state)
        if self._missing:
            self._after = flags
        else:
            self._end(stream, flags, events)

    def _open_inbound(self, stream: int, events: list[Event]) -> None:
        self.toil += OPENING
        if stream % 2 == self._next_id % 2 or stream in self._streams:
            raise RemoteProtocolError(f"yamux: stream {stream} has a number that the peer may not open")
        if self._inbound >= self._max_inbound:
            self._lost += INITIAL_WINDOW
            self._answer(_WINDOW_UPDATE, _RST, stream, 0)
            return
        self._inbound += 1
        self._streams[stream] = _Stream()
        self._answer(_WINDOW_UPDATE, _ACK, stream, 0)
        events.append(Incoming(stream))

    def _end(self, stream: int, flags: int, events: list[Event]) -> None:
        """What FIN and RST say, at the end of the frame that has them."""
        state = self._streams.get(stream)
        if state is None or not flags & (_FIN | _RST):
            return
        events.append(Ended(stream, reset=bool(flags & _RST)))
        state.ended = True
        if flags & _RST or state.finished:
            self._forget(stream)

    def _make_ready(self, stream: int, state: _Stream) -> None:
        if not state.ready and (state.credit if state.queued else state.finishing and not state.finished):
            state.ready = True
            self._ready.append(stream)

    def _forget(self, stream: int) -> None:
        state = self._streams.pop(stream)
        self.unsent -= state.queued
        self._grown -= state.window - INITIAL_WINDOW
        if stream % 2 != self._next_id % 2:
            self._inbound -= 1

    def _answer(self, kind: int, flags: int, stream: int, value: int) -> None:
        self._answers.append(_HEADER.pack(0, kind, flags, stream, value))


def _cut(queue: deque[memoryview], size: int, parts: list[Buffer]) -> None:
    """Move ``size`` bytes from the queue to ``parts``."""
    while size:
        buffer = queue.popleft()
        if len(buffer) > size:
            queue.appendleft(buffer[size:])
            buffer = buffer[:size]
        parts.append(buffer)
        size -= len(buffer)
