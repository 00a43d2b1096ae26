"""The transport without a daemon: with its like on 127.0.0.1, and with strangers who break the rules."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import re
import socket
from typing import Any

import pytest

from swarm_node.swarm.errors import (
    ListenError,
    NetworkError,
    PeerTimeoutError,
    PeerUnreachableError,
    StreamClosedError,
    UsageError,
)
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.messages import Step, Want
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.transport.direct import connection as connection_module
from swarm_node.swarm.transport.direct.addresses import parse_tcp_maddr
from swarm_node.swarm.transport.direct.channel import TcpChannel
from swarm_node.swarm.transport.direct.security import dial_problem
from swarm_node.swarm.transport.direct.transport import DirectTransport
from swarm_node.swarm.transport.interface import Stream, Transport
from swarm_node.swarm.transport.protocols.yamux import INITIAL_WINDOW
from tests.doubles.direct_peers import (
    ECHO,
    STRANGER,
    STRICT,
    StartDirect,
    echo,
    gets_parting_errors,
    linked,
    strict,
)
from tests.doubles.fake_swarm import until


async def test_streams_both_ways_with_proven_identities(start_direct: StartDirect) -> None:
    identity = Identity.generate()
    server: Transport = await start_direct(identity)
    client = await start_direct(client_mode=True)
    seen: list[str] = []

    async def handler(stream: Stream) -> None:
        seen.append(stream.peer_id)
        await echo(stream)

    await server.serve(ECHO, handler)
    await client.serve(ECHO, handler)
    (maddr,) = await server.maddrs()
    assert maddr.startswith("/ip4/127.0.0.1/tcp/")
    assert maddr.endswith(f"/p2p/{identity.peer_id}")
    assert await client.maddrs() == ()
    there = await client.open_stream(server.peer_id, ECHO, [maddr])
    back = await server.open_stream(client.peer_id, ECHO)  # a client that does not listen can be called back
    for stream in (there, back):
        stream.write([b"hello ", memoryview(b"there"), bytearray(b"!")])
        await stream.drain()
        assert await stream.read() == b"hello there!"
    assert (there.peer_id, back.peer_id) == (server.peer_id, client.peer_id)
    assert maddr.startswith(there.remote_maddr)
    assert re.fullmatch(r"/ip4/127\.0\.0\.1/tcp/[1-9]\d*", back.remote_maddr)
    assert set(seen) == {client.peer_id, server.peer_id}
    await server.check()


async def test_large_messages_and_addresses_that_strangers_garbled(start_direct: StartDirect) -> None:
    server, client = await start_direct(), await start_direct(client_mode=True)

    async def handler(stream: Stream) -> None:
        connection = Connection(stream)
        await connection.send(await connection.receive())

    await server.serve(PROTOCOL_ID, handler)
    garbled = (
        "/ip4/300.1.1.1/tcp/1",
        "no address",
        "/ip4/127.0.0.1/tcp/1",
        f"/ip4/1.1.1.1/tcp/1/p2p/{STRANGER}",
    )
    stream = await client.open_stream(server.peer_id, PROTOCOL_ID, (*garbled, *await server.maddrs()))
    connection = Connection(stream)
    step = Step(bytes(16), 1, 0, 1, Want.ALL, payload=os.urandom(6_000_000))
    sending = asyncio.create_task(connection.send(step))
    assert await connection.receive() == step
    await sending


async def test_a_hundred_streams_share_a_connection(start_direct: StartDirect) -> None:
    server, client, _ = await linked(start_direct)

    async def use(index: int) -> None:
        stream = await client.open_stream(server.peer_id, ECHO)
        sent = bytes([index]) * 30_000
        stream.write([sent])
        got = b""
        while len(got) < len(sent):
            got += await stream.read()
        assert got == sent
        stream.close()

    await asyncio.gather(*(use(index) for index in range(100)))
    assert len(server._all_connections()) == 1
    (connection,) = server._all_connections()
    await until(lambda: len(connection._streams) == 1)  # ended streams leave nothing behind


async def test_a_writer_waits_for_a_reader_that_stopped(start_direct: StartDirect) -> None:
    server, client = await start_direct(), await start_direct(client_mode=True)
    read_on = asyncio.Event()
    got = 0

    async def handler(stream: Stream) -> None:
        nonlocal got
        await read_on.wait()
        while data := await stream.read():
            got += len(data)

    await server.serve(ECHO, handler)
    stream = await client.open_stream(server.peer_id, ECHO, await server.maddrs())
    stream.write([bytes(INITIAL_WINDOW)])
    await stream.drain()  # fits into the window
    stream.write([bytes(1 << 20)])
    draining = asyncio.create_task(stream.drain())
    # Another stream of the connection is not held up.
    await server.serve("/other/1", echo)
    other = await client.open_stream(server.peer_id, "/other/1")
    other.write([b"x"])
    assert await other.read() == b"x"
    assert not draining.done()
    read_on.set()
    await asyncio.wait_for(draining, 5)
    stream.close()
    await until(lambda: got == INITIAL_WINDOW + (1 << 20))


async def test_a_parting_error_arrives_even_while_the_other_side_floods(start_direct: StartDirect) -> None:
    server, client = await start_direct(), await start_direct(client_mode=True)
    await server.serve(STRICT, strict)
    await gets_parting_errors(client, server)


async def test_what_was_written_before_closing_arrives(start_direct: StartDirect) -> None:
    server, client = await start_direct(), await start_direct(client_mode=True)

    async def handler(stream: Stream) -> None:
        stream.write([bytes(100_000)])

    await server.serve(ECHO, handler)
    stream = await client.open_stream(server.peer_id, ECHO, await server.maddrs())
    got = 0
    while data := await stream.read(1000):
        got += len(data)
    assert got == 100_000
    assert await stream.read() == b""
    stream.close()
    stream.close()
    with pytest.raises(StreamClosedError, match="closed on this side"):
        await stream.read()


async def test_a_failing_handler_ends_its_stream_only(
    start_direct: StartDirect, caplog: pytest.LogCaptureFixture
) -> None:
    server, client, good = await linked(start_direct)

    async def fails(stream: Stream) -> None:
        raise RuntimeError("oops")

    await server.serve("/fails/1", fails)
    stream = await client.open_stream(server.peer_id, "/fails/1")
    assert await stream.read() == b""
    assert "the handler of a stream from" in caplog.text
    good.write([b"still here"])
    assert await good.read() == b"still here"


async def test_ports_and_addresses_that_cannot_be_used(start_direct: StartDirect) -> None:
    taken = await start_direct()
    (maddr,) = await taken.maddrs()
    where = maddr.partition("/p2p/")[0]
    with pytest.raises(ListenError, match=f"port {parse_tcp_maddr(where)[1]} on 127.0.0.1 is in use"):
        await start_direct(host_maddrs=[where])
    with pytest.raises(ListenError, match="not an address of this machine"):
        await start_direct(host_maddrs=["/ip4/192.0.2.1/tcp/0"])
    with pytest.raises(UsageError, match="not an address of plain TCP"):
        await start_direct(host_maddrs=["/ip4/127.0.0.1/udp/1/quic-v1"])
    everywhere = await start_direct(host_maddrs=["/ip4/0.0.0.0/tcp/0"])
    assert any(each.startswith("/ip4/127.0.0.1/") for each in await everywhere.maddrs())
    named = await start_direct(announce_maddrs=["/dns4/node.example/tcp/31330"])
    assert await named.maddrs() == (f"/dns4/node.example/tcp/31330/p2p/{named.peer_id}",)


async def test_dials_that_fail_say_why(start_direct: StartDirect) -> None:
    server, client, _ = await linked(start_direct)
    where = await server.maddrs()
    with pytest.raises(PeerUnreachableError, match="does not speak /other/1"):
        await client.open_stream(server.peer_id, "/other/1")
    with pytest.raises(PeerUnreachableError, match="no address of peer"):
        await client.open_stream(STRANGER, ECHO)
    with pytest.raises(
        PeerUnreachableError, match=f"is the address of peer {server.peer_id}, not of {STRANGER}"
    ):
        await client.open_stream(STRANGER, ECHO, [where[0].partition("/p2p/")[0]])
    with pytest.raises(PeerUnreachableError, match="is not a peer id"):
        await client.open_stream("0OIl", ECHO)
    with pytest.raises(PeerUnreachableError, match="is this process itself"):
        await client.open_stream(client.peer_id, ECHO)
    with pytest.raises(PeerUnreachableError, match="not over plain TCP") as caught:
        await client.open_stream(STRANGER, ECHO, ["/ip4/1.2.3.4/udp/1/quic-v1"])
    with pytest.raises(PeerUnreachableError, match="does not speak /libp2p/circuit"):
        await client.open_stream(STRANGER, ECHO, [f"{where[0]}/p2p-circuit/p2p/{STRANGER}"])
    assert "p2pd" in caught.value.hint
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        host, port = deaf.getsockname()
        with pytest.raises(PeerTimeoutError, match="did not answer within"):
            await client.open_stream(STRANGER, ECHO, [f"/ip4/{host}/tcp/{port}"], timeout=0.2)
    with pytest.raises(PeerUnreachableError, match="connection refused"):
        await client.open_stream(STRANGER, ECHO, [f"/ip4/127.0.0.1/tcp/{port}"])


@pytest.mark.parametrize(
    "reply",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x13/multistream/1.0.0\n\x03na\n", b"\xff\xff\xff", b"", b"\x13"],
    ids=["http", "no noise", "long line", "closes", "half a line"],
)
async def test_what_is_no_libp2p_is_told(start_direct: StartDirect, reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    client = await start_direct(client_mode=True)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(
        PeerUnreachableError, match=r"is not a swarm peer|closed the connection|cannot reach peer"
    ):
        await client.open_stream(STRANGER, ECHO, [f"/ip4/127.0.0.1/tcp/{port}"])
    server.close()


async def test_a_peer_that_is_gone_ends_its_streams_and_is_dialled_anew(start_direct: StartDirect) -> None:
    identity = Identity.generate()
    server, client, stream = await linked(start_direct)
    server = await start_direct(identity)
    await server.serve(ECHO, echo)
    where = await server.maddrs()
    stream = await client.open_stream(server.peer_id, ECHO, where)
    waiting = asyncio.create_task(stream.read())
    await asyncio.sleep(0)
    await server.close()
    assert await asyncio.wait_for(waiting, 5) == b""
    with pytest.raises(PeerUnreachableError):
        await client.open_stream(identity.peer_id, ECHO, where)
    again = await start_direct(identity, host_maddrs=[where[0].partition("/p2p/")[0]])
    await again.serve(ECHO, echo)
    stream = await client.open_stream(identity.peer_id, ECHO, where)
    stream.write([b"back"])
    assert await stream.read() == b"back"


async def test_a_silent_connection_is_given_up(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr(connection_module, "SILENT_S", 0.12)
    server, client, stream = await linked(start_direct)
    (there,) = server._all_connections()
    (here,) = client._all_connections()
    await asyncio.sleep(0.3)  # questions are asked and answered
    assert here.usable
    monkeypatch.setattr(there._channel._tcp, "write", lambda data: None)  # the cable is cut
    assert await asyncio.wait_for(stream.read(), 5) == b""
    assert not here.usable


async def test_close_ends_everything_and_may_be_repeated(start_direct: StartDirect) -> None:
    server, client, stream = await linked(start_direct)
    stream.write([b"x"])
    assert await stream.read() == b"x"
    waiting = asyncio.create_task(stream.read())
    await asyncio.sleep(0)
    await client.close()
    await client.close()
    with pytest.raises(StreamClosedError, match="closed on this side"):
        await waiting
    with pytest.raises(StreamClosedError):
        stream.write([b"x"])
    for use in (client.maddrs, lambda: client.open_stream(server.peer_id, ECHO), client.check):
        with pytest.raises(StreamClosedError, match="the transport is closed"):
            await use()
    await until(lambda: not server._all_connections())
    await server.close()
    assert not server._tasks


def test_every_error_of_a_dial_has_an_answer() -> None:
    """The cryptography, the operating system and we ourselves: nothing gets past the boundary."""
    modules = (
        *("builtins", "swarm_node.swarm.errors", "cryptography.exceptions", "asyncio.exceptions"),
        "swarm_node.swarm.transport.direct.security",
    )
    kinds = {
        kind
        for name in modules
        for kind in vars(importlib.import_module(name)).values()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind is not ExceptionGroup
    }
    assert len(kinds) > 60
    for kind in kinds:
        error = kind.__new__(kind)
        Exception.__init__(error, "why")
        error.message = "why"
        answer = dial_problem(STRANGER, "/ip4/127.0.0.1/tcp/1", error)
        assert isinstance(answer, NetworkError), kind
        assert str(answer), kind


def test_only_the_interface_is_the_transport_s() -> None:
    """Clients and nodes use what swarm.transport promises; this one has all of it."""
    promised = {name for name in vars(Transport) if not name.startswith("_")}
    assert promised <= set(dir(DirectTransport))


async def test_a_first_answer_takes_two_round_trips_beside_tcp_s(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for Noise, and one for the stream."""
    server, client = await start_direct(), await start_direct(client_mode=True)
    where = await server.maddrs()
    await server.serve(ECHO, echo)
    turns = ""

    def note(turn: str, of: TcpChannel) -> None:
        nonlocal turns
        if turn != turns[-1:] and of._on_made is None:  # the client's
            turns += turn

    for name, turn in (("write", "→"), ("data_received", "←")):
        usual = getattr(TcpChannel, name)

        def noted(self: TcpChannel, data: bytes, usual: Any = usual, turn: str = turn) -> None:
            note(turn, self)
            usual(self, data)

        monkeypatch.setattr(TcpChannel, name, noted)
    stream = await client.open_stream(server.peer_id, ECHO, where, lazy=True)
    stream.write([b"hello"])
    assert await stream.read() == b"hello"
    assert turns.removeprefix("←") == "→←→←"


async def test_a_lazy_stream_s_reader_hears_why_there_is_none(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client, _ = await linked(start_direct)
    refused = await client.open_stream(server.peer_id, "/other/1", lazy=True)
    refused.write([b"hello"])
    for _ in range(2):
        with pytest.raises(PeerUnreachableError, match="does not speak /other/1"):
            await refused.read()
    (there,) = server._all_connections()
    monkeypatch.setattr(there._channel._tcp, "write", lambda data: None)  # the cable is cut
    closed = await client.open_stream(server.peer_id, ECHO, lazy=True)
    closed.close()
    with pytest.raises(StreamClosedError, match="closed on this side"):
        await closed.read()
    lost = await client.open_stream(server.peer_id, ECHO, timeout=0.1, lazy=True)
    with pytest.raises(PeerTimeoutError, match="did not answer within"):
        await lost.read()
    assert not client._connections  # what comes next dials anew
    await until(lambda: not client._tasks)
    server, client, _ = await linked(start_direct)
    (there,) = server._all_connections()
    monkeypatch.setattr(there._channel._tcp, "write", lambda data: None)
    waiting = asyncio.create_task((await client.open_stream(server.peer_id, ECHO, lazy=True)).read())
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(StreamClosedError):
        await waiting
