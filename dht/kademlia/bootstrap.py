"""Keeping in touch with the peers a node was told to start from, has found, or knows from before, and
comparing clocks with them.

A bootstrap node that restarts has forgotten all peers, and no peer asks it any more. It stays alone until a
peer that knows its address pings it. So every node pings its initial peers for as long as it runs. A node
whose table is empty, or whose look-ups find no peer, begins anew with the initial peers and its address book.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

from hivemind.p2p import P2P

from ...swarm.errors import NetworkError, NotAdmittedError, PeerUnreachableError
from ...swarm.fairness.recent import RecentMap
from ...swarm.faults import Faults
from ...swarm.runtime.tasks import in_thread
from ...swarm.transport.addresses import PeerAddress
from ...swarm.transport.dial_guard import same_host
from ...swarm.transport.interface import NetworkWatcher
from ...swarm.transport.resolve import resolve_all
from ..address_book import AddressBook, KnownPeer
from ..records.entry_check import ClockReading, clock_problem
from .contacts import Contact, contact_of
from .members import refusal_of
from .node import KademliaNode
from .replicas import LOOKUP_TIMEOUT_S

PING_INTERVAL_S = 15.0
"""Seconds between rounds of pings. A restarted bootstrap node whose absence was not noticed stays alone for
as long."""
MISSED_INTERVAL_S = 5.0
"""The same while one of them does not answer. p2pd does not dial a failed address sooner."""

DIAL_TIMEOUT_S = 5.0
HEAL_INTERVAL_S = 5.0
"""``heal`` begins anew at most once in this many seconds."""
REFRESH_ROUNDS = 4
"""The routing table is refreshed once in this many rounds of pings."""
ANCHORS = 3
"""Every look-up asks this many peers that are known from the start or from before, drawn anew each time."""
MAX_INITIAL = 8
"""This many initial peers keep the entries of a node which other nodes do not return."""
MAX_ANNOUNCED = 64
"""At most this many peers wait to be taken into the book."""
MAX_REMEMBERED = 512
"""The clocks or refusals of this many peers are remembered: more than are pinged at once."""
AT_ONCE = 8
"""This many peers of the book are dialled side by side."""
MAX_FOUND = 32
"""At most this many peers that were found are pinged in every round; the others are met through them."""

logger = logging.getLogger(__name__)


class DialingTransport(Protocol):
    """The part of P2pdTransport that a directory uses."""

    p2p: P2P

    async def connect(self, peer_id: str, maddrs: Sequence[str] = ..., timeout: float = ...) -> None: ...

    async def remote_maddr(self, peer_id: str) -> str: ...

    def watch(self, watcher: NetworkWatcher) -> None: ...


class Bootstrap:
    """Pings ``initial_peers``, multiaddresses ending in /p2p/PEER. Raises UsageError for malformed ones."""

    def __init__(
        self,
        node: KademliaNode,
        transport: DialingTransport,
        initial_peers: Sequence[str],
        clock: Callable[[], float],
        book: AddressBook | None = None,
    ) -> None:
        self._node = node
        self._transport = transport
        self._clock = clock
        self._book = AddressBook(clock=clock) if book is None else book
        self._peers: dict[str, list[str]] = {}  # peer id -> its addresses, without /p2p/
        self._found: dict[str, list[str]] = {}  # the same, of those that were met later
        for text in initial_peers:
            peer = PeerAddress.parse(text)
            if peer.peer_id != node.contact.peer_id:
                self._peers.setdefault(peer.peer_id, []).append(peer.maddr)
        self._faults = Faults("keeping in touch with the directory")
        self._announced: dict[str, tuple[str, ...]] = {}  # peers that may belong into the book
        self._healing: asyncio.Task[None] | None = None
        self._healed_at = -math.inf
        # By peer id: of those that answered last time, and of those that do not belong with us.
        self.clock_readings: RecentMap[str, ClockReading] = RecentMap(MAX_REMEMBERED)
        self.refusals: RecentMap[str, NotAdmittedError] = RecentMap(MAX_REMEMBERED)

    def initial(self) -> list[Contact]:
        """The peers that we began with and that answer, MAX_INITIAL at most."""
        awake = (peer_id for peer_id in self._peers if not self._node.notes.is_silent(peer_id))
        return [contact_of(peer_id) for peer_id in islice(awake, MAX_INITIAL)]

    def anchors(self) -> list[Contact]:
        """Some of the peers that we began with or know from before, which a look-up asks in any case. A
        client's always has an initial peer among them: a node that is hidden elsewhere is stored there."""
        initial = self.initial()
        chosen = random.sample(initial, min(1, len(initial))) if self._node.client_mode else []
        book = (contact_of(peer.peer_id) for peer in self._book.peers())
        known = {*initial, *map(contact_of, self._found), *book}.difference(chosen)
        awake = sorted(
            (contact for contact in known if not self._node.notes.is_silent(contact.peer_id)),
            key=lambda contact: contact.peer_id,
        )
        return chosen + random.sample(awake, min(ANCHORS - len(chosen), len(awake)))

    async def join(self) -> None:
        """Meet the initial peers, or those of the address book if none of them answers, and through them the
        nodes nearest to us.

        Raises PeerUnreachableError if there are some and none answers, NotAdmittedError if they are of
        another swarm, NetworkError if their clocks all differ from ours by more than MAX_CLOCK_SKEW_S.
        """
        if not self._peers:
            return
        if not await self.ping_all() and not await self._ping_book():
            for refusal in self.refusals.values():
                raise refusal
            listed = ", ".join(
                f"{maddr}/p2p/{peer_id}" for peer_id, maddrs in self._peers.items() for maddr in maddrs
            )
            raise PeerUnreachableError(
                f"no peer answers at {listed}",
                hint="Check that the node there runs, and the address, port and PeerID that it prints.",
            )
        if (message := self.clock_problem()) is not None:
            raise NetworkError(message, hint="Set both clocks by network time (NTP), then start again.")
        await self._meet_nearest()

    async def meet(self, peer_id: str, maddrs: Sequence[str]) -> bool:
        """Meet a peer that was found after the start, and through it the nodes nearest to us; whether it
        answers. It is pinged from now on, until ``forget``."""
        if peer_id == self._node.contact.peer_id:
            return False
        if peer_id not in self._peers and (peer_id in self._found or len(self._found) < MAX_FOUND):
            self._found[peer_id] = list(maddrs)
        known = peer_id in self.clock_readings
        if not await self._ping(peer_id, maddrs):
            return False
        if not known:
            await self._meet_nearest()
        return True

    def forget(self, peer_id: str) -> None:
        """A peer that was found is lost: ping it no more."""
        self._found.pop(peer_id, None)
        if peer_id not in self._peers:
            self.clock_readings.pop(peer_id, None)
            self.refusals.pop(peer_id, None)

    async def rejoin(self) -> None:
        """The same after our own network was lost. No peer need answer: ``run`` goes on trying."""
        self._node.notes.forgive_silence()  # it was our fault that they did not answer
        pings = [asyncio.ensure_future(self._ping(*peer)) for peer in (self._peers | self._found).items()]
        met = False
        try:
            for ping in asyncio.as_completed(pings):
                if met := await ping:
                    break
        finally:
            for task in pings:
                task.cancel()
            await asyncio.gather(*pings, return_exceptions=True)
        if not met:
            await self._ping_book()
        await self._meet_nearest()

    async def heal(self) -> None:
        """Begin anew with all peers that we know from the start and from before, since no peer answers or
        none returns our entry. This happens at most once in HEAL_INTERVAL_S; a call meanwhile waits for the
        one under way."""
        if self._healing is None or self._healing.done():
            if self._clock() - self._healed_at < HEAL_INTERVAL_S:
                return
            self._healing = asyncio.create_task(self._heal(), name="directory healing")
        await asyncio.shield(self._healing)

    def remember(self, peer_id: str, maddrs: Sequence[str]) -> None:
        """A peer announces these addresses: kept in the book if it takes part in the DHT."""
        if peer_id in self._announced or len(self._announced) < MAX_ANNOUNCED:
            self._announced[peer_id] = tuple(maddrs)

    async def _keep_book(self) -> None:
        """Save the book with the peers that were met. Of their addresses only those at the host where each
        was seen are kept, so that a peer cannot make us dial another's host."""
        announced, self._announced = self._announced, {}
        for peer_id, maddrs in announced.items():
            if contact_of(peer_id) in self._node.table:
                self._book.answered(peer_id, same_host(maddrs, await self._transport.remote_maddr(peer_id)))
        await in_thread(self._book.save)

    async def close(self) -> None:
        """End what ``heal`` began, and keep the book."""
        if self._healing is not None:
            self._healing.cancel()
            await asyncio.gather(self._healing, return_exceptions=True)
        await self._keep_book()

    async def _heal(self) -> None:
        logger.info("event=rejoining known=%d table=%d", len(self._book), len(self._node.table))
        await asyncio.gather(self.ping_all(), self._ping_book())
        await self._meet_nearest()
        self._healed_at = self._clock()

    async def _ping_book(self) -> int:
        """Ping the peers of the address book that are not pinged anyway; returns how many answer."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def ping(peer: KnownPeer) -> bool:
            async with slots:
                return await self._ping(peer.peer_id, peer.maddrs)

        others = self._peers.keys() | self._found.keys()
        return sum(
            await asyncio.gather(*(ping(peer) for peer in self._book.peers() if peer.peer_id not in others))
        )

    async def _meet_nearest(self) -> None:
        """The peers that we began with are asked too, because an attacker near our id cannot be among
        them."""
        node = self._node
        await node.meet_nearest(node.contact.node_id, anchors=self.anchors(), limit_s=LOOKUP_TIMEOUT_S)

    async def ping_all(self) -> int:
        """One round. Returns how many of the initial peers answered."""
        peers = self._peers | self._found
        answers = await asyncio.gather(*(self._ping(*peer) for peer in peers.items()))
        return answers[: len(self._peers)].count(True)

    async def run(self, interval: float = PING_INTERVAL_S) -> None:
        """Ping for ever, and look after the routing table. Warns once when the clocks drift apart."""
        warned = missed = False
        rounds = 0
        while True:
            await asyncio.sleep(min(interval, MISSED_INTERVAL_S) if missed else interval)
            with self._faults.survived():
                missed = await self.ping_all() < len(self._peers)
                rounds += 1
                if not len(self._node.table) and (self._peers or len(self._book)):
                    await self.heal()
                elif rounds % REFRESH_ROUNDS == 0:
                    await self._node.refresh(LOOKUP_TIMEOUT_S)
                    await self._keep_book()
                message = self.clock_problem()
                if message is not None and not warned:
                    logger.warning("%s", message)
                warned = message is not None

    def clock_problem(self) -> str | None:
        """A sentence for people if every peer that answered disagrees with our clock, else None."""
        return clock_problem(self.clock_readings)

    async def _ping(self, peer_id: str, maddrs: Sequence[str]) -> bool:
        """Dial if need be, ping, enter each other's routing tables, read the clock, keep the address."""
        try:
            await self._transport.connect(peer_id, await resolve_all(maddrs), timeout=DIAL_TIMEOUT_S)
            sent = self._clock()
            dht_time = await self._node.ping(peer_id)
            received = self._clock()
        except Exception as error:  # noqa: BLE001  hivemind raises whatever the daemon says
            logger.debug("peer %s does not answer: %r", peer_id, error)
            self.clock_readings.pop(peer_id, None)
            if (refusal := refusal_of(error, self._node.contact.peer_id)) is not None:
                self.refusals[peer_id] = refusal
            return False
        self.refusals.pop(peer_id, None)
        self._book.answered(peer_id, maddrs)
        if math.isfinite(dht_time):
            middle, half = (sent + received) / 2, (received - sent) / 2
            self.clock_readings[peer_id] = ClockReading(dht_time - middle, half)
        return True
