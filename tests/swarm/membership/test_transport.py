"""Streams between members, and what strangers get instead: over the in-memory network."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

import pytest

from swarm_node.swarm.errors import ErrorCode, NotAdmittedError, StreamClosedError
from swarm_node.swarm.fairness.shares import ShareLimits, Shares
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.links.link import NodeLink
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.membership.membership import (
    CLOCK_SLACK_S,
    KeyedSwarm,
    Membership,
    NamedSwarm,
    grant,
    swarm_tag,
)
from swarm_node.swarm.membership.transport import (
    HANDSHAKE_S,
    MAX_HANDSHAKES,
    MEMBER_KIND,
    Member,
    MembersTransport,
)
from swarm_node.swarm.protocol.error_frames import error_of
from swarm_node.swarm.protocol.messages import ErrorMessage, Hello
from swarm_node.swarm.protocol.wire import Frame, encode_frame
from swarm_node.swarm.timeouts import Patience
from swarm_node.swarm.transport.interface import Stream, Transport
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef
from tests.doubles.clock import Clock
from tests.doubles.direct_peers import echo
from tests.doubles.virtual_time import in_virtual_time, now

NOW = 1_800_000_000.0
PROTOCOL = "/test/1"
KEY = Identity(bytes(range(32)))
NODE, CLIENT, THIRD = (Identity(letter * 32).peer_id for letter in (b"n", b"c", b"t"))
HELLO = Hello((1,), "", ("int8",), 1 << 20, "test")


def invited(ends: float = math.inf, key: Identity = KEY, name: str = "home") -> KeyedSwarm:
    tag = swarm_tag(name, key.public_bytes)
    return KeyedSwarm(name, key.public_bytes, given=grant(key, tag, NOW, ends))


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def node(network: MemoryNetwork, clock: Clock) -> AsyncIterator[MembersTransport]:
    """A member that sends back what it is sent."""
    transport = MembersTransport(network.transport(NODE), invited(), clock)
    await transport.serve(PROTOCOL, echo)
    yield transport
    await transport.close()


@pytest.fixture
def client(network: MemoryNetwork, clock: Clock) -> MembersTransport:
    return MembersTransport(network.transport(CLIENT), invited(NOW + 3600), clock)


async def read_all(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := await stream.read(7)):
        data += more
    return data


@pytest.mark.parametrize("size", [1, 100, 100_000])
async def test_members_talk_as_if_nothing_was(node: Transport, client: Transport, size: int) -> None:
    stream = await client.open_stream(NODE, PROTOCOL)
    sent = bytes(number % 251 for number in range(size))
    stream.write([sent[: size // 2], sent[size // 2 :]])
    await stream.drain()
    assert await read_all(stream, size) == sent
    stream.close()
    assert stream.peer_id == NODE


@in_virtual_time
async def test_the_greeting_costs_no_round_trip(clock: Clock) -> None:
    network = MemoryNetwork(latency=0.05)
    node = MembersTransport(network.transport(NODE), invited(), clock)
    await node.serve(PROTOCOL, echo)
    client = MembersTransport(network.transport(CLIENT), invited(), clock)
    stream = await client.open_stream(NODE, PROTOCOL)
    began = now()
    stream.write([b"x"])
    assert await stream.read() == b"x"
    assert now() - began == pytest.approx(0.1)  # one round trip


async def test_once_greeted_reads_and_writes_are_the_streams_own(node: Transport, client: Transport) -> None:
    stream = await client.open_stream(NODE, PROTOCOL)
    stream.write([b"x"])
    await stream.read()
    assert stream.read == stream._stream.read  # type: ignore[attr-defined]
    assert stream.write == stream._stream.write  # type: ignore[attr-defined]


async def refusal_of(stream: Stream) -> NotAdmittedError:
    with pytest.raises(NotAdmittedError) as caught:
        await stream.read()
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("membership", "message"),
    [
        (invited(key=Identity(b"x" * 32)), "belongs to another swarm"),
        (invited(name="den"), "belongs to another swarm"),
        (NamedSwarm("home"), "belongs to another swarm"),
    ],
    ids=["key", "name", "no key"],
)
async def test_members_of_other_swarms_are_refused_with_a_reason(
    network: MemoryNetwork, node: MembersTransport, clock: Clock, membership: Membership, message: str
) -> None:
    stranger = MembersTransport(network.transport(CLIENT), membership, clock)
    stream = await stranger.open_stream(NODE, PROTOCOL)
    stream.write([b"secret request"])
    assert message in (await refusal_of(stream)).message
    assert node.refused == 1


class Borrowed:
    """A membership that shows another peer's credential."""

    name, ends = "home", math.inf
    tag = invited().tag

    def __init__(self, credential: bytes) -> None:
        self._credential = credential

    def credential(self, peer_id: str, now: float) -> bytes:
        return self._credential

    def check(self, peer_id: str, credential: bytes, now: float) -> float:
        return math.inf


