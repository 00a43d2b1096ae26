"""A node's network ends when its membership does."""

from __future__ import annotations

import asyncio
import time

import pytest

from swarm_node.dht.joining import network
from swarm_node.dht.joining.network import join_as_client, membership_over
from swarm_node.swarm.errors import NotAdmittedError, UsageError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.entry import SwarmEntry
from swarm_node.swarm.membership.membership import KeyedSwarm, NamedSwarm, grant, swarm_tag

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
    with pytest.raises(UsageError, match="nothing says where the swarm is") as caught:
        await join_as_client(SwarmEntry(mdns=False))
    assert "--initial-peers" in caught.value.hint
