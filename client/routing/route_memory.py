"""Where the beginnings of sequences are held: the route of each finished session, found again by its tokens.

Only a preference: what the nodes still hold, they say themselves when a session opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from secrets import token_bytes

from ...swarm.fairness.recent import RecentMap
from ...swarm.protocol.field_types import PAGE_TOKENS
from ...swarm.routing.best_route import RouteRequest, route_price_ns, why_unusable
from ...swarm.routing.edges import Edges
from ...swarm.types import NodeInfo, Route, Span
from .prefix import PageChain

MAX_PAGES = 16384
"""This many pages of 32 tokens are remembered, which takes some megabytes. Beyond it those not met for
longest are forgotten."""


@dataclass(frozen=True, slots=True)
class Held:
    """A route whose hops probably hold the first ``tokens`` of a sequence."""

    route: Route
    tokens: int


class RouteMemory:
    """Token ids to routes, page by page. Never leaves the process."""

    def __init__(self, max_pages: int = MAX_PAGES) -> None:
        self._seed = token_bytes(32)  # hash collisions cannot be prepared
        self._routes: RecentMap[bytes, Route] = RecentMap(max_pages)

    def __len__(self) -> int:
        return len(self._routes)

    def remember(self, ids: Sequence[int], route: Route) -> None:
        """The hops of ``route`` were fed ``ids``."""
        for page in PageChain(self._seed).digests(ids):
            self._routes[page] = route

    def recall(self, ids: Sequence[int]) -> Held | None:
        """The route that was fed the longest beginning of ``ids`` that is known."""
        pages = PageChain(self._seed).digests(ids)
        for number in range(len(pages), 0, -1):
            route = self._routes.get(pages[number - 1])
            if route is not None:
                return Held(route, number * PAGE_TOKENS)
        return None


def cheaper_held(
    route: Route,
    request: RouteRequest,
    held: Route,
    fed: RouteRequest,
    nodes: Sequence[NodeInfo],
    edges: Edges,
) -> Route | None:
    """``held``, with its nodes' addresses and records of now, if ``fed`` costs no more on it than ``request``
    on ``route``."""
    known = _announced(held, nodes, request)
    new = _announced(route, nodes, replace(request, kv_tokens=0))
    if known is None or new is None:
        return None
    if route_price_ns(new, edges, request) < route_price_ns(known, edges, fed):
        return None
    hops = (
        replace(hop, maddrs=node.dial_maddrs, record=node.record)
        for hop, (node, _) in zip(held.hops, known, strict=True)
    )
    return replace(held, hops=tuple(hops))


def _announced(
    route: Route, nodes: Sequence[NodeInfo], request: RouteRequest
) -> list[tuple[NodeInfo, Span]] | None:
    """The announcements of a route's hops; None where one of them cannot take the request."""
    picks = []
    for hop in route.hops:
        serving = (
            node
            for node in nodes
            if node.peer_id == hop.peer_id and node.span.covers(hop.span) and not why_unusable(node, request)
        )
        if (node := next(serving, None)) is None:
            return None
        picks.append((node, hop.span))
    return picks
