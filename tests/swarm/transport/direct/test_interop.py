"""Direct streams with p2pd (go-libp2p) and with py-libp2p, each of them as client and as server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import closing
from typing import NamedTuple

import pytest
import pytest_asyncio

from scripts.lab.processes.worker import Worker
from swarm_node.swarm.errors import PeerUnreachableError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.messages import Step, Want
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.transport.direct.transport import DirectTransport
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from tests.doubles.direct_peers import STRICT, echo, gets_parting_errors, strict

pytestmark = [pytest.mark.swarm, pytest.mark.asyncio(loop_scope="module")]

ECHO, REPEAT, LATE = "/echo/1", "/repeat/1", "/late/1"
STRANGER = Identity(b"s" * 32).peer_id
Either = P2pdTransport | DirectTransport


class Pair(NamedTuple):
    client: Either
    server: Either
    where: tuple[str, ...]
    read_on: asyncio.Event


async def _serve(transport: Either, read_on: asyncio.Event) -> None:
    async def repeat(stream: Stream) -> None:
        connection = Connection(stream)
        await connection.send(await connection.receive())
        stream.write([stream.peer_id.encode()])
        await stream.drain()

    async def late(stream: Stream) -> None:
        await read_on.wait()
        while await stream.read():
            pass

    for protocol, handler in ((ECHO, echo), (REPEAT, repeat), (LATE, late), (STRICT, strict)):
        await transport.serve(protocol, handler)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def peers() -> AsyncIterator[tuple[DirectTransport, P2pdTransport, asyncio.Event]]:
    read_on = asyncio.Event()
    python, go = await DirectTransport.create(), await P2pdTransport.create()
    for transport in (python, go):
        await _serve(transport, read_on)
    yield python, go, read_on
    await python.close()
    await go.close()


@pytest_asyncio.fixture(params=["python dials p2pd", "p2pd dials python"], loop_scope="module")
async def pair(
    request: pytest.FixtureRequest, peers: tuple[DirectTransport, P2pdTransport, asyncio.Event]
) -> Pair:
    python, go, read_on = peers
    client, server = (python, go) if request.param.startswith("python") else (go, python)
    return Pair(client, server, await server.maddrs(), read_on)


async def test_whole_messages_and_proven_identities(pair: Pair) -> None:
    stream = await pair.client.open_stream(pair.server.peer_id, REPEAT, pair.where)
    assert stream.peer_id == pair.server.peer_id
    connection = Connection(stream)
    step = Step(bytes(16), 1, 0, 1, Want.ALL, payload=os.urandom(3_000_000))
    sending = asyncio.create_task(connection.send(step))
    assert await connection.receive() == step
    await sending
    rest = connection.unread()
    while len(rest) < len(pair.client.peer_id):
        rest += await stream.read()
    assert rest.decode() == pair.client.peer_id
    assert await stream.read() == b""  # the handler returned: the stream has ended
    stream.close()


async def test_many_streams_that_come_and_go(pair: Pair) -> None:
    async def use(index: int) -> None:
        stream = await pair.client.open_stream(pair.server.peer_id, ECHO, pair.where)
        sent = bytes([index]) * 20_000
        stream.write([sent])
        got = b""
        while len(got) < len(sent):
            got += await stream.read()
        assert got == sent
        stream.close()

    for _ in range(2):  # more than may be open at once
        await asyncio.gather(*(use(index) for index in range(70)))


async def test_a_writer_waits_for_a_reader_that_stopped(pair: Pair) -> None:
    pair.read_on.clear()
    stream = await pair.client.open_stream(pair.server.peer_id, LATE, pair.where)

    async def flood() -> None:
        for _ in range(6):
            stream.write([bytes(1 << 20)])
            await stream.drain()

    flooding = asyncio.create_task(flood())
    done, _ = await asyncio.wait([flooding], timeout=0.4)
    assert not done
    pair.read_on.set()
    await asyncio.wait_for(flooding, 10)
    stream.close()


async def test_a_parting_error_arrives_even_while_the_other_side_floods(pair: Pair) -> None:
    await gets_parting_errors(pair.client, pair.server)


async def test_a_protocol_of_which_nobody_knows(pair: Pair) -> None:
    with pytest.raises(PeerUnreachableError, match=f"does not speak {PROTOCOL_ID}"):
        await pair.client.open_stream(pair.server.peer_id, PROTOCOL_ID, pair.where)


async def _once_it_has_a_place(client: DirectTransport, peer_id: str, maddrs: tuple[str, ...]) -> Stream:
    async with asyncio.timeout(20):
        while True:
            try:
                return await client.open_stream(peer_id, REPEAT, maddrs)
            except PeerUnreachableError as error:
                if "no place there" not in error.message:
                    raise
            await asyncio.sleep(0.05)


async def test_a_peer_behind_a_relay_is_reached() -> None:
    """By way of p2pd's relay: encrypted between the two, whoever passes it on."""
    relay, client = (
        await P2pdTransport.create(is_relay=True),
        await DirectTransport.create(client_mode=True),
    )
    try:
        (where,) = await relay.maddrs()
        hidden = await P2pdTransport.create(client_mode=True, initial_peers=[where], relays=[where])
        try:
            await _serve(hidden, asyncio.Event())
            maddrs = await hidden.maddrs()
            assert all("/p2p-circuit/" in maddr for maddr in maddrs)
            stream = await _once_it_has_a_place(client, hidden.peer_id, maddrs)
            assert stream.peer_id == hidden.peer_id
            connection = Connection(stream)
            step = Step(bytes(16), 1, 0, 1, Want.ALL, payload=os.urandom(50_000))
            sending = asyncio.create_task(connection.send(step))
            assert await connection.receive() == step
            await sending
            with pytest.raises(PeerUnreachableError, match=r"does not lead to peer .* no place there"):
                await client.open_stream(STRANGER, ECHO, [f"{where}/p2p-circuit"])
        finally:
            await hidden.close()
    finally:
        await client.close()
        await relay.close()


async def test_py_libp2p_is_dialled() -> None:
    client = await DirectTransport.create(client_mode=True)
    with closing(Worker("tests.swarm.transport.direct.py_libp2p_peer:take_part", target="")) as peer:
        maddr = (await asyncio.to_thread(peer.wait_for, "listening"))["maddr"]
        peer_id = maddr.rpartition("/")[2]
        stream = await client.open_stream(peer_id, ECHO, [maddr])
        stream.write([b"hello"])
        assert await stream.read_exactly(5) == b"hello"
        assert stream.peer_id == peer_id
        await client.close()


async def test_py_libp2p_dials() -> None:
    server, seen = await DirectTransport.create(), []

    async def handler(stream: Stream) -> None:
        seen.append(stream.peer_id)
        await echo(stream)

    await server.serve(ECHO, handler)
    (maddr,) = await server.maddrs()
    with closing(Worker("tests.swarm.transport.direct.py_libp2p_peer:take_part", target=maddr)) as peer:
        peer_id, said = (await asyncio.to_thread(peer.result)).split()
    assert (said, seen) == ("hello", [peer_id])
    await server.close()
