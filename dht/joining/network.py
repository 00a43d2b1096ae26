"""The way into a swarm for peers that serve: a transport, and the directory over it.

A peer with p2pd is in the DHT. A light peer, in this process alone, asks nodes that are.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ...swarm.errors import NotAdmittedError, PeerTimeoutError, PeerUnreachableError, SwarmError, UsageError
from ...swarm.identity import Identity
from ...swarm.membership.membership import Membership, moment
from ...swarm.membership.transport import MembersTransport
from ...swarm.transport.addresses import all_loopback, listen_maddrs, no_own_address
from ...swarm.transport.direct.transport import DirectTransport
from ...swarm.transport.direct_maddrs import DirectOptions, Way
from ...swarm.transport.interface import (
    NetworkChange,
    NetworkLost,
    NetworkRestored,
    NetworkWatcher,
    Transport,
)
from ...swarm.transport.limited import UNLIMITED, Bandwidth, limited
from ...swarm.transport.paths.transport import PathsTransport
from ...swarm.types import NodeInfo
from ..address_book import AddressBook, open_book
from ..delegated.directory import DelegatedDirectory
from ..delegated.service import serve_entries
from ..directory import Directory
from .direct_listener import direct_maddrs, open_direct
from .lan_copies import LanCopies
from .meetings import Meetings

if TYPE_CHECKING:
    from ...swarm.transport.p2pd.transport import P2pdTransport
    from ..kademlia.directory import HivemindDirectory

LOOK_S = 60.0
"""Seconds between looks whether our membership has ended."""
MOST_TRIED = 8
"""If no initial peer answers, a start tries this many peers of the address book, those known for longest."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NetworkFigures:
    """``peers``: connected now. ``relayed_bytes``: passed on for others since the start. None: nobody counts
    it here."""

    peers: int | None = None
    relayed_bytes: int | None = None


