"""Joining: what must be said, who is told of, and that a network ends when its membership does."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from swarm_node.dht.delegated.directory import DelegatedDirectory
from swarm_node.dht.joining import network
from swarm_node.dht.joining.client import join_as_client
from swarm_node.dht.joining.network import JoinedNetwork, membership_over, open_network
from swarm_node.swarm.errors import NotAdmittedError, UsageError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.entry import SwarmEntry
from swarm_node.swarm.membership.membership import KeyedSwarm, NamedSwarm, grant, swarm_tag
from swarm_node.swarm.transport.memory import MemoryNetwork

KEY = Identity(bytes(range(32)))


async def test_the_end_of_a_membership_is_awaited_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "LOOK_S", 0.01)
    now = time.time()
    given = grant(KEY, swarm_tag("home", KEY.public_bytes), now, now + 1)
    swarm = KeyedSwarm("home", KEY.public_bytes, given=given)
    async with asyncio.timeout(5):
        error = await membership_over(swarm)
    assert time.time() >= swarm.ends
    assert isinstance(error, NotAdmittedError)
    assert "membership of the swarm ended on" in error.message
    assert "new invite" in error.hint


@pytest.mark.parametrize(
    "membership", [None, NamedSwarm("den"), KeyedSwarm("", KEY.public_bytes, holder=KEY)]
)
async def test_others_last(
    membership: NamedSwarm | KeyedSwarm | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "LOOK_S", 0.001)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await membership_over(membership)


async def test_who_only_reads_must_be_told_where_or_may_look() -> None:
    with pytest.raises(UsageError, match="no address of the swarm is given") as caught:
        await join_as_client(SwarmEntry(mdns=False))
    assert "--initial-peers" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "cannot begin a swarm"),
        ({"is_relay": True}, "relays"),
    ],
)
async def test_a_light_peer_needs_others(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        await open_network(KEY, pure_python=True, **options)


async def test_peers_that_were_met_before_are_told_of_too() -> None:
    transport = MemoryNetwork().transport(KEY.peer_id)
    joined = JoinedNetwork(transport, DelegatedDirectory(transport, KEY, ()), None, (), p2pd=None)
    joined.meetings.met.add("early")
    told: list[str] = []
    joined.on_peer(told.append)
    assert told == ["early"]
    await joined.close()
