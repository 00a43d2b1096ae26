"""A node's place in the network: one p2pd with the directory over it, opened and closed together."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ...swarm.errors import NotAdmittedError, UsageError
from ...swarm.identity import Identity
from ...swarm.membership.entry import SwarmEntry
from ...swarm.membership.membership import Membership, moment
from ...swarm.runtime.lazy_scipy import make_lazy
from ...swarm.transport.interface import (
    NetworkChange,
    NetworkLost,
    NetworkRestored,
    NetworkWatcher,
    Transport,
)
from ...swarm.transport.pure_python.imports import lacks_p2pd
from ..delegated.service import serve_snapshots
from ..directory import Directory

LOOK_S = 60.0
"""Between looks whether our membership is over."""


class Network(Protocol):
    @property
    def transport(self) -> Transport: ...

    @property
    def directory(self) -> Directory: ...

    def watch(self, watcher: NetworkWatcher) -> None:
        """Tell ``watcher`` when the network is lost for a time, and when it is back, the directory too."""

    def on_peer(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with the PeerID of each peer that was found on the LAN, and each that will be."""

    async def failed(self) -> None:
        """Waits until the network is lost for good, then raises the SwarmError to show."""

    async def close(self) -> None:
        """May be called again."""


def network_event(change: NetworkChange) -> tuple[str, dict[str, object]]:
    """Name and details of the NodeEvent for it."""
    match change:
        case NetworkLost(message):
            return "network_lost", {"message": message}
        case NetworkRestored(seconds):
            return "network_restored", {"seconds": round(seconds, 3)}


