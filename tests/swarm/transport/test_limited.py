"""Streams within a bound, over the network in memory."""

from __future__ import annotations

import asyncio
import math
from time import perf_counter

import pytest

from swarm_node.swarm.errors import StreamClosedError
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.limited import HIGH_WATER, UNLIMITED, Bandwidth, LimitedTransport, limited
from swarm_node.swarm.transport.memory import MemoryNetwork

RATE = 1_000_000.0
PROTOCOL = "/test/1"


async def read_all(stream: Stream) -> bytes:
    data = b""
    while more := await stream.read():
        data += more
    return data


class Echo:
    """Peer "bob", who takes all that comes on each stream and says it back at its end of ``size`` bytes."""

    def __init__(self, network: MemoryNetwork, bandwidth: Bandwidth = UNLIMITED) -> None:
        self.transport = limited(network.transport("bob"), bandwidth)

    async def serve(self, size: int) -> None:
        async def handler(stream: Stream) -> None:
            data = b""
            while len(data) < size:
                data += await stream.read()
            stream.write([data])

        await self.transport.serve(PROTOCOL, handler)


async def seconds_of_echo(up_down: Bandwidth, theirs: Bandwidth, data: bytes) -> float:
    network = MemoryNetwork()
    bob = Echo(network, theirs)
    await bob.serve(len(data))
    alice = limited(network.transport("alice"), up_down)
    began = perf_counter()
    stream = await alice.open_stream("bob", PROTOCOL)
    half = len(data) // 2
    stream.write([data[:7], bytearray(data[7:half])])
    await stream.drain()
    stream.write([memoryview(data)[half:]])
    assert await read_all(stream) == data
    took = perf_counter() - began
    await alice.close()
    await bob.transport.close()
    return took


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Bandwidth(up=RATE), UNLIMITED),
        (Bandwidth(down=RATE), UNLIMITED),
        (UNLIMITED, Bandwidth(up=RATE)),
        (UNLIMITED, Bandwidth(down=RATE)),
    ],
)
async def test_every_byte_arrives_in_order_and_not_too_soon(ours: Bandwidth, theirs: Bandwidth) -> None:
    data = bytes(range(256)) * 2000
    took = await seconds_of_echo(ours, theirs, data)
    assert took >= (len(data) - RATE / 10) / RATE * 0.99


async def test_without_a_bound_there_is_nothing_between() -> None:
    transport = MemoryNetwork().transport("alice")
    assert limited(transport, Bandwidth()) is transport
    assert Bandwidth(up=5.0).narrowest == 5.0
    assert math.isinf(UNLIMITED.narrowest)


async def test_drain_waits_for_the_bound_and_close_for_what_was_written() -> None:
    network = MemoryNetwork()
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def handler(stream: Stream) -> None:
        got.set_result(await read_all(stream))

    await network.transport("bob").serve(PROTOCOL, handler)
    alice = LimitedTransport(network.transport("alice"), Bandwidth(up=RATE))
    stream = await alice.open_stream("bob", PROTOCOL)
    stream.write([b"x" * 200_000])
    draining = asyncio.ensure_future(stream.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    await draining
    stream.write([b"y" * HIGH_WATER])
    stream.close()
    stream.close()
    for use in (stream.read(), stream.drain()):
        with pytest.raises(StreamClosedError, match="on this side"):
            await use
    with pytest.raises(StreamClosedError, match="on this side"):
        stream.write([b"late"])
    assert await got == b"x" * 200_000 + b"y" * HIGH_WATER
    await alice.close()


async def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    network = MemoryNetwork()
    data = bytes(range(256)) * 1000

    async def handler(stream: Stream) -> None:
        stream.write([data])

    await network.transport("bob").serve(PROTOCOL, handler)
    alice = LimitedTransport(network.transport("alice"), Bandwidth(down=RATE))
    stream = await alice.open_stream("bob", PROTOCOL)
    got = b""
    while len(got) < len(data):
        reading = asyncio.ensure_future(stream.read())
        await asyncio.wait([reading], timeout=0.001)
        if reading.done():
            got += reading.result()
        reading.cancel()
        await asyncio.wait([reading])
    assert got == data
    await alice.close()


async def test_a_peer_that_is_gone_costs_the_others_nothing() -> None:
    network = MemoryNetwork()

    async def handler(stream: Stream) -> None:
        await read_all(stream)

    for name in ("bob", "carol"):
        await network.transport(name).serve(PROTOCOL, handler)
    alice = LimitedTransport(network.transport("alice"), Bandwidth(up=RATE))
    dead, alive = [await alice.open_stream(name, PROTOCOL) for name in ("bob", "carol")]
    dead.write([bytes(60_000_000)])
    draining = asyncio.ensure_future(dead.drain())
    network.kill("bob")
    assert await dead.read() == b""
    await asyncio.wait([draining])
    assert draining.exception() is not None
    dead.close()
    began = perf_counter()
    alive.write([bytes(HIGH_WATER + 50_000)])
    await alive.drain()
    assert perf_counter() - began < 5.0
    alive.close()
    await alice.close()
