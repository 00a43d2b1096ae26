"""Many clients, old announcements: does everybody run to the same node?"""

from __future__ import annotations

import heapq
import random
from dataclasses import replace

import pytest

from swarm_node.client.routing.route_finder import SPREAD
from swarm_node.swarm.routing.best_route import RouteRequest, find_route
from swarm_node.swarm.routing.edges import Edges, Link
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, PeerLink, Span

MODEL = ModelRef("m", "d" * 64, 6)
REFRESH_S = 8.0  # how old an announcement may be that a client reads: refresh, directory and snapshot
QUEUE_MS = 3.0  # that each session adds for the others
SESSION_S = 10.0


def node(peer_id: str, start: int, end: int, **more: object) -> NodeInfo:
    values: dict[str, object] = {"decode_ms_per_block": 1.0, "prefill_tokens_per_s": 1000.0, **more}
    kv = {"free_kv_tokens": 1000, "total_kv_tokens": 1000}
    return NodeInfo(peer_id, (), MODEL, Span(start, end), NodeState.ONLINE, **kv, **values)  # type: ignore[arg-type]


def busiest(spread: float, replicas: int, seed: int) -> tuple[float, float]:
    """(sessions at the busiest replica, at the average one), means over the arrivals of a simulation in which
    each session belongs to a client of its own."""
    rng = random.Random(seed)
    ends: list[tuple[float, str]] = []
    told = [node(f"{half}{i}", 3 * half, 3 * half + 3) for half in range(2) for i in range(replicas)]
    links = {n.peer_id: Link(0.02 * rng.uniform(1, 1.02), 1e7) for n in told}
    load = {n.peer_id: 0 for n in told}
    refreshed = {n.peer_id: rng.uniform(-REFRESH_S, 0) for n in told}
    now, most, mean, arrivals = 0.0, 0.0, 0.0, 600
    for number in range(arrivals):
        now += rng.expovariate(4 * replicas / SESSION_S)  # four sessions a node on average
        while ends and ends[0][0] <= now:
            load[heapq.heappop(ends)[1]] -= 1
        for at, n in enumerate(told):
            if now - refreshed[n.peer_id] >= REFRESH_S:
                refreshed[n.peer_id] = now
                told[at] = replace(n, queue_ms=QUEUE_MS * load[n.peer_id])
        wanted = RouteRequest(6, 10, prompt_tokens=50, new_tokens=200)
        route = find_route(told, Edges(told, links), wanted, salt=f"client{number}", spread=spread)
        for hop in route.hops:
            load[hop.peer_id] += 1
            heapq.heappush(ends, (now + SESSION_S, hop.peer_id))
        most += max(load.values()) / arrivals
        mean += sum(load.values()) / len(load) / arrivals
    return most, mean


@pytest.mark.parametrize(("replicas", "part"), [(3, 0.85), (8, 0.5)])
def test_clients_do_not_herd(replicas: int, part: float) -> None:
    herd, mean = busiest(0.0, replicas, seed=1)
    spread, mean_spread = busiest(SPREAD, replicas, seed=1)
    assert mean_spread == pytest.approx(mean, rel=0.1)
    assert spread < part * herd
    assert spread < 2 * mean


def test_the_more_loaded_is_taken_less() -> None:
    nodes = [node("a", 0, 6, queue_ms=40.0), node("b", 0, 6, queue_ms=0.0)]
    edges = Edges(nodes, {n.peer_id: Link(0.01, 1e7) for n in nodes})
    taken = []
    for salt in range(300):
        route = find_route(nodes, edges, RouteRequest(6, 10, 10, 100), salt=str(salt), spread=SPREAD)
        taken.append(route.hops[0].peer_id)
    # 16 ms a token without the queue, 56 with it: odds of 12 to 1
    assert 0.85 * 300 < taken.count("b") < 300


def test_sessions_stay_in_the_cheap_half_of_a_swarm() -> None:
    """Replicas at two sites, far from each other: sessions spread inside each, but never across."""
    nodes = []
    for site in range(2):
        mates = [f"site{site}-{half}-{i}" for half in range(2) for i in range(4)]
        nodes += [
            node(mate, 3 * half, 3 * half + 3, links=tuple(PeerLink(other, 0.001) for other in mates))
            for half, mate in ((int(mate.split("-")[1]), mate) for mate in mates)
        ]
    edges = Edges(nodes, {n.peer_id: Link(0.08, 1e7) for n in nodes})
    taken = set()
    for salt in range(60):
        route = find_route(nodes, edges, RouteRequest(6, 10, 10, 100), salt=str(salt), spread=SPREAD)
        first, second = (hop.peer_id for hop in route.hops)
        assert first[:5] == second[:5]
        taken |= {first, second}
    assert len(taken) == 16
