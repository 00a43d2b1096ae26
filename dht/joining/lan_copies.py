"""A peer on this LAN claims our identity by mDNS: it is dialled, and its announcements are read.

Two machines with one identity do not meet in the directory, since a peer does not dial itself. mDNS proves
nothing; the dial does, and the announcement is signed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ...swarm.discovery.mdns_records import LanPeer
from ...swarm.errors import SwarmError
from ...swarm.faults import Faults
from ...swarm.runtime.tasks import cancel_all
from ...swarm.types import NodeInfo

PAUSE_S = 20.0
"""Seconds between two looks. Each may start a daemon, and every machine on the network can cause one."""
LOOK_S = 20.0
"""Seconds for one look."""

logger = logging.getLogger(__name__)

Read = Callable[[Sequence[str]], Awaitable[list[NodeInfo]]]
"""What the peer at some of these addresses knows of the swarm's nodes. Raises SwarmError."""


class NamesakeDirectory(Protocol):
    def met_namesake(self, maddrs: Sequence[str], knows: Sequence[NodeInfo]) -> None: ...


class LanCopies:
    """``found`` takes what mDNS tells; the result goes to the directory. ``clock`` gives seconds."""

    def __init__(
        self, own_id: str, directory: NamesakeDirectory, read: Read, *, clock: Callable[[], float]
    ) -> None:
        self._own_id = own_id
        self._directory = directory
        self._read = read
        self._clock = clock
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._faults = Faults("looking at a namesake on this LAN")

    def found(self, peer: LanPeer) -> None:
        """A peer that says that it is us, elsewhere. Never waits."""
        if self._looking is not None and not self._looking.done():
            return
        if self._clock() - self._looked_at >= PAUSE_S:
            self._looked_at = self._clock()
            self._looking = asyncio.create_task(self._look(peer), name="namesake on this LAN")

    async def close(self) -> None:
        if self._looking is not None:
            await cancel_all([self._looking])

    async def _look(self, peer: LanPeer) -> None:
        with self._faults.survived():
            try:
                async with asyncio.timeout(LOOK_S):
                    nodes = await self._read([f"{maddr}/p2p/{self._own_id}" for maddr in peer.maddrs])
            except (SwarmError, TimeoutError) as error:
                logger.debug("event=no_namesake maddrs=%s error=%r", ",".join(peer.maddrs), str(error))
                return
            self._directory.met_namesake(peer.maddrs, nodes)
