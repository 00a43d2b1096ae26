"""Strangers who make a peer work, wait or remember for nothing: each is bounded, and ends alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from swarm_node.swarm.errors import NetworkError, StreamClosedError
from swarm_node.swarm.fairness.gate import GateLimits
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.direct import connection, totals, transport
from swarm_node.swarm.transport.direct.addresses import parse_tcp_maddr
from swarm_node.swarm.transport.direct.channel import NoiseChannel, TcpChannel
from swarm_node.swarm.transport.direct.security import MAX_HANDSHAKE_MESSAGE, NOISE, Security
from swarm_node.swarm.transport.direct.transport import PINGS_AT_ONCE, DirectTransport
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.protocols.multistream import proposal
from swarm_node.swarm.transport.protocols.noise import XXHandshake
from swarm_node.swarm.transport.protocols.yamux import INITIAL_WINDOW, MAX_INBOUND, OPENING
from tests.doubles.direct_peers import StartDirect, linked
from tests.doubles.fake_swarm import until
from tests.swarm.transport.direct.test_strangers import frame, intruder

SYN, RST = 1, 8


async def socket_to(server: DirectTransport) -> TcpChannel:
    host, port = parse_tcp_maddr((await server.maddrs())[0].partition("/p2p/")[0])
    tcp = TcpChannel()
    await asyncio.get_running_loop().create_connection(lambda: tcp, host, port)
    return tcp


async def unharmed(stream: Stream) -> None:
    stream.write([b"unharmed"])
    assert await stream.read() == b"unharmed"


# Before anybody is known.


@pytest.mark.parametrize(
    "said",
    [
        (33).to_bytes(2) + bytes(33),
        (MAX_HANDSHAKE_MESSAGE).to_bytes(2),
        b"\xff\xff",
        (5).to_bytes(2) + bytes(5),
        (32).to_bytes(2) + bytes(32),
        (0).to_bytes(2),
    ],
    ids=["too long", "much too long", "as long as can be", "too short", "of low order", "nothing"],
)
async def test_first_messages_that_are_none_end_the_connection(
    start_direct: StartDirect, said: bytes
) -> None:
    server, _, good = await linked(start_direct)
    tcp = await socket_to(server)
    tcp.write(proposal(NOISE) + said)
    with pytest.raises(StreamClosedError):
        await tcp.read_exactly(10_000)
    assert not server._handshakes
    await unharmed(good)


async def test_a_handshake_that_was_recorded_does_not_get_in(start_direct: StartDirect) -> None:
    server, client, _ = await linked(start_direct)
    seen: list[bytes] = []
    tcp = await socket_to(server)
    usual, tcp.write = tcp.write, lambda data: (seen.append(data), usual(data))[1]  # type: ignore[method-assign]
    await client._security.dialled(tcp, server.peer_id)
    await until(lambda: len(server._all_connections()) == 2)
    again = await socket_to(server)
    again.write(b"".join(seen))
    with pytest.raises(StreamClosedError):
        await again.read_exactly(10_000)
    assert len(server._all_connections()) == 2


async def test_a_byte_now_and_then_is_no_handshake(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE_S", 0.3)
    server, _, good = await linked(start_direct)
    tcp = await socket_to(server)
    first = XXHandshake(Security(Identity.generate())._static, initiator=True).write_message()
    slow = iter(proposal(NOISE) + len(first).to_bytes(2) + first)

    async def drip() -> None:
        for byte in slow:
            tcp.write(bytes([byte]))
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    with pytest.raises(StreamClosedError):
        await tcp.read_exactly(10_000)
    dripping.cancel()
    assert not server._handshakes
    await unharmed(good)


async def test_a_flood_of_handshakes_waits_for_itself(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = GateLimits(1, 2, 1, 2, waiting=4, patience_s=0.2)
    monkeypatch.setattr(transport, "HANDSHAKES", limits)
    server = await start_direct()
    done = 0
    usual = XXHandshake.read_message

    def count(self: XXHandshake, message: bytes) -> bytes:
        nonlocal done
        done += not self._initiator
        return usual(self, message)

    monkeypatch.setattr(XXHandshake, "read_message", count)
    tries = await asyncio.gather(*(intruder(server) for _ in range(12)), return_exceptions=True)
    assert sum(isinstance(each, NoiseChannel) for each in tries) in (2, 3)
    assert all(isinstance(each, (NoiseChannel, StreamClosedError)) for each in tries)
    assert done <= 2 * 3  # nothing was computed for the others
    assert server._gate.turned_away >= 9
    assert not server._handshakes


# Frames that carry nothing.


def streams_and_resets() -> bytes:
    return b"".join(frame(1, SYN, i, 0) + frame(1, RST, i, 0) for i in range(1, 400, 2))


FLOODS = {
    "pings": lambda: frame(2, 1, 0, 7) * 100,
    "window updates": lambda: frame(1, 0, 1, 1) * 100,
    "window updates of nothing": lambda: frame(1, 0, 1, 0) * 100,
    "single bytes": lambda: frame(0, 0, 1, 1, b"x") * 100,
    "empty frames": lambda: frame(0, 0, 1, 0) * 100,
    "frames of unknown streams": lambda: frame(1, 0, 999, 0) * 100,
    "bytes of unknown streams": lambda: frame(0, 0, 999, 16_000, bytes(16_000)),
    "farewells": lambda: frame(3, 0, 0, 0) * 100,
    "nothing at all": lambda: b"",
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_of_frames_ends_its_connection(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch, flood: Callable[[], bytes]
) -> None:
    monkeypatch.setattr(connection, "TOIL_AT_ONCE", 2000.0)
    server, _, good = await linked(start_direct)
    await server.serve("/rest/1", lambda stream: asyncio.Event().wait())
    channel = await intruder(server)
    begin = proposal("/rest/1")
    channel.write(frame(1, SYN, 1, 0) + frame(0, 0, 1, len(begin), begin))
    await until(lambda: len(server._all_connections()) == 2)
    for _ in range(5000):
        channel.write(flood())
        if len(server._all_connections()) == 1:
            break
        await asyncio.sleep(0)
    await until(lambda: len(server._all_connections()) == 1)
    await unharmed(good)


async def test_streams_that_are_opened_and_reset_end_their_connection(start_direct: StartDirect) -> None:
    server, _, good = await linked(start_direct)
    channel = await intruder(server)
    await until(lambda: len(server._all_connections()) == 2)
    most, number = 0, 1
    while len(server._all_connections()) == 2:
        channel.write(
            b"".join(frame(1, SYN, number + i, 0) + frame(1, RST, number + i, 0) for i in range(0, 200, 2))
        )
        number += 200
        await asyncio.sleep(0)
        most = max(most, len(server._tasks))
        assert number < 2 * 3 * connection.TOIL_AT_ONCE / OPENING
    assert most <= MAX_INBOUND + 2
    await until(lambda: len(server._tasks) == 1)
    await unharmed(good)


async def test_handlers_that_do_not_notice_a_reset_are_bounded(start_direct: StartDirect) -> None:
    server, _, good = await linked(start_direct)
    begun = 0
    go_on = asyncio.Event()

    async def busy(stream: Stream) -> None:
        nonlocal begun
        begun += 1
        await go_on.wait()

    await server.serve("/busy/1", busy)
    channel = await intruder(server)
    request = proposal("/busy/1")
    for number in range(1, 6 * MAX_INBOUND, 2):
        channel.write(
            frame(1, SYN, number, 0) + frame(0, 0, number, len(request), request) + frame(1, RST, number, 0)
        )
        await asyncio.sleep(0)
    await until(lambda: begun > 0)
    await unharmed(good)
    assert begun <= MAX_INBOUND
    go_on.set()
    await until(lambda: len(server._tasks) == 1)


async def test_all_connections_together_are_bounded(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "TOIL_PER_S", 1.0)
    monkeypatch.setattr(totals, "TOIL_AT_ONCE", 1500.0)
    server, _, good = await linked(start_direct)
    strangers = [await intruder(server) for _ in range(4)]
    await until(lambda: len(server._all_connections()) == 5)
    for number, channel in enumerate(strangers):
        channel.write(frame(2, 1, 0, 7) * (300 + 50 * number))
    await until(lambda: len(server._all_connections()) < 5)
    await unharmed(good)  # the one that did most has ended
    assert len(server._all_connections()) == 4
    for channel in strangers:
        channel.abort()


async def test_what_is_earned_by_sending_is_no_toil(start_direct: StartDirect) -> None:
    """A transfer as fast as it can be, and the updates that it needs."""
    server, client = await start_direct(), await start_direct(client_mode=True)
    got = 0

    async def take(stream: Stream) -> None:
        nonlocal got
        while data := await stream.read():
            got += len(data)

    await server.serve("/take/1", take)
    stream = await client.open_stream(server.peer_id, "/take/1", await server.maddrs())
    piece = os.urandom(1 << 18)
    for _ in range(100):
        stream.write([piece])
        await stream.drain()
    await until(lambda: got == 100 << 18)
    assert all(each.toil < 50 for each in (*client._all_connections(), *server._all_connections()))


async def test_pings_without_end_are_not_answered(start_direct: StartDirect) -> None:
    server, client, good = await linked(start_direct)
    stream = await client.open_stream(server.peer_id, transport.PING)
    answered = 0
    for _ in range(int(PINGS_AT_ONCE) * 3):
        stream.write([bytes(32)])
        if not await stream.read():
            break
        answered += 1
    assert PINGS_AT_ONCE <= answered < PINGS_AT_ONCE * 2
    await unharmed(good)


# Who does not listen, or says nothing.


async def test_streams_that_ask_for_nothing_end(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _, good = await linked(start_direct)
    monkeypatch.setattr(transport, "HANDSHAKE_S", 0.1)
    channel = await intruder(server)
    channel.write(b"".join(frame(1, SYN, number, 0) for number in range(1, 2 * MAX_INBOUND, 2)))
    await until(lambda: len(server._tasks) > MAX_INBOUND)
    await until(lambda: len(server._tasks) == 1)
    assert all(each._session.unsent == 0 for each in server._all_connections())
    await unharmed(good)


def sender(sent: list[Stream], size: int) -> Callable[[Stream], Awaitable[None]]:
    async def send(stream: Stream) -> None:
        sent.append(stream)
        stream.write([bytes(size)])
        await stream.drain()

    return send


async def test_windows_that_never_open_hold_a_bounded_amount(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MUCH_UNSENT", 1 << 20)
    monkeypatch.setattr(totals, "MAX_UNSENT_BYTES", 5 << 20)
    server, client, good = await linked(start_direct)
    sent: list[Stream] = []
    await server.serve("/send/1", sender(sent, (2 << 20) + INITIAL_WINDOW))
    light = await client.open_stream(server.peer_id, "/send/1")  # and is slow to read
    channel = await intruder(server)
    request = proposal("/send/1")
    for number in (1, 3, 5):
        channel.write(frame(1, SYN, number, 0) + frame(0, 0, number, len(request), request))
    await until(lambda: len(sent) >= 3 and len(server._all_connections()) == 1)  # it held more than others
    got = 0
    while got < (2 << 20) + INITIAL_WINDOW:
        got += len(await light.read())
    await unharmed(good)


async def test_who_takes_nothing_from_its_socket_is_given_up(
    start_direct: StartDirect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _, good = await linked(start_direct)
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.1)
    monkeypatch.setattr(connection, "SILENT_S", 0.2)
    sent: list[Stream] = []
    await server.serve("/send/1", sender(sent, 64 << 20))
    channel = await intruder(server)
    tcp = channel._tcp
    assert isinstance(tcp, TcpChannel)
    assert tcp._transport is not None
    request = proposal("/send/1")
    channel.write(frame(1, SYN, 1, 0) + frame(0, 0, 1, len(request), request) + frame(1, 0, 1, 1 << 30))
    tcp._transport.pause_reading()
    while len(server._all_connections()) == 2 or not sent:  # it goes on to show that it lives
        try:
            channel.write(frame(2, 1, 0, 7))
        except NetworkError:
            break
        await asyncio.sleep(0.02)
    assert len(server._all_connections()) == 1
    await unharmed(good)
