"""A light node's place in the network: in this process alone, the directory asked of nodes that have it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ...swarm.errors import UsageError
from ...swarm.identity import Identity
from ...swarm.membership.membership import Membership
from ...swarm.transport.addresses import all_loopback, listen_maddrs, no_own_address
from .lan_copies import LanCopies, read_in_process
from .meetings import Meetings
from .network import GivenNetwork, Network, membership_over
from .snapshot_network import join_by_snapshot


async def open_light_network(
    identity: Identity,
    *,
    host: str,
    port: int,
    announce_maddrs: Sequence[str] = (),
    initial_peers: Sequence[str] = (),
    client_mode: bool = False,
    membership: Membership | None = None,
    may_meet: Sequence[str] = (),
    mdns: bool = False,
) -> Network:
    """As ``open_network`` of a node that has no p2pd; it needs somebody who has.

    Raises what that does, and UsageError if py-libp2p is missing or nothing says where others are.
    """
    if not (initial_peers or may_meet or mdns):
        raise UsageError(
            "a pure-Python peer cannot begin a swarm of its own, and nothing says where one is",
            hint="Start one elsewhere (swarm-node bootstrap) and give its address with --initial-peers.",
        )
    where = listen_maddrs(host, port)
    callbacks: list[Callable[[str], None]] = []

    def on_met(peer_id: str) -> None:
        for callback in callbacks:
            callback(peer_id)

    class LightNetwork(GivenNetwork):
        def on_peer(self, callback: Callable[[str], None]) -> None:
            callbacks.append(callback)

        async def failed(self) -> None:
            raise await membership_over(membership)

        async def close(self) -> None:
            await meetings.close()
            await copies.close()
            await super().close()

    transport, directory, listening = await join_by_snapshot(
        identity,
        initial_peers,
        host_maddrs=() if client_mode else where,
        announce_maddrs=announce_maddrs,
        membership=membership,
    )
    copies = LanCopies(
        identity.peer_id,
        directory,
        lambda addresses: read_in_process(addresses, membership),
        clock=time.monotonic,
    )
    meetings = Meetings(
        directory,
        tag="" if membership is None else membership.tag,
        own_id=identity.peer_id,
        listen_maddrs=listening,
        on_met=on_met,
        on_namesake=copies.found,
    )
    network = LightNetwork(transport, directory)
    try:
        if not client_mode and not await transport.maddrs():
            raise no_own_address(host)
        await meetings.begin(
            may_meet,
            mdns=mdns and not (initial_peers if client_mode else all_loopback(where)),
            joined=bool(initial_peers),
            needed=True,
        )
    except BaseException:
        await network.close()
        raise
    return network