class Network(Protocol):
    @property
    def transport(self) -> Transport: ...

    @property
    def directory(self) -> Directory: ...

    def watch(self, watcher: NetworkWatcher) -> None:
        """Tell ``watcher`` when the network is lost for a time, and when it is back, the directory too."""

    def on_peer(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with the PeerID of each peer that was found on the LAN, and each that will be."""

    async def direct_maddrs(self) -> tuple[str, ...]:
        """Where others can dial this process itself, marked as such; none if it has no such listener."""

    async def figures(self) -> NetworkFigures:
        """Never raises: what is not known now is as it was last."""

    async def failed(self) -> None:
        """Waits until the network is lost for good, then raises the SwarmError to show."""

    async def close(self) -> None:
        """Idempotent."""


def network_event(
    change: NetworkChange,
) -> tuple[Literal["network_lost", "network_restored"], dict[str, object]]:
    """Name and details of the NodeEvent for it."""
    match change:
        case NetworkLost(message):
            return "network_lost", {"message": message}
        case NetworkRestored(seconds):
            return "network_restored", {"seconds": round(seconds, 3)}


class GivenNetwork:
    """A transport and a directory that exist already, such as the in-memory ones of tests."""

    def __init__(self, transport: Transport, directory: Directory) -> None:
        self.transport = transport
        self.directory = directory

    def watch(self, watcher: NetworkWatcher) -> None:
        """Does nothing: this network does not change."""

    def on_peer(self, callback: Callable[[str], None]) -> None:
        """Does nothing: no peer is looked for."""

    async def direct_maddrs(self) -> tuple[str, ...]:
        return ()

    async def figures(self) -> NetworkFigures:
        return NetworkFigures()

    async def failed(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        await self.directory.close()
        await self.transport.close()


class JoinedNetwork(GivenNetwork):
    """Everything that was opened to join a swarm, closed together. ``meetings`` goes on finding its peers."""

    def __init__(
        self,
        transport: Transport,
        directory: HivemindDirectory | DelegatedDirectory,
        membership: Membership | None,
        listen_maddrs: tuple[str, ...],
        p2pd: P2pdTransport | None,
        listener: DirectTransport | None = None,
    ) -> None:
        """``listen_maddrs``: what mDNS tells others. ``p2pd``: what the directory needs, None if nothing.
        ``listener``: what takes the streams of those that dial this process itself."""
        super().__init__(transport, directory)
        self._listener = listener
        self._membership = membership
        self._p2pd = p2pd
        self._callbacks: list[Callable[[str], None]] = []
        self._copies = LanCopies(
            transport.peer_id,
            directory,
            partial(_read_nodes, membership=membership),
            clock=time.monotonic,
        )
        self.meetings = Meetings(
            directory,
            tag="" if membership is None else membership.tag,
            own_id=transport.peer_id,
            listen_maddrs=listen_maddrs,
            on_met=self._on_met,
            on_namesake=self._copies.found,
        )

    def watch(self, watcher: NetworkWatcher) -> None:
        if self._p2pd is not None:
            self._p2pd.watch(watcher)

    def on_peer(self, callback: Callable[[str], None]) -> None:
        self._callbacks.append(callback)
        for peer_id in self.meetings.met:
            callback(peer_id)

    async def direct_maddrs(self) -> tuple[str, ...]:
        return () if self._listener is None else direct_maddrs(await self._listener.maddrs())

    async def figures(self) -> NetworkFigures:
        if self._p2pd is None:
            return NetworkFigures()
        return NetworkFigures(self._p2pd.connected, await self._p2pd.relayed_bytes())

    async def failed(self) -> None:
        ends: list[asyncio.Future[SwarmError]] = [asyncio.ensure_future(membership_over(self._membership))]
        if self._p2pd is not None:
            ends.append(asyncio.ensure_future(self._p2pd.died()))
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        raise next(iter(done)).result()

    async def stop_meeting(self) -> None:
        """Find no more peers. Idempotent."""
        await self.meetings.close()
        await self._copies.close()

    async def close(self) -> None:
        await self.stop_meeting()
        await super().close()

    def _on_met(self, peer_id: str) -> None:
        for callback in self._callbacks:
            callback(peer_id)


async def open_network(
    identity: Identity,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    announce_maddrs: Sequence[str] = (),
    initial_peers: Sequence[str] = (),
    relays: Sequence[str] = (),
    is_relay: bool = False,
    membership: Membership | None = None,
    may_meet: Sequence[str] = (),
    mdns: bool = False,
    pure_python: bool = False,
    direct: DirectOptions | None = None,
    bandwidth: Bandwidth = UNLIMITED,
) -> Network:
    """A place in a swarm for a peer that serves: start a p2pd that listens on TCP ``host:port``, and join the
    DHT through ``initial_peers``. ``host`` may be EVERY_INTERFACE.

    ``relays``: peers through which others reach us if they cannot dial us; ``is_relay``: be one for others.
    Both are tried before this returns. ``membership``: be in this swarm, and speak only with its members.
    ``may_meet``: peers to join through as well, if they answer; they are tried again and again. ``mdns``:
    find the swarm's peers on this LAN and be found, now and later; not where ``host`` is this machine only.
    ``pure_python``: be a light peer, without p2pd and the DHT, which asks nodes that have them; so is every
    peer where there is no p2pd. ``direct``: dial others from process to process where they listen for that,
    and listen for it; a light peer always does. ``bandwidth``: of all streams together; what a daemon says by
    itself, such as for the DHT or as a relay, is not among them.

    Raises ListenError (port in use, no address), PeerUnreachableError, NotAdmittedError, UsageError and other
    NetworkErrors. For a light peer it is an error if no peer is found.
    """
    light = pure_python or lacks_p2pd()
    if light and (relays or is_relay):
        raise UsageError("relays need p2pd", hint="Leave --relay or --pure-python out.")
    if light and not (initial_peers or may_meet or mdns):
        raise UsageError(
            "a pure-Python peer cannot begin a swarm of its own, and no address of one is given",
            hint="Start one elsewhere (swarm-node bootstrap) and give its address with --initial-peers.",
        )
    where = listen_maddrs(host, port)
    book = open_book(identity, initial_peers, membership)
    p2pd: P2pdTransport | None = None
    opened: P2pdTransport | DirectTransport
    listener: DirectTransport | None = None
    if light:
        opened = listener = await DirectTransport.create(
            identity, host_maddrs=where, announce_maddrs=announce_maddrs
        )
    else:
        opened = p2pd = await connect_in(
            identity,
            initial_peers,
            book,
            host_maddrs=where,
            announce_maddrs=announce_maddrs,
            relays=relays,
            is_relay=is_relay,
        )
    transport: Transport = opened
    directory: HivemindDirectory | DelegatedDirectory
    try:
        if light:  # whose own listener takes both kinds of streams
            dialler = await DirectTransport.create(identity, client_mode=True, apart=True)
            transport = PathsTransport(dialler, {Way.DAEMON: opened})
        elif direct is not None and p2pd is not None:
            listens = bool(direct.announce) or not announce_maddrs
            listener = await open_direct(identity, direct, listen_at=(host, port) if listens else None)
            transport = paths = PathsTransport(listener, {Way.DAEMON: p2pd})
            p2pd.watch(paths.on_network)
        transport = among_members(limited(transport, bandwidth), membership)
        if not await transport.maddrs():
            raise no_own_address(host)
        if p2pd is None:
            directory = DelegatedDirectory(
                transport, identity, initial_peers, membership=membership, book=book, serves=True
            )
            await directory.join()
        else:
            from ...swarm.transport.p2pd.relay_check import check_reachable, check_relaying, make_relay
            from ..kademlia.directory import HivemindDirectory

            if relays:
                await check_relaying(relays)
                await check_reachable(p2pd.peer_id, relays)
            if is_relay:
                await make_relay(p2pd)
            directory = await HivemindDirectory.create(
                p2pd, identity, initial_peers, membership=membership, book=book
            )
            await serve_entries(transport, directory, membership)
    except BaseException:
        await transport.close()
        raise
    network = JoinedNetwork(transport, directory, membership, opened.listen_maddrs, p2pd, listener)
    try:
        await network.meetings.begin(
            may_meet,
            mdns=mdns and not all_loopback(where),
            joined=bool(initial_peers),
            needed=light,
        )
    except BaseException:
        await network.close()
        raise
    return network


async def connect_in(
    identity: Identity, initial_peers: Sequence[str], book: AddressBook, **options: Any
) -> P2pdTransport:
    """A transport that is connected to an initial peer or, where none of them answers, to one of the book.
    ``options`` and errors are those of ``P2pdTransport.create``."""
    # Here: hivemind is not for callers with a network of their own.
    from ...swarm.transport.p2pd.transport import P2pdTransport

    try:
        return await P2pdTransport.create(identity, initial_peers=initial_peers, **options)
    except (PeerUnreachableError, PeerTimeoutError) as error:
        known = [f"{maddr}/p2p/{peer.peer_id}" for peer in book.peers()[:MOST_TRIED] for maddr in peer.maddrs]
        if not known:
            raise
        logger.warning("event=initial_peers_silent known=%d error=%r", len(known), error.message)
        try:
            return await P2pdTransport.create(identity, initial_peers=(*initial_peers, *known), **options)
        except (PeerUnreachableError, PeerTimeoutError):
            raise error from None


async def _read_nodes(addresses: Sequence[str], membership: Membership | None) -> list[NodeInfo]:
    """What the peer at some of these addresses knows of the swarm's nodes, asked over a transport and with an
    identity of its own. Raises SwarmError."""
    identity = Identity.generate()
    transport = among_members(await DirectTransport.create(identity, client_mode=True), membership)
    try:
        return await DelegatedDirectory(transport, identity, addresses, membership=membership).all_nodes()
    finally:
        await transport.close()


def lacks_p2pd() -> bool:
    """Whether this installation cannot run p2pd, as on Windows: then a pure-Python peer is all there is."""
    return find_spec("hivemind") is None


def among_members(transport: Transport, membership: Membership | None) -> Transport:
    return transport if membership is None else MembersTransport(transport, membership)


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
