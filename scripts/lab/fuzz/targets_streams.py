"""What carries streams from process to process: each protocol alone, and a whole peer that is dialled."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Coroutine
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from swarm_node.swarm.errors import StreamClosedError
from swarm_node.swarm.fairness.gate import GateLimits
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.direct import transport as direct
from swarm_node.swarm.transport.direct.addresses import parse_tcp_maddr
from swarm_node.swarm.transport.direct.channel import TcpChannel
from swarm_node.swarm.transport.direct.security import NOISE, Security
from swarm_node.swarm.transport.direct.transport import DirectTransport
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.protocols.multistream import answer, proposal, propose
from swarm_node.swarm.transport.protocols.noise import Cipher, XXHandshake
from swarm_node.swarm.transport.protocols.noise_payload import read_payload, write_payload
from swarm_node.swarm.transport.protocols.yamux import YamuxSession

from .mutation import havoc
from .target import Prepared, Target

ECHO = "/echo/1"
STATIC = bytes(range(32))
HONEST_EVERY = 50
"""Inputs between two looks whether an honest peer is served, and whether anything was left over."""


def _yamux() -> Target:
    def prepare() -> Prepared:
        there = YamuxSession(True)
        stream = there.open()
        there.write(stream, [b"hello" * 50])
        there.ping()
        begin = there.next_output()
        there.finish(stream)
        there.go_away()
        return Prepared([begin, begin + there.next_output(), havoc(Random(1), begin)], run)

    def run(data: bytes) -> str:
        session, cut = YamuxSession(False), YamuxSession(False)
        events = session.receive(data)
        for at in range(0, len(data), 7):
            cut.receive(data[at : at + 7])
        if session.toil != cut.toil:
            raise AssertionError("the same bytes in other pieces are other frames")
        out = 0
        while sent := session.next_output():
            out += len(sent)
        if out > 64 * (len(data) + 64):
            raise AssertionError(f"{len(data)} bytes are answered by {out}")
        return ",".join(sorted({type(event).__name__ for event in events}))

    return Target("yamux", prepare)


class _Said:
    """A channel on which the other side has said all it will say."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    async def read_exactly(self, size: int) -> bytes:
        if len(self._data) < size:
            raise StreamClosedError("it is over")
        data, self._data = self._data[:size], self._data[size:]
        return data


def _at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


def _multistream() -> Target:
    def prepare() -> Prepared:
        return Prepared([proposal(NOISE), proposal("/other/1") + proposal(NOISE)[20:]], run)

    def run(data: bytes) -> str:
        for side in (lambda said: propose(said, NOISE), lambda said: answer(said, NOISE.__eq__)):
            said = _Said(data)
            try:
                found = _at_once(side(said))
            finally:
                if said.written > 64 + 4 * len(data):
                    raise AssertionError(f"{len(data)} bytes are answered by {said.written}")
        return str(found)

    return Target("multistream", prepare)


def _noise() -> Target:
    """Message 1 and 3 of a handshake, and what follows them, with two bytes of length in front of each."""
    key, once = (X25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
    theirs, their_once = (X25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (3, 4))

    def prepare() -> Prepared:
        here = XXHandshake(theirs, initiator=True, ephemeral=their_once)
        there = XXHandshake(key, initiator=False, ephemeral=once)
        first = here.write_message()
        there.read_message(first)
        here.read_message(there.write_message())
        third = here.write_message(b"payload")
        said = [first, third, here.split()[0].encrypt(b"hello")]
        return Prepared([b"".join(len(each).to_bytes(2) + each for each in said)], run)

    def run(data: bytes) -> str:
        there = XXHandshake(key, initiator=False, ephemeral=once)
        receive: Cipher | None = None
        read = at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 2])
            message, at = data[at + 2 : at + 2 + size], at + 2 + size
            if receive is not None:
                receive.decrypt(message)
            else:
                there.read_message(message)
                if read == 0:
                    there.write_message()
                else:
                    receive = there.split()[1]
            read += 1
        return str(read)

    return Target("noise", prepare)


