"""Telling relays from what is none, on 127.0.0.1."""

from __future__ import annotations

import asyncio

import pytest

from swarm_node.swarm.errors import NetworkError, PeerUnreachableError
from swarm_node.swarm.transport.p2pd import relay_check
from swarm_node.swarm.transport.p2pd.relay_check import check_reachable, check_relaying, make_relay
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport

pytestmark = pytest.mark.swarm


async def test_a_relay_passes_its_own_test_and_a_node_behind_it_is_reached() -> None:
    relay = await P2pdTransport.create(is_relay=True)
    try:
        await make_relay(relay)
        where = await relay.maddrs()
        hidden = await P2pdTransport.create(client_mode=True, initial_peers=where, relays=where)
        try:
            await check_reachable(hidden.peer_id, where)
        finally:
            await hidden.close()
    finally:
        await relay.close()


async def test_of_a_relay_that_is_not_there_the_address_is_named() -> None:
    nobody = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
    with pytest.raises(
        PeerUnreachableError, match=r"no relay answers: nobody listens at /ip4/127.0.0.1/tcp/9"
    ):
        await check_relaying([nobody])


async def test_a_peer_that_is_no_relay_is_told_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_check, "PLACE_S", 3.0)
    plain, alone = await asyncio.gather(P2pdTransport.create(), P2pdTransport.create())
    try:
        where = await plain.maddrs()
        with pytest.raises(NetworkError, match=r"the relay breaks connections off|no relay leads") as caught:
            await check_relaying(where)
        assert "swarm-node bootstrap --relay" in caught.value.hint
        await alone.connect(plain.peer_id, where)
        with pytest.raises(NetworkError, match="no relay leads to this peer after 3 s"):
            await check_reachable(alone.peer_id, where)  # it is there, but has no place at the relay
    finally:
        await asyncio.gather(plain.close(), alone.close())