async def test_anothers_credential_is_refused(network: MemoryNetwork, node: Transport, clock: Clock) -> None:
    thief = MembersTransport(network.transport(THIRD), Borrowed(invited().credential(CLIENT, NOW)), clock)
    stream = await thief.open_stream(NODE, PROTOCOL)
    stream.write([b"x"])
    assert "belongs to another peer" in (await refusal_of(stream)).message


async def test_a_client_without_membership_gets_a_typed_error(
    network: MemoryNetwork, node: Transport
) -> None:
    connection = Connection(await network.transport(CLIENT).open_stream(NODE, PROTOCOL))
    await connection.send(HELLO)
    answer = await connection.receive()
    assert isinstance(answer, ErrorMessage)
    assert answer.code is ErrorCode.NOT_ADMITTED
    assert (answer.session, answer.step, answer.retriable) == (None, None, False)
    assert "--join" in answer.hint
    assert isinstance(error_of(answer, NODE), NotAdmittedError)
    connection.close()


async def test_a_client_link_of_today_shows_the_refusal(network: MemoryNetwork, node: Transport) -> None:
    ended = asyncio.Event()
    link = NodeLink(
        await network.transport(CLIENT).open_stream(NODE, PROTOCOL),
        ModelRef("toy", "ab" * 32, 4),
        "test",
        Patience(),
        ended.set,
    )
    await ended.wait()
    assert isinstance(link.failure, NotAdmittedError)
    assert "admits members only" in link.failure.message


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"SW",
        bytes(5000),
        encode_frame(Frame(MEMBER_KIND, {"swarm": "00" * 16, "credential": bytes(513)}))[0],
        encode_frame(Frame(MEMBER_KIND, {"swarm": "not a tag"}))[0],
        encode_frame(Frame(MEMBER_KIND, {"credential": b""}))[0],
        encode_frame(Frame(MEMBER_KIND, {"swarm": "00" * 16}, flags=1))[0],
        encode_frame(Frame(MEMBER_KIND, {"swarm": "00" * 16, "more": "x" * 8000}))[0],
    ],
)
async def test_junk_is_refused_in_bounded_time(
    network: MemoryNetwork, node: MembersTransport, junk: bytes
) -> None:
    stream = await network.transport(CLIENT).open_stream(NODE, PROTOCOL)
    stream.write([junk])
    connection = Connection(stream)
    if len(junk) > 2:  # else it waits for the rest, which the end of the stream cuts off
        answer = await connection.receive()
        assert isinstance(answer, ErrorMessage)
        assert answer.code is ErrorCode.NOT_ADMITTED
    stream.close()
    await asyncio.wait(network.transport(NODE)._tasks)  # until it has seen the end of the stream
    assert node.refused == 1


@pytest.mark.parametrize("admits", [True, False], ids=["a public node", "another's node"])
async def test_a_member_believes_no_node_outside(
    network: MemoryNetwork, client: MembersTransport, clock: Clock, admits: bool
) -> None:
    """Such a node learns what is sent before its first answer, which our protocols keep harmless."""
    if admits:

        async def serve_all(stream: Stream) -> None:
            connection = Connection(stream)
            with pytest.raises(Exception, match="unknown kind"):
                await connection.receive()
            await connection.send(
                ErrorMessage(None, None, ErrorCode.UNKNOWN_KIND, "unknown kind of message: 17", False)
            )
            await stream.read()

        await network.transport(NODE).serve(PROTOCOL, serve_all)
        expected = "is not a member of this swarm"
    else:
        theirs = invited().tag

        async def pretend(stream: Stream) -> None:
            await stream.read()
            member = Member(theirs, invited().credential(THIRD, NOW))
            header = {"swarm": member.swarm, "credential": member.credential}
            stream.write(encode_frame(Frame(MEMBER_KIND, header)))
            stream.write([b"an answer"])
            await stream.read()

        await network.transport(NODE).serve(PROTOCOL, pretend)
        expected = "belongs to another peer"
    stream = await client.open_stream(NODE, PROTOCOL)
    stream.write([b"x"])
    assert expected in (await refusal_of(stream)).message


