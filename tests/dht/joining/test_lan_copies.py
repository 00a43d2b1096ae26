"""Somebody on the LAN says that he is us: he is looked at, seldom, and only what he proves counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from swarm_node.dht.joining.lan_copies import PAUSE_S, LanCopies
from swarm_node.swarm.discovery.mdns_records import LanPeer
from swarm_node.swarm.errors import PeerUnreachableError, SwarmError
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

THERE = LanPeer("us", ("/ip4/192.168.1.5/tcp/1",))


def info(peer_id: str, host: str) -> NodeInfo:
    maddrs = (f"/ip4/{host}/tcp/1/p2p/{peer_id}",)
    return NodeInfo(peer_id, maddrs, ModelRef("tiny", "ab" * 32, 4), Span(0, 4), NodeState.ONLINE)


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.answer: list[NodeInfo] | SwarmError = []
        self.asked: list[Sequence[str]] = []
        self.met: list[tuple[Sequence[str], Sequence[NodeInfo]]] = []
        self.copies = LanCopies("us", self, self.read, clock=lambda: self.now)

    async def read(self, addresses: Sequence[str]) -> list[NodeInfo]:
        self.asked.append(addresses)
        if isinstance(self.answer, SwarmError):
            raise self.answer
        return self.answer

    def met_namesake(self, maddrs: Sequence[str], knows: Sequence[NodeInfo]) -> None:
        self.met.append((maddrs, knows))

    async def found(self, peer: LanPeer = THERE) -> None:
        self.copies.found(peer)
        await asyncio.sleep(0.01)


async def test_what_he_tells_is_passed_on() -> None:
    world = World()
    world.answer = [info("other", "192.168.1.5"), info("us", "192.168.1.5")]
    await world.found()
    assert world.asked == [["/ip4/192.168.1.5/tcp/1/p2p/us"]]
    assert world.met == [(THERE.maddrs, world.answer)]
    await world.copies.close()


async def test_whoever_floods_the_network_with_our_name_makes_us_look_seldom() -> None:
    world = World()
    world.answer = PeerUnreachableError("nobody is there")
    for number in range(100):
        await world.found(LanPeer("us", (f"/ip4/192.168.1.{number}/tcp/1",)))
    assert len(world.asked) == 1
    world.now += PAUSE_S
    await world.found()
    assert len(world.asked) == 2
    assert world.met == []
    await world.copies.close()
