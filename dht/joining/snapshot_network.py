"""A place in a swarm without p2pd: the pure-Python transport, and the directory that asks others."""

from __future__ import annotations

from collections.abc import Sequence

from ...swarm.identity import Identity
from ...swarm.membership.membership import Membership
from ...swarm.membership.transport import MembersTransport
from ...swarm.transport.interface import Transport
from ...swarm.transport.pure_python.transport import PyLibp2pTransport
from ..address_book import open_book
from ..delegated.directory import SnapshotDirectory


async def join_by_snapshot(
    identity: Identity,
    initial_peers: Sequence[str] = (),
    *,
    host_maddrs: Sequence[str] = (),
    announce_maddrs: Sequence[str] = (),
    membership: Membership | None = None,
) -> tuple[Transport, SnapshotDirectory, tuple[str, ...]]:
    """Listen at ``host_maddrs``, if there are any, and meet the initial peers; the transport and directory,
    to be closed by the caller, and where it listens.

    Raises UsageError (py-libp2p is missing, an address is none), ListenError, PeerUnreachableError,
    NotAdmittedError and other NetworkErrors.
    """
    plain = await PyLibp2pTransport.create(
        identity, host_maddrs=host_maddrs, announce_maddrs=announce_maddrs, client_mode=not host_maddrs
    )
    transport: Transport = plain if membership is None else MembersTransport(plain, membership)
    try:
        book = open_book(identity, initial_peers, membership)
        directory = await SnapshotDirectory.create(
            transport, identity, initial_peers, membership=membership, book=book
        )
    except BaseException:
        await transport.close()
        raise
    return transport, directory, plain.listen_maddrs
