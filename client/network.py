"""A client's place in the network: a p2pd that does not listen, and the directory over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..dht.directory import Directory
from ..swarm.errors import UsageError
from ..swarm.membership.entry import SwarmEntry
from ..swarm.runtime.lazy_scipy import make_lazy
from ..swarm.transport.interface import Transport
from .local_model import OnProgress
from .routing.demand import DemandTeller

if TYPE_CHECKING:
    from ..dht.delegated.directory import SnapshotDirectory
    from ..dht.joining.meetings import Meetings
    from ..dht.kademlia.directory import HivemindDirectory
    from ..swarm.identity import Identity


@dataclass(frozen=True, slots=True)
class ClientNetwork:
    """Where to find nodes and how to reach them; the in-memory ones of tests, too. ``demand``: what this
    client tells the swarm that it misses. ``meetings``: what goes on finding peers."""

    transport: Transport
    directory: Directory
    demand: DemandTeller = field(default=None)  # type: ignore[assignment]  # never None: see below
    meetings: Meetings | None = None

    def __post_init__(self) -> None:
        if self.demand is None:
            object.__setattr__(self, "demand", DemandTeller(self.directory))

    async def close(self) -> None:
        if self.meetings is not None:
            await self.meetings.close()
        await self.demand.close()
        await self.directory.close()
        await self.transport.close()


async def open_network(
    entry: SwarmEntry | Sequence[str], on_progress: OnProgress | None = None
) -> ClientNetwork:
    """Join a swarm as ``entry`` says, or through the addresses of some of its peers, under an identity of
    this session only. ``on_progress``: called with a line of text while peers are looked for.

    Raises UsageError, PeerUnreachableError, NotAdmittedError and other NetworkErrors.
    """
    if not isinstance(entry, SwarmEntry):
        entry = SwarmEntry((entry,) if isinstance(entry, str) else tuple(entry), mdns=False)
    if entry.is_alone:
        raise UsageError(
            "nothing says where the swarm is",
            hint="Give the addresses that swarm-node bootstrap or serve prints, or an invite, or allow mDNS.",
        )
    from ..dht.joining.meetings import Meetings
    from ..swarm.identity import Identity
    from ..swarm.transport.pure_python.imports import lacks_p2pd

    identity = Identity.generate()
    join = _by_snapshot if entry.pure_python or lacks_p2pd() else _by_dht
    transport, directory = await join(identity, entry)
    try:
        meetings = Meetings(directory, tag=entry.tag, own_id=identity.peer_id)
        joined = bool(entry.initial_peers)
        try:
            if on_progress is not None and not joined:
                on_progress("Looking for the swarm ...")
            # Who was told addresses looks no further: others of the LAN may be of no use to it.
            await meetings.begin(entry.may_meet, mdns=entry.mdns and not joined, joined=joined, needed=True)
        except BaseException:
            await meetings.close()
            await directory.close()
            raise
    except BaseException:
        await transport.close()
        raise
    return ClientNetwork(transport, directory, meetings=meetings)


async def _by_dht(identity: Identity, entry: SwarmEntry) -> tuple[Transport, HivemindDirectory]:
    # hivemind and torch cost a second and 240 MB at import: only those who dial a swarm pay that.
    make_lazy()
    from ..dht.address_book import open_book
    from ..dht.joining.way_in import connect_in
    from ..dht.kademlia.directory import HivemindDirectory
    from ..swarm.membership.transport import MembersTransport

    membership = entry.membership
    book = open_book(identity, entry.initial_peers, membership)
    p2pd = await connect_in(identity, entry.initial_peers, book, client_mode=True)
    transport: Transport = p2pd if membership is None else MembersTransport(p2pd, membership)
    try:
        directory = await HivemindDirectory.create(
            p2pd, identity, entry.initial_peers, client_mode=True, membership=membership, book=book
        )
    except BaseException:
        await transport.close()
        raise
    return transport, directory


async def _by_snapshot(identity: Identity, entry: SwarmEntry) -> tuple[Transport, SnapshotDirectory]:
    from ..dht.joining.snapshot_network import join_by_snapshot

    transport, directory, _ = await join_by_snapshot(
        identity, entry.initial_peers, membership=entry.membership
    )
    return transport, directory
