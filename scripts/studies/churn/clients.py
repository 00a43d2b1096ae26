"""Clients of a simulated swarm: each looks for one route and tells whether it would have worked."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from time import process_time

from swarm_node.swarm.routing.best_route import NoRouteError, RouteRequest, find_route
from swarm_node.swarm.routing.edges import Edges, Link

from ..placement.world import World

MEASURED = 24
"""Nodes whose round trip a client knows; of the others it knows nothing."""


class Clients:
    """``places``: of nodes, milliseconds in a plane."""

    def __init__(self, rng: random.Random, places: Mapping[str, tuple[float, float]]) -> None:
        self._rng = rng
        self._places = places
        self.begin_books()

    def begin_books(self) -> None:
        self.costs: list[float] = []
        self.hops = self.asked = self.none = self.with_dead_hop = 0

    def ask(self, world: World) -> None:
        """One route over ``world``, as its directory shows it."""
        nodes = world.store.live()
        here = (self._rng.gauss(0, 40), self._rng.gauss(0, 40))
        known = self._rng.sample(nodes, min(MEASURED, len(nodes)))
        links = {
            node.peer_id: Link(0.002 + math.dist(here, self._places[node.peer_id]) / 1000, 1.25e6)
            for node in known
            if node.peer_id in self._places
        }
        request = RouteRequest(
            world.shape.n_blocks,
            kv_tokens=512,
            prompt_tokens=256,
            new_tokens=256,
            bytes_per_token=world.shape.activation_bytes,
        )
        self.asked += 1
        began = process_time()
        try:
            route = find_route(nodes, Edges(nodes, links), request, salt=str(self.asked), spread=0.1)
        except NoRouteError:
            self.none += 1
            return
        finally:
            self.costs.append(process_time() - began)
        self.hops += len(route.hops)
        alive = {box.offer.peer_id for box in world.boxes.values() if box.counted is not None}
        self.with_dead_hop += any(hop.peer_id not in alive for hop in route.hops)

    def as_dict(self) -> dict[str, int]:
        return {
            "asked": self.asked,
            "none": self.none,
            "with_dead_hop": self.with_dead_hop,
            "hops": self.hops,
        }
