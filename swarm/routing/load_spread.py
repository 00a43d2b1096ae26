"""Sessions spread over replicas that cost nearly the same, though all clients see the same announcements.

If all clients take the least loaded node, they all take the same one until its announcement says so
(Mitzenmacher, "How useful is old information?", 2000). So load only weighs: each replica is taken with a
probability that falls with the square of what the route costs through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log
from typing import Protocol

from ..types import NodeInfo, Span

PRICE_WEIGHT = 2
"""The odds of a route fall with this power of its price. In the simulation of the tests 1 to 2 keep the
busiest replica least busy; 3 and more begin to herd, and 0 would not see a node that is overloaded."""

Pick = tuple[NodeInfo, Span]
"""A node and the blocks that a route uses of it."""


class RoutePrices(Protocol):
    """The part of ``best_route.Prices`` that is used here."""

    def hop(self, node: NodeInfo) -> tuple[int, int]: ...

    def link(self, a: str, b: str) -> int: ...


def spread_out(
    picks: Sequence[Pick],
    nodes: Sequence[NodeInfo],
    prices: RoutePrices,
    draw: Callable[[str], float],
    tolerance: float,
    *,
    before: str = "",
    after: str = "",
) -> list[Pick]:
    """``picks``, a route, with each hop drawn from all that could stand in its place and, load apart, cost no
    more than ``tolerance`` of the whole route above it.

    ``draw``: a number between 0 and 1 for each peer id, as good as random.
    """
    chosen = list(picks)
    peers = [before, *(node.peer_id for node, _ in picks), after]

    def idle(number: int, node: NodeInfo) -> int:
        """The price of ``node`` as hop ``number`` without its queue."""
        links = prices.link(peers[number], node.peer_id) + prices.link(node.peer_id, peers[number + 2])
        return links + len(chosen[number][1]) * prices.hop(node)[1]

    links = sum(prices.link(a, b) for a, b in pairwise(peers))
    total = 1 + links + sum(len(span) * prices.hop(node)[1] for node, span in picks)

    def lateness(node: NodeInfo) -> float:
        """When an exponential clock rings whose rate is the node's weight: the first to ring is drawn."""
        price = 1 + prices.hop(node)[0] * len(picks) / total
        return -log(draw(node.peer_id)) * price**PRICE_WEIGHT

    for number, (current, span) in enumerate(picks):
        most = idle(number, current) + tolerance * total / len(picks)
        taken = set(peers) - {current.peer_id}
        equals = (
            node
            for node in nodes
            if node.span.covers(span) and node.peer_id not in taken and idle(number, node) <= most
        )
        best = min(equals, key=lambda node: (lateness(node), node.peer_id))
        chosen[number] = (best, span)
        peers[number + 1] = best.peer_id
    return chosen