async def test_a_node_that_ends_without_a_greeting_is_only_a_closed_stream(
    network: MemoryNetwork, client: MembersTransport
) -> None:
    async def leave(stream: Stream) -> None:
        await stream.read()

    await network.transport(NODE).serve(PROTOCOL, leave)
    stream = await client.open_stream(NODE, PROTOCOL)
    with pytest.raises(StreamClosedError):
        await stream.read()


async def test_streams_of_a_member_end_with_its_membership(
    node: MembersTransport, client: MembersTransport, clock: Clock
) -> None:
    stream = await client.open_stream(NODE, PROTOCOL)
    stream.write([b"x"])
    assert await stream.read() == b"x"
    clock.now = NOW + 3600 + CLOCK_SLACK_S
    node.sweep()
    stream.write([b"y"])
    assert await stream.read() == b"y"
    clock.now += 1
    node.sweep()
    assert await stream.read() == b""
    with pytest.raises(NotAdmittedError, match="invite to swarm 'home' ended") as caught:
        await client.open_stream(NODE, PROTOCOL)  # its own clock says so, too
    assert caught.value.hint


async def test_a_member_whose_clock_is_behind_hears_from_the_other_side(
    network: MemoryNetwork, node: MembersTransport, clock: Clock
) -> None:
    slow = Clock(NOW)
    late = MembersTransport(network.transport(CLIENT), invited(NOW + 3600), slow)
    clock.now = NOW + 7200
    stream = await late.open_stream(NODE, PROTOCOL)
    stream.write([b"x"])
    refusal = await refusal_of(stream)
    assert "ended on" in refusal.message
    assert "clock" in refusal.hint


async def test_a_node_whose_own_membership_is_over_serves_nobody(
    network: MemoryNetwork, client: MembersTransport, clock: Clock
) -> None:
    node = MembersTransport(network.transport(NODE), invited(NOW + 60), clock)
    await node.serve(PROTOCOL, echo)
    clock.now = NOW + 100
    stream = await client.open_stream(NODE, PROTOCOL)
    stream.write([b"x"])
    assert "ended on" in (await refusal_of(stream)).message


async def test_who_shows_nothing_is_dropped_in_time(
    network: MemoryNetwork, node: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HANDSHAKE_S <= 10
    monkeypatch.setattr("swarm_node.swarm.membership.transport.HANDSHAKE_S", 0.02)
    stream = await network.transport(CLIENT).open_stream(NODE, PROTOCOL)
    async with asyncio.timeout(2):
        assert await stream.read() == b""


async def test_a_flood_of_silent_streams_is_bounded(network: MemoryNetwork, node: MembersTransport) -> None:
    flood = network.transport(THIRD)
    streams = [await flood.open_stream(NODE, PROTOCOL) for _ in range(MAX_HANDSHAKES + 5)]
    ended = [asyncio.ensure_future(stream.read()) for stream in streams]
    async with asyncio.timeout(2):
        done, waiting = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 5:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
    assert len(waiting) == MAX_HANDSHAKES
    for stream in streams:
        stream.close()
    await asyncio.gather(*waiting, return_exceptions=True)
    fine = await MembersTransport(network.transport(THIRD), invited(), Clock(NOW)).open_stream(NODE, PROTOCOL)
    fine.write([b"x"])
    assert await fine.read() == b"x"


async def test_a_crowd_of_silent_peers_keeps_nobody_out(
    network: MemoryNetwork, node: MembersTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_handshakes", Shares(ShareLimits(6, per_peer=MAX_HANDSHAKES)))
    crowd = [await network.transport(peer).open_stream(NODE, PROTOCOL) for peer in (THIRD,) * 4 + ("x",) * 2]
    client = MembersTransport(network.transport(CLIENT), invited(), Clock(NOW))
    fine = await client.open_stream(NODE, PROTOCOL)
    fine.write([b"x"])
    assert await fine.read() == b"x"
    assert await crowd[0].read() == b""  # the oldest of who had most
    assert node._handshakes.held == 5
    for stream in (*crowd, fine):
        stream.close()
    network.kill("x")


@pytest.fixture(autouse=True)
async def _no_stream_is_left(network: MemoryNetwork) -> AsyncIterator[None]:
    yield
    for peer_id in (NODE, CLIENT, THIRD):
        await network.transport(peer_id).close()
