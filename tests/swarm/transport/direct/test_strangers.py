"""The transport without a daemon, and strangers who break the rules: they lose by it, alone."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from unittest.mock import Mock

import psutil
import pytest

from swarm_node.swarm.errors import OpenFilesError, PeerUnreachableError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.direct import connection, totals, transport
from swarm_node.swarm.transport.direct.addresses import parse_tcp_maddr
from swarm_node.swarm.transport.direct.channel import NoiseChannel, TcpChannel
from swarm_node.swarm.transport.direct.relay import HOP
from swarm_node.swarm.transport.direct.security import NOISE, Security
from swarm_node.swarm.transport.direct.stream import DirectStream
from swarm_node.swarm.transport.direct.transport import MAX_HANDSHAKES, DirectTransport
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.protocols.multistream import propose
from swarm_node.swarm.transport.protocols.yamux import INITIAL_WINDOW, MAX_INBOUND
from tests.doubles.direct_peers import ECHO, STRANGER, StartDirect, echo, linked
from tests.doubles.fake_swarm import until
from tests.swarm.runtime.complaints import Complaints


async def intruder(server: DirectTransport) -> NoiseChannel:
    """An authenticated connection on which anything can be written in place of yamux."""
    host, port = parse_tcp_maddr((await server.maddrs())[0].partition("/p2p/")[0])
    tcp = TcpChannel()
    await asyncio.get_running_loop().create_connection(lambda: tcp, host, port)
    return await Security(Identity.generate()).dialled(tcp, server.peer_id)


def frame(kind: int, flags: int, stream: int, length: int, payload: bytes = b"") -> bytes:
    return struct.pack("!BBHII", 0, kind, flags, stream, length) + payload


async def test_more_than_a_window_ends_the_connection_of_who_sends_it(start_direct: StartDirect) -> None:
    server, _, good = await linked(start_direct)
    channel = await intruder(server)
    await until(lambda: len(server._all_connections()) == 2)
    channel.write(frame(1, 1, 1, 0) + frame(0, 0, 1, INITIAL_WINDOW + 1, bytes(1000)))
    await until(lambda: len(server._all_connections()) == 1)
    good.write([b"unharmed"])
    assert await good.read() == b"unharmed"


async def test_streams_without_end_are_refused(start_direct: StartDirect) -> None:
    server, _, good = await linked(start_direct)
    channel = await intruder(server)
    channel.write(b"".join(frame(1, 1, 2 * i + 1, 0) for i in range(3 * MAX_INBOUND)))
    await until(lambda: any(len(each._streams) > 1 for each in server._all_connections()))
    assert sum(len(each._streams) for each in server._all_connections()) == MAX_INBOUND + 1
    channel.abort()
    await until(lambda: len(server._all_connections()) == 1 and len(server._tasks) == 1)
    good.write([b"unharmed"])
    assert await good.read() == b"unharmed"


async def test_a_stream_is_not_opened_twice(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.1)
    complaints = Complaints()
    server, _, good = await linked(start_direct)
    junk = b"\x05abcd\n"  # what ends a stream on the server's side, where it then lingers
    for again in (frame(1, 8, 1, 0) + frame(1, 1, 1, 0), frame(1, 8, 1, 0), b""):
        channel = await intruder(server)
        channel.write(frame(1, 1, 1, 0) + frame(0, 0, 1, len(junk), junk))
        await until(lambda: any(each._lingering for each in server._all_connections()))
        (one,) = [each for each in server._all_connections() if each._lingering]
        channel.write(again + again)
        await until(lambda one=one: not one._lingering)
        channel.abort()
    await until(lambda: len(server._all_connections()) == 1)
    good.write([b"unharmed"])
    assert await good.read() == b"unharmed"
    assert complaints.heard() == []


async def test_a_handshake_that_had_to_go_before_it_began_is_no_error(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_HANDSHAKES", 1)
    complaints = Complaints()
    server, _, good = await linked(start_direct)
    for _ in range(2):  # in one turn of the loop
        tcp = TcpChannel(server._accept)
        tcp.connection_made(Mock(get_extra_info=lambda name: ("192.0.2.1", 1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert complaints.heard() == []
    good.write([b"unharmed"])
    assert await good.read() == b"unharmed"


async def test_connections_that_nobody_uses_make_room(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 3)
    server, _, good = await linked(start_direct)
    strangers = [await intruder(server) for _ in range(6)]
    await until(lambda: len(server._all_connections()) == 3 and not server._handshakes)
    good.write([b"unharmed"])  # in use, though the oldest
    assert await good.read() == b"unharmed"
    for channel in strangers:
        channel.abort()
    await until(lambda: server._accepted == 1)


async def test_a_flood_of_single_bytes_takes_little_more_than_its_size(start_direct: StartDirect) -> None:
    server, _, _ = await linked(start_direct)
    kept: list[DirectStream] = []

    async def rest(stream: Stream) -> None:
        assert isinstance(stream, DirectStream)
        kept.append(stream)
        await asyncio.Event().wait()

    await server.serve("/rest/1", rest)
    client = await start_direct(client_mode=True)
    stream = await client.open_stream(server.peer_id, "/rest/1", await server.maddrs())
    for _ in range(100):
        stream.write([b"x"] * 500)
        await asyncio.sleep(0)
    stream.write([b"y"])
    await until(lambda: sum(map(len, kept[0]._arrived)) == 50_001)
    assert len(kept[0]._arrived) < 8
    assert await kept[0].read(3) == b"xxx"


async def test_what_nobody_reads_is_bounded_over_all_connections(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "MAX_UNREAD_BYTES", 5 * INITIAL_WINDOW)
    server, _, good = await linked(start_direct)

    async def rest(stream: Stream) -> None:
        await asyncio.Event().wait()

    await server.serve("/rest/1", rest)
    light, heavy = await start_direct(client_mode=True), await start_direct(client_mode=True)
    for client, streams in ((light, 1), (heavy, 4)):
        for _ in range(streams):
            stream = await client.open_stream(server.peer_id, "/rest/1", await server.maddrs())
            stream.write([bytes(INITIAL_WINDOW)])
    await until(lambda: heavy.peer_id in server._connections and not light._closed)
    good.write([bytes(1000)])
    held = {peer: sum(each.unread for each in each_) for peer, each_ in server._connections.items()}
    assert held.get(light.peer_id, 0) <= INITIAL_WINDOW
    more = await heavy.open_stream(server.peer_id, "/rest/1", await server.maddrs())
    more.write([bytes(INITIAL_WINDOW)])
    await until(lambda: heavy.peer_id not in server._connections)
    assert light.peer_id in server._connections
    good.write([b"unharmed"])
    assert await good.read()


async def test_bytes_that_were_altered_end_the_connection(start_direct: StartDirect) -> None:
    server, _, good = await linked(start_direct)
    channel = await intruder(server)
    await until(lambda: len(server._all_connections()) == 2)
    channel._tcp.write((100).to_bytes(2) + bytes(100))
    await until(lambda: len(server._all_connections()) == 1)
    good.write([b"unharmed"])
    assert await good.read() == b"unharmed"


async def test_plaintext_and_silence_do_not_get_in(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE_S", 1.5)
    server, client = await start_direct(), await start_direct(client_mode=True)
    host, port = parse_tcp_maddr((await server.maddrs())[0].partition("/p2p/")[0])
    loop = asyncio.get_running_loop()
    plain = TcpChannel()
    await loop.create_connection(lambda: plain, host, port)
    assert not await propose(plain, "/plaintext/2.0.0")
    silent = [TcpChannel() for _ in range(MAX_HANDSHAKES + 10)]
    for channel in silent:
        await loop.create_connection(lambda channel=channel: channel, host, port)  # type: ignore[misc]
    await until(lambda: len(server._handshakes) == MAX_HANDSHAKES)
    await server.serve(ECHO, echo)
    stream = await client.open_stream(server.peer_id, ECHO, await server.maddrs())  # they keep nobody out
    stream.write([b"in"])
    assert await stream.read() == b"in"
    await until(lambda: not server._handshakes)  # their time is over
    assert NOISE == "/noise"
    for channel in (plain, *silent):
        channel.abort()


BAD_ANSWERS = {
    "ends": b"",
    "empty": b"\x00",
    "endless": b"\xff\xff\xff\xff",
    "ok, and no peer behind it": b"\x04\x08\x02\x28\x64",
    "cut": b"\x05\x08\x02\x28\xff\xff",
    "other types": b"\x03\x08\x02\x2d",
    "noise": os.urandom(300),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_a_relay_that_answers_badly(start_direct: StartDirect, answer: bytes) -> None:
    relay, client = await start_direct(), await start_direct(client_mode=True)

    async def hop(stream: Stream) -> None:
        await stream.read()
        stream.write([answer])

    await relay.serve(HOP, hop)
    (where,) = await relay.maddrs()
    with pytest.raises(PeerUnreachableError, match=r"is not a swarm peer|cannot reach peer"):
        await client.open_stream(STRANGER, ECHO, [f"{where}/p2p-circuit/p2p/{STRANGER}"])
    await until(lambda: not relay._tasks)
    assert len(client._tasks) == 0


async def test_addresses_that_cannot_be_listed_now_are_asked_for_later(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_direct(host_maddrs=("/ip4/0.0.0.0/tcp/0",))
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "net_if_addrs", Mock(side_effect=OSError(errno.EMFILE, "")))
        with pytest.raises(OpenFilesError):
            await server.maddrs()
    assert await server.maddrs()