class GivenNetwork:
    """A transport and a directory that exist already, such as the in-memory ones of tests."""

    def __init__(self, transport: Transport, directory: Directory) -> None:
        self._transport = transport
        self._directory = directory

    @property
    def transport(self) -> Transport:
        return self._transport

    @property
    def directory(self) -> Directory:
        return self._directory

    def watch(self, watcher: NetworkWatcher) -> None:
        """Nothing here comes and goes."""

    def on_peer(self, callback: Callable[[str], None]) -> None:
        """Nobody is looked for."""

    async def failed(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        await self._directory.close()
        await self._transport.close()


async def open_network(
    identity: Identity,
    *,
    host: str,
    port: int,
    announce_maddrs: Sequence[str] = (),
    initial_peers: Sequence[str] = (),
    client_mode: bool = False,
    relays: Sequence[str] = (),
    is_relay: bool = False,
    membership: Membership | None = None,
    may_meet: Sequence[str] = (),
    mdns: bool = False,
    pure_python: bool = False,
) -> Network:
    """Start a p2pd that listens on TCP ``host:port`` and join the DHT through ``initial_peers``. ``host`` may
    be EVERY_INTERFACE.

    ``client_mode``: do not listen, and hold no records for others; for those who only read. ``relays``: peers
    through which others reach us, whom they cannot dial; ``is_relay``: be one for others. Both are tried
    before this returns. ``membership``: be in this swarm, and have to do with its members only. ``may_meet``:
    peers to join through as well, if they answer; they are tried again and again. ``mdns``: find the swarm's
    peers on this LAN and be found, now and later; not where ``host`` is this machine only. ``pure_python``:
    be a light node, without p2pd and the DHT; so is every node where there is no p2pd.

    Raises ListenError (port in use, no address), PeerUnreachableError, NotAdmittedError, UsageError and other
    NetworkErrors; in client mode also if nobody is found.
    """
    if client_mode and not (initial_peers or may_meet or mdns):
        raise UsageError(
            "nothing says where the swarm is",
            hint="Give --initial-peers ADDR or --join INVITE, or leave --no-mdns out.",
        )
    if pure_python or lacks_p2pd():
        if relays or is_relay:
            raise UsageError("relays need p2pd", hint="Leave --relay or --pure-python out.")
        from .light_network import open_light_network

        return await open_light_network(
            identity,
            host=host,
            port=port,
            announce_maddrs=announce_maddrs,
            initial_peers=initial_peers,
            client_mode=client_mode,
            membership=membership,
            may_meet=may_meet,
            mdns=mdns,
        )
    # hivemind and torch cost a second and 240 MB at import: not for those who bring a network of their own.
    make_lazy()
    from ...swarm.membership.transport import MembersTransport
    from ...swarm.transport.addresses import all_loopback, listen_maddrs, no_own_address
    from ...swarm.transport.p2pd.relay_check import check_reachable, check_relaying, make_relay
    from ..address_book import open_book
    from ..kademlia.directory import HivemindDirectory
    from .lan_copies import LanCopies, read_by_p2pd
    from .meetings import Meetings
    from .way_in import connect_in

    class P2pdNetwork(GivenNetwork):
        def watch(self, watcher: NetworkWatcher) -> None:
            p2pd.watch(watcher)

        def on_peer(self, callback: Callable[[str], None]) -> None:
            callbacks.append(callback)
            for peer_id in meetings.met:
                callback(peer_id)

        async def failed(self) -> None:
            over = asyncio.ensure_future(membership_over(membership))
            died = asyncio.ensure_future(p2pd.died())
            try:
                done, _ = await asyncio.wait((over, died), return_when=asyncio.FIRST_COMPLETED)
            finally:
                over.cancel()
                died.cancel()
            raise next(iter(done)).result()

        async def close(self) -> None:
            await meetings.close()
            await copies.close()
            await super().close()

    where = listen_maddrs(host, port)
    book = open_book(identity, initial_peers, membership)
    p2pd = await connect_in(
        identity,
        initial_peers,
        book,
        host_maddrs=where,
        announce_maddrs=announce_maddrs,
        client_mode=client_mode,
        relays=relays,
        is_relay=is_relay,
    )
    transport: Transport = p2pd if membership is None else MembersTransport(p2pd, membership)
    callbacks: list[Callable[[str], None]] = []

    def on_met(peer_id: str) -> None:
        for callback in callbacks:
            callback(peer_id)

    try:
        if not client_mode and not await transport.maddrs():
            raise no_own_address(host)
        if relays:
            await check_relaying(relays)
            await check_reachable(p2pd.peer_id, relays)
        if is_relay:
            await make_relay(p2pd)
        directory = await HivemindDirectory.create(
            p2pd, identity, initial_peers, client_mode=client_mode, membership=membership, book=book
        )
        if not client_mode:
            await serve_snapshots(transport, directory, membership)
        copies = LanCopies(
            p2pd.peer_id,
            directory,
            lambda addresses: read_by_p2pd(addresses, membership),
            clock=time.monotonic,
        )
        meetings = Meetings(
            directory,
            tag="" if membership is None else membership.tag,
            own_id=p2pd.peer_id,
            listen_maddrs=() if client_mode else p2pd.listen_maddrs,
            on_met=on_met,
            on_namesake=copies.found,
        )
        try:
            await meetings.begin(
                may_meet,
                mdns=mdns and not (initial_peers if client_mode else all_loopback(where)),
                joined=bool(initial_peers),
                needed=client_mode,
            )
        except BaseException:
            await meetings.close()
            await directory.close()
            raise
    except BaseException:
        await transport.close()
        raise
    return P2pdNetwork(transport, directory)


async def read_only_network(entry: SwarmEntry) -> Network:
    """A place in a swarm for a process that only reads its directory. Raises as ``open_network``."""
    return await open_network(
        Identity.generate(),
        host="127.0.0.1",
        port=0,
        initial_peers=entry.initial_peers,
        client_mode=True,
        membership=entry.membership,
        may_meet=entry.may_meet,
        mdns=entry.mdns,
        pure_python=entry.pure_python,
    )


async def membership_over(membership: Membership | None) -> NotAdmittedError:
    """Wait until our own membership has ended; returns what to tell people."""
    ends = math.inf if membership is None else membership.ends
    left = ends - time.time()
    while left > 0:
        await asyncio.sleep(min(left, LOOK_S))  # in pieces: the clock may be set, or the computer sleep
        left = ends - time.time()
    return NotAdmittedError(
        f"this node's membership of the swarm ended on {moment(ends)}",
        hint="Ask a member for a new invite (swarm-node invite) and start again with it.",
    )