def _payload() -> Target:
    def prepare() -> Prepared:
        return Prepared([write_payload(Identity(bytes(32)), STATIC, ("/yamux/1.0.0", "/mplex/6.7.0"))], run)

    def run(data: bytes) -> str:
        return ",".join(read_payload(data, STATIC).muxers)[:40]

    return Target("noise-payload", prepare)


class _Peer:
    """A peer that echoes, one that uses it, and strangers. An input's first byte says how far they come."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.failures: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(str(context)))
        self.inputs = 0
        self.server: DirectTransport
        self.client: DirectTransport
        self.stream: Stream
        self.run(self._start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def _start(self) -> None:
        # Strangers come faster here than any may elsewhere.
        direct.HANDSHAKES = GateLimits(1e6, 1e6, 1e6, 1e6)
        self.server, self.client = (
            await DirectTransport.create(),
            await DirectTransport.create(client_mode=True),
        )

        async def echo(stream: Stream) -> None:
            while data := await stream.read():
                stream.write([data])
                await stream.drain()

        await self.server.serve(ECHO, echo)
        (maddr,) = await self.server.maddrs()
        self.where = parse_tcp_maddr(maddr.partition("/p2p/")[0])
        self.stream = await self.client.open_stream(self.server.peer_id, ECHO, [maddr])
        self.security = Security(Identity.generate())

    def take(self, data: bytes) -> str:
        found: str = self.run(self._take(data[:1], data[1:60_000]))
        self.inputs += 1
        if self.inputs % HONEST_EVERY == 0:
            self.run(self._look())
        return found

    async def _take(self, depth: bytes, said: bytes) -> str:
        tcp = TcpChannel()
        await self.loop.create_connection(lambda: tcp, *self.where)
        try:
            match depth:
                case b"\x00" | b"":
                    tcp.write(said)
                    await asyncio.sleep(0.001)
                    return "stranger"
                case b"\x01":
                    tcp.write(proposal(NOISE) + said)
                    await asyncio.sleep(0.001)
                    return "handshake"
            channel = await self.security.dialled(tcp, self.server.peer_id)
            if depth == b"\x02":
                channel.write(said)
            else:
                begin = proposal(ECHO)[: depth[0]]
                channel.write(_frame(1, 1, 1, 0) + _frame(0, 0, 1, len(begin + said)) + begin + said)
            await asyncio.sleep(0.001)
            return "peer"
        finally:
            tcp.abort()

    async def _look(self) -> None:
        async with asyncio.timeout(20):
            self.stream.write([b"honest"])
            if await self.stream.read() != b"honest":
                raise AssertionError("an honest peer is not served")
        server = self.server
        for _ in range(2000):  # what strangers have left goes by itself
            if len(server._all_connections()) == len(server._tasks) == 1 and not server._handshakes:
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("connections or tasks of strangers are left over")
        if self.failures:
            raise AssertionError(self.failures[0][:300])

    def close(self) -> None:
        self.run(self._look())
        self.run(self.client.close())
        self.run(self.server.close())
        self.loop.close()


def _frame(kind: int, flags: int, stream: int, length: int) -> bytes:
    return struct.pack("!BBHII", 0, kind, flags, stream, length)


def _direct() -> Target:
    def prepare() -> Prepared:
        peer = _Peer()
        there = YamuxSession(True)
        stream = there.open()
        there.write(stream, [proposal(ECHO), b"hello"])
        there.ping()
        frames = there.next_output()
        seeds = [b"\x00" + proposal(NOISE), b"\x01\x00\x20" + STATIC, b"\x02" + frames, b"\xffhello"]
        return Prepared(seeds, peer.take, peer.close)

    return Target("direct", prepare)


TARGETS = [_yamux(), _multistream(), _noise(), _payload(), _direct()]
