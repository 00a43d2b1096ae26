"""Peers besides those in use: which blocks have none, and which peer to meet or put on trial next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...swarm.peer_health import PeerHealth
from ...swarm.routing.best_route import missing_blocks, why_unusable
from ...swarm.types import NodeInfo, Route, Span
from .announcements import Announcements
from .evidence import Evidence, Standing
from .route_finder import Need, RouteFinder
from .slow_search import SlowSearch

TRIAL_TOKENS = 32
"""A trial asks for a KV cache of this many tokens: a page."""
RESERVES = 2
"""For each block this many peers that have worked for us are wanted besides the one in use."""
EXPLORE_S = 60.0
"""Where there are enough reserves, a peer that never worked for us is tried every this many seconds."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Peers to be found for the blocks ``gap`` (None: all), other than those to do ``without``, that are
    known at least as well as ``least`` says."""

    gap: Span | None = None
    without: frozenset[str] = frozenset()
    least: Standing = Standing.ANSWERED


class Reserves:
    """The reserves of one client, for the model of ``finder``. ``clock`` gives seconds."""

    def __init__(
        self,
        announcements: Announcements,
        *,
        finder: RouteFinder,
        evidence: Evidence,
        slow: SlowSearch,
        health: PeerHealth,
        clock: Callable[[], float],
    ) -> None:
        self._announcements = announcements
        self._finder = finder
        self._evidence = evidence
        self._slow = slow
        self._health = health
        self._now = clock
        self._explored_at = float("-inf")

    def unmet(self, need: Need, wanted: Wanted) -> tuple[Span, ...]:
        """Blocks that no known peer could carry that is as ``wanted`` says."""
        now = self._now()
        known = [
            node
            for node in self._usable(need)
            if self._evidence.standing(node.peer_id, now) >= wanted.least
            and node.peer_id not in wanted.without
        ]
        whole = self._finder.whole
        gap = wanted.gap or whole.span
        return missing_blocks(known, gap.end, start=gap.start, cuts=whole.cuts)

    def to_meet(self, need: Need, wanted: Wanted) -> list[NodeInfo]:
        """Peers that could carry blocks of ``unmet``, if they proved to be what is ``wanted``, in the order
        in which to find out."""
        now, holes = self._now(), self.unmet(need, wanted)
        useful = [
            node
            for node in self._usable(need)
            if self._evidence.standing(node.peer_id, now) < wanted.least
            and any(node.span.start < hole.end and hole.start < node.span.end for hole in holes)
        ]
        return self._evidence.in_turn(useful, now)

    def to_try(self, route: Route) -> NodeInfo | None:
        """The peer to put on trial now, while ``route`` is in use: one that may replace a hop that seems
        slow; else one that never worked for us, while reserves lack; else, from time to time, any such."""
        now = self._now()
        usable = {
            node.peer_id: node
            for node in self._usable(Need(TRIAL_TOKENS))
            if self._evidence.may_try(node.peer_id, now)
        }
        while (peer_id := self._slow.next_to_try()) is not None:
            if (wanted := usable.get(peer_id)) is not None:
                return wanted
        proven = {node.peer_id: node.span for node in self.proven()}
        short = [
            block
            for block in range(self._finder.whole.n_blocks)
            if sum(block in span for span in proven.values()) <= RESERVES
        ]
        explore = now - self._explored_at >= EXPLORE_S
        used = {hop.peer_id for hop in route.hops}
        useful = [
            node
            for node in usable.values()
            if node.peer_id not in used
            and node.peer_id not in proven
            and (explore or any(block in node.span for block in short))
        ]
        if not useful:
            return None
        self._explored_at = now
        return self._evidence.in_turn(useful, now)[0]

    def asked(self, node: NodeInfo) -> None:
        """A peer is being met or tried."""
        self._evidence.asked(node)

    def proven(self) -> list[NodeInfo]:
        """The peers that have computed for us lately."""
        now = self._now()
        return [
            node
            for node in self._announcements.nodes
            if self._evidence.standing(node.peer_id, now) is Standing.PROVEN
        ]

    def _usable(self, need: Need) -> list[NodeInfo]:
        request = self._finder.request(need, self._health.banned(self._now()))
        return [node for node in self._announcements.nodes if not why_unusable(node, request)]
