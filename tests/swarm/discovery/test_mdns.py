"""Two processes' worth of mDNS on the loopback interface, under a name that nobody else has."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from swarm_node.swarm.discovery.mdns import LanDiscovery
from swarm_node.swarm.discovery.mdns_records import LanPeer
from swarm_node.swarm.identity import Identity

ALICE, BOB = Identity(b"a" * 32).peer_id, Identity(b"b" * 32).peer_id
PATIENCE_S = 10.0


class Party:
    """One side, and what it was told."""

    def __init__(self, tag: str, own_id: str = "", port: int = 0) -> None:
        self.told: asyncio.Queue[LanPeer | str] = asyncio.Queue()
        self.namesakes: asyncio.Queue[LanPeer] = asyncio.Queue()
        self.addresses = ["127.0.0.1"]
        self.discovery = LanDiscovery(
            tag,
            self.told.put_nowait,
            self.told.put_nowait,
            own_id=own_id,
            listen_maddrs=(f"/ip4/127.0.0.1/tcp/{port}",) if port else (),
            interfaces=lambda: self.addresses,
            on_namesake=self.namesakes.put_nowait,
        )

    async def next(self) -> LanPeer | str:
        async with asyncio.timeout(PATIENCE_S):
            return await self.told.get()


@pytest.fixture
async def begin() -> AsyncIterator[Callable[..., Party]]:
    async with AsyncExitStack() as stack:

        def make(tag: str, own_id: str = "", port: int = 0) -> Party:
            party = Party(tag, own_id, port)
            stack.push_async_callback(party.discovery.close)
            return party

        yield make


async def test_peers_find_each_other_and_part(begin: Callable[..., Party]) -> None:
    tag = secrets.token_hex(16)
    alice, bob, reader = begin(tag, ALICE, 4001), begin(tag, BOB, 4002), begin(tag)
    stranger = begin(secrets.token_hex(16), Identity(b"s" * 32).peer_id, 4003)
    for party in (stranger, alice, bob, reader):
        await party.discovery.start()
    at_alice, at_bob = (
        LanPeer(ALICE, ("/ip4/127.0.0.1/tcp/4001",)),
        LanPeer(BOB, ("/ip4/127.0.0.1/tcp/4002",)),
    )
    assert await alice.next() == at_bob
    assert await bob.next() == at_alice
    assert {await reader.next(), await reader.next()} == {at_alice, at_bob}
    await bob.discovery.close()
    assert await alice.next() == BOB
    assert await reader.next() == BOB
    assert alice.discovery.peers == []
    assert reader.discovery.peers == [at_alice]
    assert stranger.told.empty()  # another swarm is not heard, and does not hear


async def test_one_who_says_that_he_is_us_is_told_of(begin: Callable[..., Party]) -> None:
    tag = secrets.token_hex(16)
    alice, copy = begin(tag, ALICE, 4001), begin(tag, ALICE, 4002)
    for party in (alice, copy):
        await party.discovery.start()
    async with asyncio.timeout(PATIENCE_S):
        assert await alice.namesakes.get() == LanPeer(ALICE, ("/ip4/127.0.0.1/tcp/4002",))
        assert await copy.namesakes.get() == LanPeer(ALICE, ("/ip4/127.0.0.1/tcp/4001",))
    assert alice.told.empty(), "he is no peer"
    assert alice.namesakes.empty(), "nor are we our own copy"


async def test_a_new_network_is_taken_up_and_a_lost_one_given_up(
    begin: Callable[..., Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_node.swarm.discovery.mdns.LOOK_S", 0.05)
    tag = secrets.token_hex(16)
    alice, bob = begin(tag, ALICE, 4001), begin(tag, BOB, 4002)
    alice.addresses = []
    await alice.discovery.start()
    await bob.discovery.start()
    assert alice.discovery.problem == "this computer is on no private network"
    alice.addresses = ["127.0.0.1"]
    assert isinstance(await alice.next(), LanPeer)
    assert isinstance(await bob.next(), LanPeer)
    assert alice.discovery.problem == ""
    bob.addresses = []
    assert await alice.next() == BOB
    assert await bob.next() == ALICE  # what was heard on a network that is gone counts no more


async def test_what_may_keep_peers_from_being_found_is_told(
    begin: Callable[..., Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where IPv4 is not private, mDNS speaks over IPv6 alone."""
    discovery = begin(secrets.token_hex(16), ALICE, 4001).discovery
    apart = ["100.64.0.9"]
    monkeypatch.setattr("swarm_node.swarm.discovery.mdns.fours_apart", lambda: apart)
    discovery._addresses = ["fd00::9"]
    assert discovery.remark == "over IPv6 alone: 100.64.0.9 is on no private network"
    discovery._addresses = ["192.168.1.9", "fd00::9"]
    assert discovery.remark == ""
    discovery._addresses, apart[:] = ["fd00::9"], []
    assert discovery.remark == ""
    discovery.problem = "this computer is on no private network"
    assert discovery.remark == discovery.problem


async def test_what_a_flood_of_names_can_take_is_bounded(
    begin: Callable[..., Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_node.swarm.discovery.mdns.MAX_PEERS", 2)
    tag = secrets.token_hex(16)
    flood = [begin(tag, Identity(bytes([number]) * 32).peer_id, 4000 + number) for number in range(1, 6)]
    for party in flood:
        await party.discovery.start()
    reader = begin(tag)
    await reader.discovery.start()
    found = {await reader.next(), await reader.next()}
    await flood[0].discovery.close()
    assert len(found) == 2
    assert len(reader.discovery._names) <= 2


async def test_a_network_that_cannot_be_used_is_a_problem_that_is_said(begin: Callable[..., Party]) -> None:
    alice = begin(secrets.token_hex(16), ALICE, 4001)
    alice.addresses = ["203.0.113.9"]  # not an address of this machine
    await alice.discovery.start()
    assert alice.discovery.peers == []
