"""The directory in a Kademlia DHT, in our own event loop and over our own transport; on the wire it is
hivemind's."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from hivemind.p2p import P2PDaemonError

from ...swarm.errors import NetworkError, NotAdmittedError
from ...swarm.fairness.gate import FairGate
from ...swarm.identity import Identity
from ...swarm.membership.membership import Membership
from ...swarm.transport.address_groups import address_group
from ...swarm.transport.interface import NetworkChange, NetworkRestored
from ...swarm.types import ModelRef, NodeInfo
from ..address_book import AddressBook
from ..directory import TTL_S
from ..records.directory import Clock, RecordDirectory
from ..records.entry_check import EntryCheck
from ..records.kept_entries import KeptEntries
from ..records.keys import index_hashes
from .bootstrap import PING_INTERVAL_S, Bootstrap, DialingTransport
from .gated_calls import RATES, GatedP2P
from .members import MembersP2P
from .node import KademliaNode
from .replicas import Lookup, Replicas

SHUTDOWN_S = 3.0
"""Seconds to take leave of the DHT. Peers that are not told notice it by themselves."""
WIDE_S = 600.0
"""Entries are also stored at the initial peers for this many seconds after others did not return what we
announced."""

REMEMBERED = 8
"""One reading of a model offers this many of its nodes to the address book, chosen by chance."""

logger = logging.getLogger(__name__)


class HivemindDirectory(RecordDirectory[Lookup]):
    """Implements Directory. ``announce`` signs with ``identity``, which must be the transport's.

    ``client_mode``: reads and announces, but keeps nothing for others.
    """

    def __init__(
        self,
        identity: Identity,
        node: KademliaNode,
        bootstrap: Bootstrap,
        ttl: float,
        clock: Clock,
        membership: Membership | None = None,
    ) -> None:
        """Use ``create``."""
        super().__init__(identity, ttl, clock, membership)
        self._node = node
        self._bootstrap = bootstrap
        tag = "" if membership is None else membership.tag
        self._replicas = Replicas(node, clock, tag, bootstrap.anchors)
        self._pings: asyncio.Task[None] | None = None
        self._closed = False
        self._wide_until = -math.inf  # until when entries are stored at the initial peers, too

    @classmethod
    async def create(
        cls,
        transport: DialingTransport,
        identity: Identity,
        initial_peers: Sequence[str] = (),
        *,
        client_mode: bool = False,
        ttl: float = TTL_S,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        ping_interval: float = PING_INTERVAL_S,
        membership: Membership | None = None,
        book: AddressBook | None = None,
    ) -> HivemindDirectory:
        """Join the DHT that ``initial_peers`` belong to, or start one if there are none.

        ``membership``: ask, answer and trust members of this swarm only. ``book``: peers that answered
        before. Raises UsageError for malformed addresses, PeerUnreachableError if no initial peer answers,
        NotAdmittedError if they are of another swarm, and NetworkError if all their clocks differ from
        ``clock`` (Unix time in seconds) by more than 3 s. All nodes of a DHT must use the same ``ttl``.
        """

        async def group_of(peer_id: str) -> str:
            return address_group(await transport.remote_maddr(peer_id))

        p2p: Any = GatedP2P(transport.p2p, group_of, FairGate(RATES, clock=steady))
        if membership is not None:
            p2p = MembersP2P(p2p, membership, identity.peer_id, clock)
        tag = "" if membership is None else membership.tag
        node = KademliaNode(
            p2p,
            KeptEntries(index_hashes(tag), clock=clock),
            EntryCheck(ttl, clock, membership),
            clock=clock,
            steady=steady,
            group_of=group_of,
            client_mode=client_mode,
        )
        await node.start()
        try:
            bootstrap = Bootstrap(node, transport, initial_peers, clock, book)
            await bootstrap.join()
        except BaseException:
            await node.close()
            raise
        directory = cls(identity, node, bootstrap, ttl, clock, membership)
        transport.watch(directory._on_network)
        directory._pings = asyncio.create_task(bootstrap.run(ping_interval), name="bootstrap pings")
        return directory

    async def meet(self, peer_id: str, maddrs: Sequence[str]) -> bool:
        """Join with a peer that was found after the start, and with the DHT that it is in; whether it
        answers, and belongs to this swarm. ``maddrs``: without /p2p/."""
        return not self._closed and await self._bootstrap.meet(peer_id, maddrs)

    def forget(self, peer_id: str) -> None:
        """A peer that was met is lost, as far as its finder knows."""
        self._bootstrap.forget(peer_id)

    @property
    def refusals(self) -> list[NotAdmittedError]:
        """Why peers that we know are not in this swarm, or why we are not in theirs."""
        return list(self._bootstrap.refusals.values())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._pings is not None:
            self._pings.cancel()
            await asyncio.gather(self._pings, return_exceptions=True)
        try:
            async with asyncio.timeout(SHUTDOWN_S):
                await self._bootstrap.close()
                await self._node.close()
        except (TimeoutError, OSError, EOFError, P2PDaemonError) as error:
            # A daemon that was stopped before us takes no farewell, and may leave the call unanswered.
            logger.debug("the DHT node could not take leave: %r", error)

    async def _on_network(self, change: NetworkChange) -> None:
        if isinstance(change, NetworkRestored) and not self._closed:
            await self._bootstrap.rejoin()

    @property
    def clock_problem(self) -> str | None:
        """A sentence for people while our clock and those of all initial peers differ too much."""
        return self._bootstrap.clock_problem()

    async def _lookup(self, keys: Sequence[str]) -> Lookup:
        if self._closed:
            raise NetworkError("the directory is closed")
        found = await self._replicas.lookup(keys)
        if not found.answers and found.failures + self._node.client_mode:
            await self._bootstrap.heal()  # the nodes we knew are gone; those we know from before may be there
            found = await self._replicas.lookup(keys)
            if self._node.client_mode and not found.answers:
                raise NetworkError(
                    "no peer of the swarm's directory answers",
                    hint="Check this computer's network, and that the peers of --initial-peers or of the "
                    "invite run.",
                )
        return found

    async def nodes(self, model: ModelRef) -> list[NodeInfo]:
        found = await super().nodes(model)
        for info in random.sample(found, min(REMEMBERED, len(found))):
            self._bootstrap.remember(info.peer_id, info.maddrs)
        return found

    async def _store(self, key: str, expiration: float, value: bytes, found: Lookup) -> NetworkError | None:
        return await self.store(self._identity.peer_id, key, expiration, value, found)

    async def _copies(self, key: str, owner: str) -> tuple[int, int]:
        found = await self._replicas.lookup([key], own=False, count=owner)
        return found.copies, found.answers

    async def _on_few_copies(self) -> None:
        self._wide_until = self._clock() + WIDE_S
        await self._bootstrap.heal()

    async def entries(self, keys: Sequence[str]) -> Lookup:
        """The live entries of keys, for peers that ask us instead of the DHT. Raises NetworkError."""
        return await self._lookup(keys)

    async def store(
        self, owner: str, key: str, expiration: float, value: bytes, found: Lookup | None = None
    ) -> NetworkError | None:
        """Store an entry that ``owner`` signed, at the DHT nodes nearest to its key. Returns the reason if
        none took it. ``found``: a lookup of this key."""
        also = self._bootstrap.initial() if self._clock() < self._wide_until else ()
        result = await self._replicas.write(
            owner, value, expiration, key, found or await self._lookup([key]), also
        )
        if result.accepted or (result.own and not result.refused):
            return None
        if result.refused:
            await self._bootstrap.ping_all()
            full = "they have no room for more nodes of these blocks"
            return NetworkError(
                f"{result.refused} directory nodes refuse our announcement: {self.clock_problem or full}"
            )
        return NetworkError("no peer of the swarm's directory answers: our announcement was not stored")
