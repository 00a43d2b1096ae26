"""The search for the cheapest route, by what the nodes announce and what this client found out itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...swarm.faults import Faults
from ...swarm.routing.best_route import NoRouteError, RouteRequest, find_route, predict_route
from ...swarm.routing.edges import Edges
from ...swarm.routing.prediction import Prediction
from ...swarm.routing.slow_hop import Replacement
from ...swarm.types import NodeInfo, NodeState, Route
from .evidence import Evidence
from .link_table import LinkTable
from .route_memory import Held, cheaper_held
from .slow_search import SlowSearch, StandIn

SPREAD = 0.05
"""A session's route may cost this part more than the cheapest, so that clients which see the same
announcements do not all take the same nodes. Measured speeds and round trips vary by more from one time to
the next."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a session will ask of its route, in tokens."""

    kv_tokens: int
    prompt_tokens: int = 1
    new_tokens: int = 1


@dataclass(frozen=True, slots=True)
class Planned:
    """A route, the announcements of its hops by peer id, and what it should cost."""

    route: Route
    nodes: dict[str, NodeInfo]
    predicted: Prediction


class RouteFinder:
    """Searches for one model. ``whole``: a request for all of its blocks, whatever the session needs.
    ``clock`` in seconds. ``salt`` makes this client's order of equal peers its own."""

    def __init__(
        self,
        whole: RouteRequest,
        *,
        evidence: Evidence,
        links: LinkTable,
        slow: SlowSearch,
        faults: Faults,
        salt: str,
        clock: Callable[[], float],
    ) -> None:
        self.whole = whole
        self._evidence = evidence
        self._links = links
        self._slow = slow
        self._faults = faults
        self._salt = salt
        self._now = clock
        self._plans = 0

    def begin_plan(self) -> None:
        """The searches from now on are for another plan: equal peers come in another order."""
        self._plans += 1

    def request(self, need: Need, banned: frozenset[str]) -> RouteRequest:
        """One for the whole model."""
        return replace(
            self.whole,
            kv_tokens=need.kv_tokens,
            prompt_tokens=need.prompt_tokens,
            new_tokens=need.new_tokens,
            banned=banned,
        )

    def search(
        self,
        nodes: Sequence[NodeInfo],
        request: RouteRequest,
        held: Held | None = None,
        *,
        own_only: bool = False,
    ) -> Planned:
        """The cheapest route. It is ``held`` if that is cheaper because it needs fewer tokens fed.
        ``own_only``: claims that are better than what this client measured count for nothing. Raises
        NoRouteError."""
        return self._faults.without_culprits(
            lambda some: self._search_among(self._as_seen(some, own_only), request, held),
            nodes,
            lambda node: node.peer_id,
        )

    def stand_in(
        self, route: Route, number: int, nodes: Sequence[NodeInfo], request: RouteRequest
    ) -> StandIn | None:
        """The best replacement of one hop of a route among ``nodes``, at the speed that this client
        measured."""
        hops = route.hops
        request = replace(
            request,
            start=hops[number].span.start,
            end=hops[number].span.end,
            borders=(),
            before=hops[number - 1].peer_id if number else "",
            after=hops[number + 1].peer_id if number + 1 < len(hops) else "",
        )
        try:
            planned = self.search(nodes, request, own_only=True)
        except NoRouteError:
            return None
        predicted = planned.predicted
        replacement = Replacement(predicted.token_s, predicted.prefill_s, measured=True)
        return StandIn(replacement, tuple(hop.peer_id for hop in planned.route.hops))

    def predict(self, route: Route, nodes: Sequence[NodeInfo], need: Need) -> Prediction | None:
        """What a whole route should cost by what is known now; None where one of its hops is not among
        ``nodes``."""
        seen = {node.peer_id: node for node in self._as_seen(nodes)}
        if not all(hop.peer_id in seen for hop in route.hops):
            return None
        edges = self._links.edges(nodes, self._now())
        return predict_route(route.hops, seen, edges, self.request(need, frozenset()))

    def _search_among(self, nodes: Sequence[NodeInfo], request: RouteRequest, held: Held | None) -> Planned:
        edges = self._links.edges(nodes, self._now())
        salt = f"{self._salt}/{self._plans}"
        try:
            route = self._find(nodes, edges, request, salt)
        except NoRouteError as error:
            # Announced free KV cache is up to a refresh old: ask nodes that were full rather than give up.
            # They say BUSY if they still are.
            hopeful = [
                replace(node, free_kv_tokens=node.total_kv_tokens, free_states=node.total_states)
                if node.state is NodeState.ONLINE
                else node
                for node in nodes
            ]
            try:
                route = self._find(hopeful, edges, request, salt)
            except NoRouteError:
                raise error from None
        if held is not None:
            rest = max(1, request.prompt_tokens - held.tokens)
            fed = replace(request, prompt_tokens=rest, fed=request.prompt_tokens - rest)
            if (cheaper := cheaper_held(route, request, held.route, fed, nodes, edges)) is not None:
                route, request = cheaper, fed
        used = {hop.peer_id for hop in route.hops}
        announced = {node.peer_id: node for node in nodes if node.peer_id in used}
        return Planned(route, announced, predict_route(route.hops, announced, edges, request))

    def _find(self, nodes: Sequence[NodeInfo], edges: Edges, request: RouteRequest, salt: str) -> Route:
        """The cheapest route of peers that have worked for us; else, of peers that have answered us too; else
        of any. Claims never come before what a peer has shown."""
        problem: NoRouteError | None = None
        for circle in self._evidence.circles(nodes, self._now()):
            try:
                return find_route(circle, edges, request, salt=salt, spread=SPREAD)
            except NoRouteError as error:
                problem = error  # the last is of all nodes
        if problem is None:
            raise AssertionError("the last circle holds all nodes")
        raise problem

    def _as_seen(self, nodes: Sequence[NodeInfo], own_only: bool = False) -> list[NodeInfo]:
        """The announcements, with what this client saw of nodes in place of what these say."""
        now = self._now()
        return self._slow.as_seen(self._evidence.believed(nodes, now, own_only=own_only), now)
