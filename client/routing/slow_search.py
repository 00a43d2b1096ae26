"""Slow hops of a client's routes: which one should be left now, and what is remembered of those that were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ...swarm.routing.edges import Edges
from ...swarm.routing.prediction import Prediction
from ...swarm.routing.slow_hop import (
    GROSS_STEPS,
    ChainSpent,
    HopSpent,
    Replacement,
    chain_to_take_apart,
    hop_to_replace,
)
from ...swarm.types import Hop, NodeInfo, Route
from .evidence import Evidence

REPLACE_PAUSE_S = 5.0
"""There are this many seconds between two replacements of hops that are merely slow: sessions leave such a
node one by one, which may be enough."""
LOOK_PAUSE_S = 1.0
"""There are this many seconds between two looks for slow hops: each look is a search."""
SLOW_S = 30.0
"""A node that was left because it was slow counts as that slow for this many seconds, whatever it
announces."""
FRESH_S = 15.0
"""A hop is left only for one that was measured in the last this many seconds. If there is no such measure, a
trial makes one."""
LINKS_SLACK = 1.25
"""The links of a chain may take this many times what they should before its hops are timed one by one."""
NOISE_S = 0.02
"""This many seconds of a step prove no lie: the event loops of busy machines are late by as much."""


@dataclass(frozen=True, slots=True)
class SlowHop:
    """Hop ``number`` of a route should be replaced."""

    number: int


@dataclass(frozen=True, slots=True)
class SlowChain:
    """One of the hops ``first`` to ``last`` of a route is slow, and only timing each will tell which."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class StandIn:
    """The best replacement of a hop, and the peers that it is made of."""

    replacement: Replacement
    peer_ids: tuple[str, ...]


class SlowSearch:
    """One a router. It has no clock: every call brings ``now``, in seconds."""

    def __init__(self, evidence: Evidence, bytes_per_token: int) -> None:
        self._to_try: list[str] = []  # peers that could take a slow hop's place, if measured first
        self._evidence = evidence
        self._bytes_per_token = bytes_per_token
        self._slow: dict[str, tuple[float, float]] = {}  # by peer id: (seconds a step waits, until when)
        self._looked_at = self._replaced_at = float("-inf")

    def is_time(self, spent: Sequence[HopSpent], now: float) -> bool:
        """Whether a look makes sense, after these steps and since the last."""
        if now - self._looked_at < LOOK_PAUSE_S or now - self._replaced_at < REPLACE_PAUSE_S:
            return False
        return min((hop.steps for hop in spent), default=0) >= GROSS_STEPS

    def find(
        self,
        route: Route,
        predicted: Prediction,
        spent: Sequence[HopSpent],
        chains: Sequence[ChainSpent],
        tokens_to_come: int,
        *,
        edges: Edges,
        stand_in: Callable[[int], StandIn | None],
        now: float,
    ) -> SlowHop | SlowChain | None:
        """A hop to replace now, or a chain whose hops have to be timed. ``stand_in``: the best for hop n."""
        self._looked_at = now
        hops = zip(route.hops, spent, strict=True)
        spent = [self._hop_unexplained(hop.peer_id, seen, edges) for hop, seen in hops]
        chains = [self._chain_unexplained(route, chain, edges) for chain in chains]
        found = [stand_in(number) for number in range(len(route.hops))]
        replacements = [None if one is None else one.replacement for one in found]
        chosen = hop_to_replace(predicted, spent, replacements, tokens_to_come)
        if chosen is None:
            place = chain_to_take_apart(predicted, spent, chains, replacements, tokens_to_come)
            return None if place is None else SlowChain(chains[place].first, chains[place].last)
        for chain in chains:
            if chain.first <= chosen <= chain.last:  # its figures came through other hands
                return SlowChain(chain.first, chain.last)
        instead = found[chosen]
        peer_ids = instead.peer_ids if instead is not None else ()
        stale = [peer for peer in peer_ids if not self._evidence.measured_within(peer, FRESH_S, now)]
        if stale:
            self._to_try = stale
            return None
        self._leave(route.hops[chosen], spent[chosen], predicted.hops[chosen].compute_s, now)
        return SlowHop(chosen)

    def next_to_try(self) -> str | None:
        """A peer that could take a slow hop's place, and has to be measured first; named once."""
        return self._to_try.pop() if self._to_try else None

    def as_seen(self, nodes: Sequence[NodeInfo], now: float) -> list[NodeInfo]:
        """The announcements, those of nodes that were left with how long steps waited there."""
        self._slow = {peer_id: slow for peer_id, slow in self._slow.items() if slow[1] > now}
        return [
            replace(node, queue_ms=max(node.queue_ms, self._slow[node.peer_id][0] * 1000))
            if node.peer_id in self._slow
            else node
            for node in nodes
        ]

    def _leave(self, hop: Hop, seen: HopSpent, expected_s: float, now: float) -> None:
        """What is remembered of a hop that is left."""
        self._replaced_at = now
        if seen.unexplained_s > seen.node_s / 2:
            self._evidence.doubted(hop.peer_id, seen.node_s / len(hop.span), now)
        else:
            self._slow[hop.peer_id] = (max(0.0, seen.node_s - expected_s), now + SLOW_S)

    def _hop_unexplained(self, peer_id: str, seen: HopSpent, edges: Edges) -> HopSpent:
        if seen.wire_s is None:
            return seen
        size = self._bytes_per_token * seen.tokens
        link_s = edges.one_way_s("", peer_id, size) + edges.one_way_s(peer_id, "", size)
        return replace(seen, unexplained_s=max(0.0, seen.wire_s - link_s))

    def _chain_unexplained(self, route: Route, chain: ChainSpent, edges: Edges) -> ChainSpent:
        peers = ["", *(hop.peer_id for hop in route.hops[chain.first : chain.last + 1]), ""]
        links_s = sum(edges.one_way_s(a, b, self._bytes_per_token) for a, b in pairwise(peers))
        return replace(chain, unexplained_s=max(0.0, chain.wire_s - LINKS_SLACK * links_s - NOISE_S))
