from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import pytest

from swarm_node.swarm.errors import PeerTimeoutError, PeerUnreachableError, StreamClosedError
from swarm_node.swarm.transport.interface import Stream, Transport
from swarm_node.swarm.transport.memory import HIGH_WATER, RETRANSMIT_S, MemoryNetwork, MemoryTransport
from tests.doubles.direct_peers import echo

ECHO = "/echo/1"


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class ManualTime:
    """Runs what was scheduled, in order of time, when told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], object]]] = []
        self.count = 0

    def schedule(self, delay: float, callback: Callable[[], object]) -> None:
        self.count += 1
        self.queue.append((self.now + delay, self.count, callback))

    async def advance(self, seconds: float) -> None:
        end = self.now + seconds
        await settle()
        while self.queue and min(self.queue)[0] <= end:
            entry = min(self.queue)
            self.queue.remove(entry)
            self.now = entry[0]
            entry[2]()
            await settle()
        self.now = end


async def linked(network: MemoryNetwork) -> Stream:
    await network.transport("b").serve(ECHO, echo)
    return await network.transport("a").open_stream("b", ECHO)


async def test_a_stream_tells_where_its_peer_is_where_a_test_says_so() -> None:
    network = MemoryNetwork()
    network.hosts["b"] = "/ip4/8.8.4.4/tcp/1"
    stream = await linked(network)
    assert stream.remote_maddr == "/ip4/8.8.4.4/tcp/1"


async def test_bytes_come_back_in_order() -> None:
    stream = await linked(MemoryNetwork())
    stream.write([b"one ", memoryview(b"two "), bytearray(b"three")])
    assert stream.peer_id == "b"
    assert await stream.read() == b"one two three"
    stream.write([b"abcdef"])
    assert [await stream.read(4), await stream.read(4)] == [b"abcd", b"ef"]


async def test_it_is_a_transport() -> None:
    transport: Transport = MemoryNetwork().transport("a")
    assert isinstance(transport, MemoryTransport)
    assert await transport.maddrs() == ("/memory/a/p2p/a",)


async def test_latency_is_one_way_and_dialling_costs_a_round_trip() -> None:
    time = ManualTime()
    network = MemoryNetwork(latency=0.05, schedule=time.schedule)
    await network.transport("b").serve(ECHO, echo)
    dial = asyncio.create_task(network.transport("a").open_stream("b", ECHO))
    await time.advance(0.09)
    assert not dial.done()
    await time.advance(0.02)
    stream = dial.result()
    stream.write([b"ping"])
    answer = asyncio.create_task(stream.read())
    await time.advance(0.09)
    assert not answer.done()
    await time.advance(0.02)
    assert answer.result() == b"ping"


async def test_loss_delays_but_keeps_the_order() -> None:
    time = ManualTime()
    network = MemoryNetwork(latency=0.01, loss=0.5, rng=random.Random(3), schedule=time.schedule)
    await network.transport("b").serve(ECHO, echo)
    dial = asyncio.create_task(network.transport("a").open_stream("b", ECHO))
    await time.advance(20 * RETRANSMIT_S)
    stream = dial.result()
    for number in range(50):
        stream.write([b"%02d" % number])
    await time.advance(100 * RETRANSMIT_S)
    assert await stream.read() == b"".join(b"%02d" % number for number in range(50))
    assert time.queue == []


async def test_a_partition_is_silence_until_it_heals() -> None:
    network = MemoryNetwork()
    stream = await linked(network)
    network.partition("a", "b")
    stream.write([b"held"])
    answer = asyncio.create_task(stream.read())
    dial = asyncio.create_task(network.transport("a").open_stream("b", ECHO))
    await settle()
    assert not answer.done()
    assert not dial.done()
    with pytest.raises(PeerTimeoutError, match="peer b did not answer within"):
        await network.transport("a").open_stream("b", ECHO, timeout=0.001)
    network.heal()
    assert await answer == b"held"
    (await dial).close()


async def test_a_killed_peer_ends_streams_and_refuses_dials() -> None:
    network = MemoryNetwork()
    cancelled = asyncio.Event()

    async def forever(stream: Stream) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    await network.transport("b").serve(ECHO, forever)
    killed = network.transport("b")
    stream = await network.transport("a").open_stream("b", ECHO)
    await settle()
    network.kill("b")
    assert await stream.read() == b""
    await settle()
    assert cancelled.is_set()
    stream.write([b"too late"])  # dropped, as by a socket
    with pytest.raises(StreamClosedError):
        await stream.drain()
    assert await stream.read() == b""
    with pytest.raises(PeerUnreachableError, match="nobody listens"):
        await network.transport("a").open_stream("b", ECHO)
    with pytest.raises(StreamClosedError):
        await killed.serve(ECHO, echo)
    await network.transport("b").serve(ECHO, echo)  # started again
    (await network.transport("a").open_stream("b", ECHO)).close()


async def test_dials_that_cannot_work_say_why() -> None:
    network = MemoryNetwork()
    a = network.transport("a")
    await network.transport("b").serve(ECHO, echo)
    with pytest.raises(PeerUnreachableError, match="is this process itself"):
        await a.open_stream("a", ECHO)
    with pytest.raises(PeerUnreachableError, match="does not speak /other"):
        await a.open_stream("b", "/other")
    with pytest.raises(PeerUnreachableError, match="cannot reach peer c"):
        await a.open_stream("c", ECHO)


async def test_a_reader_that_stops_blocks_the_writer() -> None:
    network = MemoryNetwork()
    reading = asyncio.Event()

    async def late_reader(stream: Stream) -> None:
        await reading.wait()
        await echo(stream)

    await network.transport("b").serve(ECHO, late_reader)
    stream = await network.transport("a").open_stream("b", ECHO)
    stream.write([bytes(HIGH_WATER)])
    await stream.drain()
    stream.write([b"x"])
    drain = asyncio.create_task(stream.drain())
    await settle()
    assert not drain.done()
    reading.set()
    await drain


async def test_closing_ends_both_sides() -> None:
    network = MemoryNetwork()
    stream = await linked(network)
    waiting = asyncio.create_task(stream.read())
    await settle()
    stream.close()
    stream.close()
    with pytest.raises(StreamClosedError, match="closed on this side"):
        await waiting
    with pytest.raises(StreamClosedError):
        stream.write([b"x"])
    await network.transport("b").close()
    await network.transport("a").close()
    assert await linked(network)


async def test_a_failing_handler_ends_its_stream_only(caplog: pytest.LogCaptureFixture) -> None:
    network = MemoryNetwork()

    async def fails(stream: Stream) -> None:
        raise RuntimeError("handler bug")

    await network.transport("b").serve("/fails", fails)
    good = await linked(network)
    with caplog.at_level(logging.ERROR):
        bad = await network.transport("a").open_stream("b", "/fails")
        assert await bad.read() == b""
    assert "handler bug" in caplog.text
    good.write([b"still here"])
    assert await good.read() == b"still here"
