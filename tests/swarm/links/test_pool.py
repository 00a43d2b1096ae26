"""Where a client dials, where it stops dialling, and what it remembers of who answered."""

from __future__ import annotations

import pytest

from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.errors import PeerUnreachableError
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.links.pool import LinkPool, Offer
from swarm_node.swarm.protocol.messages import Welcome
from swarm_node.swarm.protocol.wire import DEFAULT_MAX_FRAME, PROTOCOL_ID
from swarm_node.swarm.transport import resolve as names
from swarm_node.swarm.transport.dial_guard import CLIENT_FAILURES_PER_HOST, DialGuard
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef, Span

MODEL = ModelRef("tiny", "ab" * 32, 4)


class Nobody:
    peer_id = "us"

    def __init__(self) -> None:
        self.dialled: list[tuple[str, ...]] = []

    async def open_stream(self, peer_id, protocol_id, maddrs=(), timeout=0.0, *, lazy=False):
        self.dialled.append(tuple(maddrs))
        raise PeerUnreachableError("refused")


def welcome(scales: bytes, start: int = 1) -> Welcome:
    return Welcome(1, MODEL.digest, Span(start, 4), KINDS, DEFAULT_MAX_FRAME, "test", 64, 4, scales=scales)


async def test_what_a_node_offers_outlives_its_link() -> None:
    network, said = MemoryNetwork(), [welcome(b"\1\2"), welcome(b"\3\4", start=2)]
    served: list[Connection] = []

    async def handle(stream: Stream) -> None:
        connection = Connection(stream, DEFAULT_MAX_FRAME)
        served.append(connection)
        await connection.receive()
        await connection.send(said.pop(0))
        await connection.receive()

    await network.transport("node").serve(PROTOCOL_ID, handle)
    links = LinkPool(network.transport("client"), MODEL)
    assert links.offer_of("node") is None
    link = await links.get("node")
    await link.welcome
    assert links.offer_of("node") == Offer(KINDS, 1, b"\1\2")
    await link.close()
    assert not links.has("node")
    assert links.offer_of("node") == Offer(KINDS, 1, b"\1\2")
    await (await links.get("node")).welcome
    assert links.offer_of("node") == Offer(KINDS, 2, b"\3\4")
    await links.close()
    for connection in served:
        connection.close()


async def attempts(maddrs: list[str], number: int = 700) -> list[tuple[str, ...]]:
    transport = Nobody()
    links = LinkPool(transport, MODEL, guard=DialGuard(for_client=True))
    for each in range(number):
        with pytest.raises(PeerUnreachableError):
            await links.get(f"liar{each}", maddrs)
    await links.close()
    return transport.dialled


async def test_a_host_that_many_strangers_name_is_dialled_a_few_times():
    assert len(await attempts(["/ip4/8.8.8.8/tcp/80"])) == CLIENT_FAILURES_PER_HOST
    victims = [f"/ip4/8.8.8.8/tcp/{port}" for port in range(1, 13)]
    assert sum(map(len, await attempts(victims))) == CLIENT_FAILURES_PER_HOST


async def test_what_is_on_our_own_networks_is_our_own_affair():
    assert len(await attempts(["/ip4/127.0.0.1/tcp/80"])) == 700
    dialled = await attempts(["/ip4/8.8.8.8/tcp/80", "/ip4/192.168.1.5/tcp/80"])
    assert dialled[0] == ("/ip4/8.8.8.8/tcp/80", "/ip4/192.168.1.5/tcp/80")
    assert dialled[-1] == ("/ip4/192.168.1.5/tcp/80",)


async def test_a_name_beside_another_address_does_not_lead_to_our_own_machine(monkeypatch):
    async def resolve(maddr, timeout=0.0):
        return ["/ip4/127.0.0.1/tcp/80"] if maddr.startswith("/dns4/localhost/") else [maddr]

    monkeypatch.setattr(names, "resolve", resolve)
    for name in ("/dns4/localhost/tcp/80", "/dns4/localhost/tcp/80/p2p/liar0"):
        assert await attempts(["/ip4/8.8.8.8/tcp/80", name], 1) == [("/ip4/8.8.8.8/tcp/80",)]
