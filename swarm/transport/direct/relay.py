"""Dialling a peer through a relay: a stream to the relay that it joins to one to the peer (circuit relay v2).

What comes and goes on it is encrypted from end to end, as on a connection of its own. Specification:
https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ...errors import NetworkError, PeerUnreachableError, RemoteProtocolError, StreamClosedError
from ...identity import peer_id_bytes
from ...types import short_peer_id
from ..interface import Stream
from ..protocols.protobuf import fields_of
from .channel import Sink
from .stream import HIGH_WATER, DirectStream

HOP = "/libp2p/circuit/relay/0.2.0/hop"
MAX_MESSAGE = 4096

_CONNECT, _STATUS, _OK = 1, 2, 100
_REASONS = {
    200: "its limits are reached",
    201: "it does not allow it",
    202: "the peer does not take it",
    203: "the peer is not reachable through it",
    204: "the peer has no place there",
}
Run = Callable[[Coroutine[Any, Any, None]], object]


async def connect_through(stream: Stream, peer_id: str, run: Run) -> StreamChannel:
    """The way to ``peer_id`` at the end of a stream of HOP to a relay. ``run`` starts a task and owns it.

    Raises PeerUnreachableError if the relay refuses, RemoteProtocolError, or what the stream raises.
    """
    if not isinstance(stream, DirectStream):
        raise TypeError("a relayed connection is made on a stream of this transport")
    peer = peer_id_bytes(peer_id)
    message = bytes([0x08, _CONNECT, 0x12, len(peer) + 2, 0x0A, len(peer)]) + peer
    stream.write([bytes([len(message)]) + message])
    size = await _read_varint(stream)
    if size > MAX_MESSAGE:
        raise RemoteProtocolError(f"a relay's answer of {size} bytes")
    fields = dict(fields_of(await stream.read_exactly(size)))
    if fields.get(1) != _STATUS:
        raise RemoteProtocolError("a relay's answer without a status")
    if (status := fields.get(5)) != _OK:
        why = _REASONS.get(status, "no status") if isinstance(status, int) else "no status"
        raise PeerUnreachableError(
            f"relay {short_peer_id(stream.peer_id)} does not lead to peer {peer_id}: {why}",
            hint="The peer may have left, or lost its place at the relay and be getting another.",
        )
    return StreamChannel(stream, run)


class StreamChannel:
    """A stream in the place of a TcpChannel."""

    def __init__(self, stream: DirectStream, run: Run) -> None:
        self._stream = stream
        self._run = run
        self._sink: Sink | None = None
        self._draining = False

    @property
    def remote_maddr(self) -> str:
        return f"{self._stream.remote_maddr}/p2p/{self._stream.peer_id}/p2p-circuit"

    @property
    def full(self) -> bool:
        return self._stream.queued > HIGH_WATER

    @property
    def unsent(self) -> int:
        return self._stream.queued

    async def read_exactly(self, size: int) -> bytes:
        return await self._stream.read_exactly(size)

    def write(self, data: bytes) -> None:
        try:
            self._stream.write([data])
        except StreamClosedError:
            return  # the sink is told by the pump
        if self.full and not self._draining:
            self._draining = True
            self._run(self._drain())

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        self._run(self._pump(sink))

    def shut(self) -> None:
        self._stream.close()

    abort = shut

    async def _pump(self, sink: Sink) -> None:
        error: NetworkError = StreamClosedError("the relayed connection was closed")
        try:
            while data := await self._stream.read():
                sink.received(data)
        except NetworkError as caught:
            error = caught
        finally:
            self._stream.close()
            sink.ended(error)

    async def _drain(self) -> None:
        try:
            await self._stream.drain()
        except NetworkError:
            return
        finally:
            self._draining = False
        if self._sink is not None:
            self._sink.writable()


async def _read_varint(stream: DirectStream) -> int:
    value = 0
    for shift in (0, 7):
        byte = (await stream.read_exactly(1))[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise RemoteProtocolError("a relay's answer without end")
