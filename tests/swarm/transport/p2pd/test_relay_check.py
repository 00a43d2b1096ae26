"""Telling relays from what is none, on 127.0.0.1."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from swarm_node.swarm.errors import NetworkError, PeerUnreachableError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.addresses import EVERY_INTERFACE, listen_maddrs
from swarm_node.swarm.transport.p2pd import relay_check
from swarm_node.swarm.transport.p2pd.options import P2pdOptions
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


async def test_a_relay_that_has_addresses_of_both_families_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_check, "PLACE_S", 5.0)
    where = listen_maddrs(EVERY_INTERFACE, 0)
    if len(where) < 2:
        pytest.skip("this machine has one family of addresses")
    relay = await P2pdTransport.create(host_maddrs=where, is_relay=True)
    try:
        await make_relay(relay)
    finally:
        await relay.close()


def test_each_relay_is_named_to_p2pd_once() -> None:
    """Else it gets no place there."""
    first, second = (Identity.generate().peer_id for _ in range(2))
    relays = (
        f"/ip4/8.8.8.8/tcp/1/p2p/{first}",
        f"/ip4/9.9.9.9/tcp/1/p2p/{second}",
        f"/ip6/::1/tcp/1/p2p/{first}",
    )
    words = P2pdOptions(Identity.generate(), relays=relays).arguments(Path("control"), "key")
    assert f"-trustedRelays={','.join(relays[:2])}" in words


async def test_who_is_to_be_a_relay_is_not_told_to_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_check, "PLACE_S", 0.5)
    monkeypatch.setattr(relay_check, "ATTEMPTS", 1)
    plain = await P2pdTransport.create()
    try:
        with pytest.raises(NetworkError, match="does not relay as it should") as caught:
            await make_relay(plain)
        assert "bootstrap --relay" not in caught.value.hint
    finally:
        await plain.close()


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
