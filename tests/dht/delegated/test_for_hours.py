"""A client and a light node that ask and announce for hours, while the nodes that they ask come and go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from swarm_node.dht.delegated.directory import DelegatedDirectory
from swarm_node.dht.delegated.messages import DELEGATED_PROTOCOL
from swarm_node.dht.delegated.service import DelegatedService
from swarm_node.dht.delegated.sources import MAX_SOURCES
from swarm_node.dht.directory import REFRESH_S, TTL_S
from swarm_node.dht.records.bodies import encode_node
from swarm_node.dht.records.entry_check import Entry, EntryCheck
from swarm_node.dht.records.envelope import seal, subkey_of
from swarm_node.dht.records.keys import key_hash, node_key
from swarm_node.swarm.errors import NetworkError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.placement.demand import WantedModel
from swarm_node.swarm.transport.memory import MemoryNetwork, MemoryTransport
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.dht.found import FoundEntries
from tests.doubles.virtual_time import VirtualLoop, run

NOW = 1_700_000_000.0
HOURS = 1.5
MODEL = ModelRef("smol", "ab" * 32, 30)
NODES = [Identity(number.to_bytes(32, "big")) for number in range(1, 13)]
LIGHT, READER = Identity(b"l" * 32), Identity(b"r" * 32)
LIFE_S = 900.0
"""A node serves for so long. Three are there at any time."""


class Dht:
    """All nodes' directory in one."""

    def __init__(self, clock: VirtualLoop) -> None:
        self._kept: dict[str, dict[str, Entry]] = {}
        self.now = lambda: NOW + clock.time()
        self.check = EntryCheck(TTL_S, self.now)

    async def entries(self, keys: Sequence[str]) -> FoundEntries:
        return FoundEntries(
            {
                key: {
                    owner: entry
                    for owner, entry in self._kept.get(key, {}).items()
                    if entry.expiration > self.now()
                }
                for key in keys
            }
        )

    async def store(self, owner: str, key: str, expiration: float, value: bytes) -> NetworkError | None:
        entry = self.check.check(key_hash(key), subkey_of(owner.encode()), expiration, value)
        self._kept.setdefault(key, {})[owner] = entry
        return None


def maddr(number: int) -> str:
    return f"/ip4/8.8.{number}.1/tcp/1"


def info(identity: Identity, number: int) -> NodeInfo:
    where = (f"{maddr(number)}/p2p/{identity.peer_id}",)
    return NodeInfo(identity.peer_id, where, MODEL, Span(0, 30), NodeState.ONLINE, 0.5)


class Swarm:
    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.dht = Dht(loop)
        self.network = MemoryNetwork()
        self.alive: dict[int, MemoryTransport] = {}

    async def begin(self, number: int) -> None:
        number %= len(NODES)
        service = DelegatedService(self.dht, self.dht.check, clock=self.dht.now, monotonic=self.loop.time)
        self.alive[number] = transport = self.network.transport(NODES[number].peer_id)
        await transport.serve(DELEGATED_PROTOCOL, service.handle)

    def directory(self, identity: Identity, number: int) -> DelegatedDirectory:
        return DelegatedDirectory(
            self.network.transport(identity.peer_id),
            identity,
            [f"{maddr(number)}/p2p/{NODES[number].peer_id}"],
            clock=self.dht.now,
            rng=random.Random(number),
        )

    async def come_and_go(self) -> None:
        """One leaves and the next comes, again and again; those that are there announce themselves."""
        at, began = 0, self.loop.time()
        while True:
            for number in self.alive:
                key, body = node_key(MODEL, Span(0, 30)), encode_node(info(NODES[number], number))
                expiration = self.dht.now() + TTL_S
                value = seal(NODES[number], key_hash(key), expiration, body)
                await self.dht.store(NODES[number].peer_id, key, expiration, value)
            await asyncio.sleep(REFRESH_S)
            if (self.loop.time() - began) // (LIFE_S / 3) > at:
                at += 1
                await self.begin(at + 2)
                await self.alive.pop((at - 1) % len(NODES)).close()


@pytest.mark.slow
def test_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = VirtualLoop()

    async def work() -> int:
        swarm = Swarm(loop)
        for number in range(3):
            await swarm.begin(number)
        moving = asyncio.create_task(swarm.come_and_go())
        light, reader = swarm.directory(LIGHT, 0), swarm.directory(READER, 1)
        await light.join()
        await reader.join()
        looks = 0
        while loop.time() < HOURS * 3600:
            await light.announce(info(LIGHT, 200))
            await light.nodes(MODEL)  # as a node does that measures its links
            await light.want([WantedModel("bigger")])
            await asyncio.sleep(REFRESH_S)
            found = {node.peer_id for node in await reader.nodes(MODEL)}
            assert found >= {LIGHT.peer_id, *(NODES[number].peer_id for number in list(swarm.alive)[:2])}
            assert [record.peer_id for record in await reader.wanted()] == [LIGHT.peer_id]
            assert len(reader._sources) <= MAX_SOURCES + 1
            assert not moving.done()
            looks += 1
        moving.cancel()
        await asyncio.wait([moving])
        return looks

    assert run(monkeypatch, work(), loop) > 200
