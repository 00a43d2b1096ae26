"""The way into a swarm's DHT: through the initial peers, or, where none of them answers, through peers that
did before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ...swarm.errors import PeerTimeoutError, PeerUnreachableError
from ...swarm.identity import Identity
from ...swarm.transport.p2pd.transport import P2pdTransport
from ..address_book import AddressBook

MOST_TRIED = 8
"""Peers of the book that a start tries besides the initial peers: those that are known for longest."""

logger = logging.getLogger(__name__)


async def connect_in(
    identity: Identity, initial_peers: Sequence[str], book: AddressBook, **options: Any
) -> P2pdTransport:
    """A transport that is connected to an initial peer or, where none answers, to one of the book;
    ``options`` and errors as of ``P2pdTransport.create``."""
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
