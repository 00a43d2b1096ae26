"""How far the other nodes are: round trips to those that a route may have before or after this one.

Gentle: about once a minute, one after the other, over the links that the node has for its chains anyway; a
node that does not answer is left alone for longer each time. What live chains measure counts too and saves
the probe. The announcement carries the result; clients bound it by what they measure themselves.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...dht.directory import Directory
from ...swarm.errors import SwarmError
from ...swarm.faults import Faults
from ...swarm.peer_health import PeerHealth
from ...swarm.types import MAX_PEER_LINKS, NodeInfo, NodeState, PeerLink, Span

logger = logging.getLogger(__name__)

PROBE_S = 60.0
"""Seconds between two rounds: distances change seldom, and chains in use report theirs."""
FIRST_ROUND_S = 2.0
"""Before the first round: a new node should be placed in the network before the first sessions come."""
JITTER = 0.3
"""This part of the pause is random, so that nodes which started together do not probe together."""
PINGS = 3
"""Round trips measured of a node; the least of them is the line's."""
PROBE_TIMEOUT_S = 5.0
FORGET_S = 900.0
"""A measurement older than this is announced no more."""
FRESH_S = 45.0
"""A link that a chain measured within this time needs no probe."""
FIRST_PAUSE_S = 120.0
LONGEST_PAUSE_S = 3600.0
"""A node that did not answer is left alone for a time that doubles with each failure, up to this many
seconds."""
NEWEST_WEIGHT = 0.3
"""The weight of a chain's measurement in a link's moving average."""


class PingableLink(Protocol):
    """The part of ``swarm.links.link.NodeLink`` that is used here."""

    async def ping(self) -> float:
        """Seconds of a round trip. Raises NetworkError's subclasses."""


class Links(Protocol):
    """The part of ``swarm.links.pool.LinkPool`` that is used here."""

    async def get(self, peer_id: str, maddrs: Sequence[str] = ()) -> PingableLink: ...


@dataclass(slots=True)
class _Known:
    rtt_s: float
    bytes_per_s: float
    at: float


def may_be_neighbours(a: Span, b: Span) -> bool:
    """Whether a route may go from one to the other, in either order."""
    return (b.start <= a.end and b.end > a.start + 1) or (a.start <= b.end and a.end > b.start + 1)


def neighbours(own: NodeInfo, nodes: Sequence[NodeInfo], rng: random.Random) -> list[NodeInfo]:
    """Nodes of the same model that a route may have before or after ``own``, likely ones first: those whose
    span ends or begins where ours does the other; in random order among equals."""
    others = [
        node
        for node in nodes
        if node.peer_id != own.peer_id
        and node.model.digest == own.model.digest
        and node.state is NodeState.ONLINE
        and may_be_neighbours(own.span, node.span)
    ]
    rng.shuffle(others)

    def gap(node: NodeInfo) -> int:
        return min(abs(node.span.start - own.span.end), abs(node.span.end - own.span.start))

    return sorted(others, key=gap)


class LinkProbe:
    """Measures until ``run`` is cancelled. ``own``: this node's announcement, None while it has none.
    ``clock`` in seconds."""

    def __init__(
        self,
        directory: Directory,
        links: Links,
        own: Callable[[], NodeInfo | None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._directory = directory
        self._pool = links
        self._own = own
        self._clock = clock
        self._sleep = sleep
        self._random = rng or random.Random()
        self._known: dict[str, _Known] = {}
        self._faults = Faults("measuring links")
        self._silent = PeerHealth(
            first_ban_s=FIRST_PAUSE_S, longest_ban_s=LONGEST_PAUSE_S, forget_after_s=2 * LONGEST_PAUSE_S
        )

    def links(self) -> tuple[PeerLink, ...]:
        """The links for the announcement: those known and not old, MAX_PEER_LINKS at most, nearest first."""
        since = self._clock() - FORGET_S
        self._known = {peer_id: known for peer_id, known in self._known.items() if known.at >= since}
        nearest = sorted(self._known.items(), key=lambda item: (item[1].rtt_s, item[0]))
        return tuple(
            PeerLink(peer_id, known.rtt_s, known.bytes_per_s) for peer_id, known in nearest[:MAX_PEER_LINKS]
        )

    def observed(self, peer_id: str, rtt_s: float, bytes_per_s: float = 0.0) -> None:
        """What a chain in use measured. ``bytes_per_s`` 0: nothing was large enough to tell."""
        now, known = self._clock(), self._known.get(peer_id)
        if known is not None:
            rtt_s = known.rtt_s + NEWEST_WEIGHT * (rtt_s - known.rtt_s)
            bytes_per_s = bytes_per_s or known.bytes_per_s
        self._put(peer_id, _Known(max(0.0, rtt_s), bytes_per_s, now))
        self._silent.succeeded(peer_id)

    async def run(self) -> None:
        """Until cancelled."""
        pause = FIRST_ROUND_S
        while True:
            await self._sleep(pause * (1 + JITTER * (2 * self._random.random() - 1)))
            pause = PROBE_S
            with self._faults.survived():
                try:
                    await self.probe()
                except SwarmError as error:
                    logger.info("event=probe_failed error=%r", str(error))

    async def probe(self) -> None:
        """One round. Raises SwarmError when the directory cannot be read."""
        own = self._own()
        if own is None:
            return
        nodes = await self._directory.nodes(own.model)
        now = self._clock()
        wanted = [node for node in neighbours(own, nodes, self._random) if self._wants(node.peer_id, now)]
        met = [node for node in wanted if node.peer_id in self._known][: MAX_PEER_LINKS // 2]
        first = {node.peer_id for node in met}  # a crowd of strangers must not take all turns
        strangers = [node for node in wanted if node.peer_id not in first]
        for node in [*met, *strangers][:MAX_PEER_LINKS]:
            await self._measure(node)

    def _wants(self, peer_id: str, now: float) -> bool:
        known = self._known.get(peer_id)
        if known is not None and now - known.at < FRESH_S:
            return False
        return not self._silent.is_banned(peer_id, now)

    async def _measure(self, node: NodeInfo) -> None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                link = await self._pool.get(node.peer_id, node.dial_maddrs)
                rtt_s = min([await link.ping() for _ in range(PINGS)])
        except (SwarmError, TimeoutError) as error:
            self._silent.failed(node.peer_id, self._clock(), str(error))
            self._known.pop(node.peer_id, None)  # a way that is not there must not be announced
            return
        self._silent.succeeded(node.peer_id)
        earlier = self._known.get(node.peer_id)
        self._put(
            node.peer_id, _Known(rtt_s, earlier.bytes_per_s if earlier is not None else 0.0, self._clock())
        )

    def _put(self, peer_id: str, known: _Known) -> None:
        """Keeps twice what is announced; beyond it the oldest goes."""
        self._known.pop(peer_id, None)
        self._known[peer_id] = known
        if len(self._known) > 2 * MAX_PEER_LINKS:
            del self._known[min(self._known, key=lambda other: self._known[other].at)]
