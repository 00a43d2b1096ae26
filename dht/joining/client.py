"""The way into a swarm for a process that serves nothing: by itself, without a daemon and without the DHT.

It dials nodes and asks them for the signed entries of the directory. If that is not enough, it starts p2pd:
for a peer that cannot be dialled over plain TCP, and for this peer alone; or to look into the DHT, where
nodes were reached and none answers such questions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ...swarm.errors import NetworkError, UsageError
from ...swarm.identity import Identity
from ...swarm.membership.entry import SwarmEntry
from ...swarm.transport.direct.transport import DirectTransport
from ...swarm.transport.direct.with_daemon import LazyDaemonTransport
from ...swarm.transport.direct_maddrs import Way
from ...swarm.transport.interface import Transport
from ...swarm.transport.paths.transport import PathsTransport
from ..address_book import AddressBook, open_book
from ..delegated.directory import DelegatedDirectory
from .network import JoinedNetwork, Network, among_members, lacks_p2pd

if TYPE_CHECKING:
    from ...swarm.transport.p2pd.transport import P2pdTransport
    from ..kademlia.directory import HivemindDirectory

OnProgress = Callable[[str], None]
"""Called with one short line for people."""

logger = logging.getLogger(__name__)


async def join_as_client(entry: SwarmEntry, on_progress: OnProgress | None = None) -> Network:
    """A place in the swarm under an identity of this session only. ``on_progress`` is told when p2pd is
    started, and why. With ``entry.pure_python`` it never is.

    Raises PeerUnreachableError if no peer is found, NotAdmittedError, UsageError and other NetworkErrors.
    """
    if entry.is_alone:
        raise UsageError(
            "no address of the swarm is given",
            hint="Give --initial-peers ADDR (what swarm-node bootstrap or serve prints) or --join INVITE, or "
            "let mDNS look for it.",
        )
    identity, membership = Identity.generate(), entry.membership
    known = entry.initial_peers or entry.may_meet
    book = open_book(identity, known, membership) if known else AddressBook()
    others = await DirectTransport.create(identity, client_mode=True)
    direct = await DirectTransport.create(identity, client_mode=True, apart=True)
    lazy: LazyDaemonTransport[P2pdTransport] | None = None
    if not (entry.pure_python or lacks_p2pd()):
        lazy = LazyDaemonTransport(others, lambda: _start_p2pd(identity), on_progress or (lambda line: None))
    transport = among_members(PathsTransport(direct, {Way.DAEMON: lazy or others}), membership)
    try:
        asked = DelegatedDirectory(transport, identity, entry.initial_peers, membership=membership, book=book)
        try:
            await asked.join()
            return await _meeting(entry, transport, asked, None)
        except NetworkError as error:
            if lazy is None or not asked.reached:
                raise
            logger.info("event=nobody_answers error=%r", error.message)
            await asked.close()
        p2pd = await lazy.daemon("the nodes that were reached answer only in the DHT")
        from ..kademlia.directory import HivemindDirectory

        directory = await HivemindDirectory.create(
            p2pd, identity, entry.initial_peers, client_mode=True, membership=membership, book=book
        )
        return await _meeting(entry, transport, directory, p2pd)
    except BaseException:
        await transport.close()
        raise


@asynccontextmanager
async def joined_if_any(
    entry: SwarmEntry, on_progress: OnProgress | None = None
) -> AsyncIterator[Network | None]:
    """As ``join_as_client``, until the block ends; None where no swarm is found, and none was named."""
    network: Network | None = None
    if not entry.is_alone:
        try:
            network = await join_as_client(entry, on_progress)
        except NetworkError:
            if entry.initial_peers or entry.may_meet:
                raise
    try:
        yield network
    finally:
        if network is not None:
            await network.close()


async def _meeting(
    entry: SwarmEntry,
    transport: Transport,
    directory: DelegatedDirectory | HivemindDirectory,
    p2pd: P2pdTransport | None,
) -> JoinedNetwork:
    """With the peers that need not be there: those of an invite, and of this LAN if no initial peer is
    given. Raises as ``Meetings.begin``; the transport stays open then."""
    network = JoinedNetwork(transport, directory, entry.membership, (), p2pd)
    try:
        await network.meetings.begin(
            entry.may_meet,
            mdns=entry.mdns and not entry.initial_peers,
            joined=bool(entry.initial_peers),
            needed=True,
        )
    except BaseException:
        await network.stop_meeting()
        await directory.close()
        raise
    return network


async def _start_p2pd(identity: Identity) -> P2pdTransport:
    await asyncio.to_thread(_import_p2pd)
    from ...swarm.transport.p2pd.transport import P2pdTransport

    return await P2pdTransport.create(identity, client_mode=True)


def _import_p2pd() -> None:
    """In a thread: it takes a tenth of a second."""
    from ...swarm.transport.p2pd import transport  # noqa: F401
