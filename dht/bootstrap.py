"""Keeping in touch with the peers a node was told to start from, and comparing clocks with them.

A bootstrap node that restarts has forgotten everybody, and nobody asks it anything any more: it stays alone
until somebody who knows its address pings it. So every node does, for as long as it runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, PeerID
from hivemind.proto import dht_pb2

from ..swarm.addresses import PeerAddress
from ..swarm.errors import NetworkError, PeerUnreachableError
from ..swarm.transport import NetworkWatcher
from .replicas import LOOKUP_TIMEOUT_S, RPC_TIMEOUT_S
from .validator import MAX_CLOCK_SKEW_S

PING_INTERVAL_S = 15.0
"""Between rounds of pings: how long a restarted bootstrap node stays alone that was not missed."""
MISSED_INTERVAL_S = 5.0
"""The same while one of them does not answer; p2pd dials an address that failed no sooner."""

DIAL_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


class DialingTransport(Protocol):
    """The part of P2pdTransport that a directory uses."""

    p2p: P2P

    async def connect(self, peer_id: str, maddrs: Sequence[str] = ..., timeout: float = ...) -> None: ...

    def watch(self, watcher: NetworkWatcher) -> None: ...


@dataclass(frozen=True, slots=True)
class ClockReading:
    """How far a peer's clock is ahead of ours, in seconds, known to ± ``uncertainty``."""

    ahead: float
    uncertainty: float

    @property
    def skewed(self) -> bool:
        return abs(self.ahead) - self.uncertainty > MAX_CLOCK_SKEW_S


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
        self._peers: dict[str, list[str]] = {}  # peer id -> its addresses
        for text in initial_peers:
            peer = PeerAddress.parse(text)
            if peer.peer_id != str(node.peer_id):
                self._peers.setdefault(peer.peer_id, []).append(str(peer))
        self.clock_readings: dict[str, ClockReading] = {}  # by peer id, of those that answered last time

    async def join(self) -> None:
        """Meet the initial peers and, through them, the nodes nearest to us.

        Raises PeerUnreachableError if there are some and none answers, NetworkError if their clocks all
        differ from ours by more than MAX_CLOCK_SKEW_S.
        """
        if not self._peers:
            return
        if not await self.ping_all():
            listed = ", ".join(maddr for maddrs in self._peers.values() for maddr in maddrs)
            raise PeerUnreachableError(
                f"no peer answers at {listed}",
                hint="Check that the node there runs, and the address, port and PeerID that it prints.",
            )
        if (message := self.clock_problem()) is not None:
            raise NetworkError(message, hint="Set both clocks by network time (NTP), then start again.")
        await self._meet_nearest()

    async def rejoin(self) -> None:
        """The same after our own network was lost, when nobody need answer: ``run`` goes on trying."""
        self._node.blacklist.clear()  # it was our fault that they did not answer
        pings = [asyncio.ensure_future(self._ping(peer_id)) for peer_id in self._peers]
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
        """One round. Returns how many answered."""
        answers = await asyncio.gather(*(self._ping(peer_id) for peer_id in self._peers))
        return answers.count(True)

    async def run(self, interval: float = PING_INTERVAL_S) -> None:
        """Ping for ever. Warns once when the clocks drift apart."""
        warned = missed = False
        while self._peers:
            await asyncio.sleep(min(interval, MISSED_INTERVAL_S) if missed else interval)
            missed = await self.ping_all() < len(self._peers)
            message = self.clock_problem()
            if message is not None and not warned:
                logger.warning("%s", message)
            warned = message is not None

    def clock_problem(self) -> str | None:
        """A sentence for people if every peer that answered disagrees with our clock, else None."""
        readings = self.clock_readings
        if not readings or not all(reading.skewed for reading in readings.values()):
            return None
        ahead = statistics.median(reading.ahead for reading in readings.values())
        whom = f"peer {next(iter(readings))}" if len(readings) == 1 else f"all {len(readings)} initial peers"
        how = "behind" if ahead > 0 else "ahead of"
        return (
            f"this computer's clock is {abs(ahead):.1f} s {how} that of {whom}; "
            f"announcements need clocks within {MAX_CLOCK_SKEW_S:.0f} s of each other"
        )

    async def _ping(self, peer_id: str) -> bool:
        """Dial if need be, ping, enter each other's routing tables, read the clock."""
        protocol = self._node.protocol
        try:
            await self._transport.connect(peer_id, self._peers[peer_id], timeout=DIAL_TIMEOUT_S)
            peer = PeerID.from_base58(peer_id)
            request = dht_pb2.PingRequest(peer=protocol.node_info, validate=False)
            sent = self._clock()
            async with asyncio.timeout(RPC_TIMEOUT_S):
                response = await protocol.get_stub(peer).rpc_ping(request)
            received = self._clock()
        except Exception as error:  # noqa: BLE001  hivemind raises whatever the daemon says
            logger.debug("initial peer %s does not answer: %r", peer_id, error)
            self.clock_readings.pop(peer_id, None)
            return False
        if math.isfinite(response.dht_time):
            middle, half = (sent + received) / 2, (received - sent) / 2
            self.clock_readings[peer_id] = ClockReading(response.dht_time - middle, half)
        if len(response.peer.node_id) == DHTID.HASH_NBYTES:
            node_id = DHTID.from_bytes(response.peer.node_id)
            self._node.blacklist.register_success(peer)
            await protocol.update_routing_table(node_id, peer, responded=True)
        return True
