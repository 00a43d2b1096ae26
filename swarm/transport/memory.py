"""A network inside one process, for tests: latency, loss, partitions and sudden death, without sockets.

network = MemoryNetwork(latency=0.025)
alice, bob = network.transport("alice"), network.transport("bob")
network.partition("alice", "bob")  # silence, as from a frozen peer or a cut cable
network.heal()                     # what was held arrives now
network.kill("bob")                # as kill -9: streams end, dials are refused
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from ..errors import PeerTimeoutError, PeerUnreachableError, StreamClosedError
from .dial_errors import not_spoken
from .interface import DIAL_TIMEOUT, READ_SIZE, Buffer, StreamHandler

logger = logging.getLogger(__name__)

HIGH_WATER = 1024 * 1024
"""Bytes written and not yet read at which ``drain`` waits; p2pd's streams hold about as many."""
RETRANSMIT_S = 0.2
"""A lost write is late by this many seconds: the usual minimum retransmission time-out of TCP."""

Schedule = Callable[[float, Callable[[], object]], object]
"""Runs a function after some seconds; ``loop.call_later`` unless a test injects its own clock."""


class MemoryNetwork:
    """``latency``: seconds one way. ``loss``: probability that a write must be sent again.

    Each loss costs RETRANSMIT_S. Streams stay reliable and ordered, as libp2p's are: loss is felt as delay.
    """

    def __init__(
        self,
        latency: float = 0.0,
        *,
        loss: float = 0.0,
        rng: random.Random | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        if latency < 0 or not 0 <= loss < 1:
            raise ValueError("MemoryNetwork needs latency >= 0 and 0 <= loss < 1")
        self.latency = latency
        self.loss = loss
        self.hosts: dict[str, str] = {}
        """Multiaddresses from which peers are seen to come, by peer id, for tests in which that matters."""
        self._rng = rng or random.Random(0)
        self._schedule = schedule
        self._transports: dict[str, MemoryTransport] = {}
        self._cuts: set[frozenset[str]] = set()
        self._healed = asyncio.Event()

    def transport(self, peer_id: str) -> MemoryTransport:
        """The peer's transport; a new one if there was none, or if it was closed or killed."""
        if peer_id not in self._transports:
            self._transports[peer_id] = MemoryTransport(self, peer_id)
        return self._transports[peer_id]

    def kill(self, peer_id: str) -> None:
        """End a peer without notice: its handlers are cancelled, its streams end, dials to it are refused."""
        transport = self._transports.pop(peer_id, None)
        if transport is not None:
            transport._shut()

    def partition(self, a: str, b: str) -> None:
        """Hold everything between two peers, the ends of streams too, until ``heal``."""
        self._cuts.add(frozenset((a, b)))

    def heal(self) -> None:
        """End all partitions; what was held is delivered."""
        self._cuts.clear()
        self._healed.set()
        self._healed = asyncio.Event()
        for transport in list(self._transports.values()):
            for stream in list(transport._streams):
                stream._incoming.deliver()

    def is_cut(self, a: str, b: str) -> bool:
        return frozenset((a, b)) in self._cuts

    def _find(self, peer_id: str) -> MemoryTransport | None:
        return self._transports.get(peer_id)

    def _forget(self, transport: MemoryTransport) -> None:
        if self._transports.get(transport.peer_id) is transport:
            del self._transports[transport.peer_id]

    def _later(self, callback: Callable[[], object]) -> None:
        delay = self.latency
        while self.loss and self._rng.random() < self.loss:
            delay += RETRANSMIT_S
        if delay == 0:
            callback()
        elif self._schedule is not None:
            self._schedule(delay, callback)
        else:
            asyncio.get_running_loop().call_later(delay, callback)

    async def _reach(self, a: str, b: str) -> None:
        """Take a round trip's time between two peers; for ever while they are cut off."""
        for _ in range(2):
            arrived = asyncio.Event()
            self._later(arrived.set)
            await arrived.wait()
            while self.is_cut(a, b):
                await self._healed.wait()


class _Pipe:
    """One direction of a stream: an ordered queue of writes, then the end."""

    def __init__(self, network: MemoryNetwork, sender: str, receiver: str) -> None:
        self._network = network
        self._ends = (sender, receiver)
        self._flying: deque[_Write] = deque()
        self.arrived = bytearray()
        self.ended = False
        self.queued = 0  # bytes written and not yet read
        self.readable = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()

    def send(self, data: bytes | None) -> None:
        """Start a write on its way; None is the end of the stream."""
        write = _Write(data)
        self._flying.append(write)
        if data is not None:
            self.queued += len(data)
            if self.queued > HIGH_WATER:
                self.writable.clear()

        def land() -> None:
            write.landed = True
            self.deliver()

        self._network._later(land)

    def deliver(self) -> None:
        """Hand over what has landed, in the order it was written."""
        while self._flying and self._flying[0].landed and not self._network.is_cut(*self._ends):
            data = self._flying.popleft().data
            if data is None:
                self.ended = True
            else:
                self.arrived += data
            self.readable.set()

    def take(self, max_bytes: int) -> bytes:
        data = bytes(self.arrived[:max_bytes])
        del self.arrived[:max_bytes]
        self.queued -= len(data)
        if self.queued <= HIGH_WATER:
            self.writable.set()
        return data


class _Write:
    __slots__ = ("data", "landed")

    def __init__(self, data: bytes | None) -> None:
        self.data = data
        self.landed = False


class MemoryStream:
    """One side of a stream; a ``transport.Stream``."""

    def __init__(self, owner: MemoryTransport, peer_id: str, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._owner = owner
        self.peer_id = peer_id
        self._incoming = incoming
        self._outgoing = outgoing
        self._closed = False
        owner._streams.add(self)

    @property
    def remote_maddr(self) -> str:
        return self._owner._network.hosts.get(self.peer_id, "")

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        incoming = self._incoming
        while True:
            self._check_open()
            if incoming.arrived:
                return incoming.take(max_bytes)
            if incoming.ended:
                return b""
            incoming.readable.clear()
            await incoming.readable.wait()

    def write(self, buffers: Iterable[Buffer]) -> None:
        self._check_open()
        if not self._incoming.ended:  # else it is dropped, as by sockets: read and drain say so
            self._outgoing.send(b"".join(buffers))

    async def drain(self) -> None:
        self._check_open()
        while not self._incoming.ended and not self._outgoing.writable.is_set():
            await self._outgoing.writable.wait()
            self._check_open()
        if self._incoming.ended:
            raise StreamClosedError(f"peer {self.peer_id} closed the stream")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._owner._streams.discard(self)
            self._outgoing.send(None)
            self._incoming.readable.set()
            self._outgoing.writable.set()

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError(f"the stream to peer {self.peer_id} was closed on this side")


class MemoryTransport:
    """One peer of a MemoryNetwork; a ``transport.Transport``."""

    def __init__(self, network: MemoryNetwork, peer_id: str) -> None:
        self._network = network
        self.peer_id = peer_id
        self._handlers: dict[str, StreamHandler] = {}
        self._streams: set[MemoryStream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def maddrs(self) -> tuple[str, ...]:
        return (f"/memory/{self.peer_id}/p2p/{self.peer_id}",)

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        self._check_open()
        self._handlers[protocol_id] = handler

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = DIAL_TIMEOUT,
        *,
        lazy: bool = False,
    ) -> MemoryStream:
        self._check_open()
        if peer_id == self.peer_id:
            raise PeerUnreachableError(f"peer {peer_id} is this process itself")
        try:
            async with asyncio.timeout(timeout):
                await self._network._reach(self.peer_id, peer_id)
        except TimeoutError:
            raise PeerTimeoutError(f"peer {peer_id} did not answer within {timeout:g} s") from None
        self._check_open()
        remote = self._network._find(peer_id)
        if remote is None:
            raise PeerUnreachableError(f"cannot reach peer {peer_id}: nobody listens there")
        handler = remote._handlers.get(protocol_id)
        if handler is None:
            raise not_spoken(peer_id, protocol_id)
        there = _Pipe(self._network, self.peer_id, peer_id)
        back = _Pipe(self._network, peer_id, self.peer_id)
        remote._accept(MemoryStream(remote, self.peer_id, there, back), handler)
        return MemoryStream(self, peer_id, back, there)

    async def check(self, remote_maddr: str = "") -> None:
        self._check_open()

    async def close(self) -> None:
        self._shut()
        self._network._forget(self)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, stream: MemoryStream, handler: StreamHandler) -> None:
        task = asyncio.create_task(self._run(handler, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, handler: StreamHandler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except Exception:
            logger.exception("the handler of a stream from %s failed", stream.peer_id)
        finally:
            stream.close()

    def _shut(self) -> None:
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        for stream in list(self._streams):
            stream.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError("the transport is closed")
