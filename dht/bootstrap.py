"""Keeping in touch with the peers a node was told to start from or has found, and comparing clocks with them.

A bootstrap node that restarts has forgotten everybody, and nobody asks it anything any more: it stays alone
until somebody who knows its address pings it. So every node does, for as long as it runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, PeerID
from hivemind.proto import dht_pb2

from ..swarm.addresses import PeerAddress
from ..swarm.errors import NetworkError, NotAdmittedError, PeerUnreachableError
from ..swarm.faults import Faults
from ..swarm.resolve import resolve_all
from ..swarm.transport import NetworkWatcher
from .clocks import ClockReading, clock_problem
from .hivemind_members import refusal_of
from .replicas import LOOKUP_TIMEOUT_S, RPC_TIMEOUT_S

PING_INTERVAL_S = 15.0
"""Between rounds of pings: how long a restarted bootstrap node stays alone that was not missed."""
MISSED_INTERVAL_S = 5.0
"""The same while one of them does not answer; p2pd dials an address that failed no sooner."""

DIAL_TIMEOUT_S = 5.0
MAX_FOUND = 32
"""Peers that were found and are pinged in every round; through them, those of them that matter are met."""

logger = logging.getLogger(__name__)


class DialingTransport(Protocol):
    """The part of P2pdTransport that a directory uses."""

    p2p: P2P

    async def connect(self, peer_id: str, maddrs: Sequence[str] = ..., timeout: float = ...) -> None: ...

    def watch(self, watcher: NetworkWatcher) -> None: ...


class Bootstrap:
    """Pings ``initial_peers``, multiaddresses ending in /p2p/PEER. Raises UsageError for malformed ones."""

    def __init__(
        self,
        node: DHTNode,
        transport: DialingTransport,
        initial_peers: Sequence[str],
        clock: Callable[[], float],
    ) -> None:
        self._node = node
        self._transport = transport
        self._clock = clock
        self._peers: dict[str, list[str]] = {}  # peer id -> its addresses, without /p2p/
        self._found: dict[str, list[str]] = {}  # the same, of those that were met later
        for text in initial_peers:
            peer = PeerAddress.parse(text)
            if peer.peer_id != str(node.peer_id):
                self._peers.setdefault(peer.peer_id, []).append(peer.maddr)
        self._faults = Faults("pinging peers")
        self.clock_readings: dict[str, ClockReading] = {}  # by peer id, of those that answered last time
        self.refusals: dict[str, NotAdmittedError] = {}  # by peer id, of those that do not belong with us

    async def join(self) -> None:
        """Meet the initial peers and, through them, the nodes nearest to us.

        Raises PeerUnreachableError if there are some and none answers, NotAdmittedError if they are of
        another swarm, NetworkError if their clocks all differ from ours by more than MAX_CLOCK_SKEW_S.
        """
        if not self._peers:
            return
        if not await self.ping_all():
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
        if peer_id == str(self._node.peer_id):
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
        """The same after our own network was lost, when nobody need answer: ``run`` goes on trying."""
        self._node.blacklist.clear()  # it was our fault that they did not answer
        pings = [asyncio.ensure_future(self._ping(*peer)) for peer in (self._peers | self._found).items()]
        try:
            for ping in asyncio.as_completed(pings):
                if await ping:
                    break
        finally:
            for task in pings:
                task.cancel()
            await asyncio.gather(*pings, return_exceptions=True)
        await self._meet_nearest()

    async def _meet_nearest(self) -> None:
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                await self._node.find_nearest_nodes([self._node.node_id])
        except TimeoutError:
            logger.debug("met only some of the nearest nodes: %d s are over", LOOKUP_TIMEOUT_S)

    async def ping_all(self) -> int:
        """One round. Returns how many of the initial peers answered."""
        peers = self._peers | self._found
        answers = await asyncio.gather(*(self._ping(*peer) for peer in peers.items()))
        return answers[: len(self._peers)].count(True)

    async def run(self, interval: float = PING_INTERVAL_S) -> None:
        """Ping for ever. Warns once when the clocks drift apart."""
        warned = missed = False
        while True:
            await asyncio.sleep(min(interval, MISSED_INTERVAL_S) if missed else interval)
            with self._faults.survived():
                missed = await self.ping_all() < len(self._peers)
                message = self.clock_problem()
                if message is not None and not warned:
                    logger.warning("%s", message)
                warned = message is not None

    def clock_problem(self) -> str | None:
        """A sentence for people if every peer that answered disagrees with our clock, else None."""
        return clock_problem(self.clock_readings)

    async def _ping(self, peer_id: str, maddrs: Sequence[str]) -> bool:
        """Dial if need be, ping, enter each other's routing tables, read the clock."""
        protocol = self._node.protocol
        try:
            await self._transport.connect(peer_id, await resolve_all(maddrs), timeout=DIAL_TIMEOUT_S)
            peer = PeerID.from_base58(peer_id)
            request = dht_pb2.PingRequest(peer=protocol.node_info, validate=False)
            sent = self._clock()
            async with asyncio.timeout(RPC_TIMEOUT_S):
                response = await protocol.get_stub(peer).rpc_ping(request)
            received = self._clock()
        except Exception as error:  # noqa: BLE001  hivemind raises whatever the daemon says
            logger.debug("peer %s does not answer: %r", peer_id, error)
            self.clock_readings.pop(peer_id, None)
            if (refusal := refusal_of(error)) is not None:
                self.refusals[peer_id] = refusal
            return False
        self.refusals.pop(peer_id, None)
        if math.isfinite(response.dht_time):
            middle, half = (sent + received) / 2, (received - sent) / 2
            self.clock_readings[peer_id] = ClockReading(response.dht_time - middle, half)
        if len(response.peer.node_id) == DHTID.HASH_NBYTES:
            node_id = DHTID.from_bytes(response.peer.node_id)
            self._node.blacklist.register_success(peer)
            await protocol.update_routing_table(node_id, peer, responded=True)
        return True
