"""The cheapest hops for a gap with the borders of the hops that were there.

A border more or less is an edge more or less whose codec rounds activations, so that a replayed sequence
would differ from the undisturbed one in its last bits; and journals are cut where the hops were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..types import NodeInfo, Span
from .load_spread import Pick, RoutePrices

WORTH = 1.25
"""A route with the same borders may cost this many times the cheapest route's price."""


def cheapest_with_borders(
    nodes: Sequence[NodeInfo],
    spans: Sequence[Span],
    prices: RoutePrices,
    rank: Callable[[str], bytes],
    *,
    before: str = "",
    after: str = "",
) -> list[Pick] | None:
    """One hop for each of ``spans``, no node twice, cheapest first, then by ``rank``; None if there are none.

    Exact, except in swarms where the best hop of one span is also the best of another: there it is a good
    choice.
    """
    reached: dict[str, tuple[int, list[Pick]]] = {before: (0, [])}
    for span in spans:
        onward: dict[str, tuple[int, list[Pick]]] = {}
        for node in sorted(nodes, key=lambda node: (rank(node.peer_id), node.peer_id)):
            if not node.span.covers(span):
                continue
            enter, block = prices.hop(node)
            links = [
                (cost + prices.link(peer_id, node.peer_id), picks)
                for peer_id, (cost, picks) in reached.items()
                if all(other.peer_id != node.peer_id for other, _ in picks)
            ]
            if links:
                cost, picks = min(links, key=lambda link: link[0])
                onward[node.peer_id] = (cost + enter + len(span) * block, [*picks, (node, span)])
        reached = onward
    ends = [(cost + prices.link(peer_id, after), picks) for peer_id, (cost, picks) in reached.items()]
    return min(ends, key=lambda end: end[0])[1] if ends else None
