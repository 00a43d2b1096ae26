"""Where the directory asks peers that announce themselves: not wherever they say."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from swarm_node.dht.delegated.directory import DelegatedDirectory
from swarm_node.dht.delegated.messages import DELEGATED_PROTOCOL
from swarm_node.swarm.errors import NetworkError, PeerUnreachableError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport import resolve as names
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

READER, TOLD, STRANGER = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
MODEL = ModelRef("m", "ab" * 32, 4)
PUBLIC, LAN, LOOP, QUIC = (
    "/ip4/8.8.8.8/tcp/4001",
    "/ip4/192.168.7.7/tcp/80",
    "/ip4/127.0.0.1/tcp/22",
    "/ip4/8.8.8.8/udp/4001/quic-v1",
)


class Dials:
    """A transport that reaches nobody, and knows where it was sent."""

    peer_id = READER.peer_id

    def __init__(self, own: Sequence[str]) -> None:
        self.own = tuple(own)
        self.to: dict[str, list[str]] = {}

    async def maddrs(self) -> tuple[str, ...]:
        return self.own

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = 0.0,
        *,
        lazy: bool = False,
    ) -> Stream:
        assert protocol_id == DELEGATED_PROTOCOL
        self.to.setdefault(peer_id, []).extend(maddrs)
        raise PeerUnreachableError("nobody is there")


async def dialled(announced: Sequence[str], *, serves: bool, direct: Sequence[str] = ()) -> list[str]:
    """Where a stranger's announcement sends a client, or a public light node."""
    transport = Dials([PUBLIC.replace("8.8.8.8", "9.9.9.9")] if serves else [])
    told = f"{LOOP}/p2p/{TOLD.peer_id}"  # the user's word
    directory = DelegatedDirectory(
        transport,  # type: ignore[arg-type]
        READER,
        [told],
        rng=random.Random(1),
        serves=serves,
    )
    info = NodeInfo(
        STRANGER.peer_id,
        tuple(announced),
        MODEL,
        Span(0, 4),
        NodeState.ONLINE,
        0.5,
        direct_maddrs=tuple(direct),
    )
    directory._sources.learn([info])
    with pytest.raises(NetworkError):
        await directory.nodes(MODEL)
    assert transport.to[TOLD.peer_id] == [told]
    return transport.to.get(STRANGER.peer_id, [])


@pytest.mark.parametrize("serves", [False, True])
async def test_no_stranger_sends_us_to_our_own_machine(serves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(maddr: str, timeout: float = 0.0) -> list[str]:
        return ["/ip4/127.0.0.1/tcp/1"] if maddr.startswith("/dns4/localhost/") else [maddr]

    monkeypatch.setattr(names, "resolve", resolve)
    assert await dialled([PUBLIC, LOOP], serves=serves) == [PUBLIC]
    assert await dialled([PUBLIC, "/dns4/localhost/tcp/1"], serves=serves) == [PUBLIC]
    suffixed = f"/dns4/localhost/tcp/1/p2p/{STRANGER.peer_id}"
    assert await dialled([PUBLIC, suffixed], serves=serves) == [PUBLIC]
    assert await dialled([PUBLIC], serves=serves, direct=[f"{LOOP}/direct"]) == [PUBLIC]
    assert await dialled([LOOP, QUIC], serves=serves) == [QUIC]


async def test_a_public_light_node_looks_into_no_private_network() -> None:
    assert await dialled([LAN], serves=True) == []
    assert await dialled([LOOP], serves=True) == []
    assert await dialled([LAN], serves=False) == [LAN]


async def test_a_question_needs_no_daemon_where_there_is_another_way() -> None:
    assert await dialled([PUBLIC, QUIC], serves=False) == [PUBLIC]
    assert await dialled([QUIC], serves=False) == [QUIC]  # since nobody else answers


async def test_at_most_so_many_addresses_are_tried() -> None:
    assert len(await dialled([f"/ip4/8.8.8.{host}/tcp/1" for host in range(99)], serves=False)) == 6
