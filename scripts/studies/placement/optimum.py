"""The best that any choice of spans could do, found by trying all: what the planner is measured against.

Written apart from the planner and from the route search: only the price of a way and of a block is theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

from swarm_node.swarm.boundaries import is_cut
from swarm_node.swarm.placement.swarm_view import Machine, MeasuredLinks, SwarmView
from swarm_node.swarm.placement.types import ModelShape
from swarm_node.swarm.routing.prediction import decode_seconds
from swarm_node.swarm.types import NodeInfo, Span


def least_token_s(machines: Sequence[Machine], fixed: Sequence[NodeInfo], shape: ModelShape) -> float:
    """Seconds per token of the fastest chain that memory allows; infinite where there is none.

    ``machines`` may take any span, ``fixed`` serve theirs. Exact: every order, every border; the number of
    states is blocks * 2^nodes * nodes, so for up to about 8 nodes and 12 blocks.
    """
    edges = MeasuredLinks([*fixed, *machines]).edges(
        [*(m.peer_id for m in machines), *(n.peer_id for n in fixed)]
    )
    n = shape.n_blocks
    peers = [machine.peer_id for machine in machines] + [node.peer_id for node in fixed]
    block_s = [decode_seconds(machine.serving(Span(0, 1), n)) for machine in machines]
    block_s += [decode_seconds(node) for node in fixed]

    def link(a: int, b: int) -> float:
        names = ["" if place < 0 else peers[place] for place in (a, b)]
        return edges.one_way_s(*names, shape.activation_bytes)

    links = {(a, b): link(a, b) for a in range(-1, len(peers)) for b in range(-1, len(peers)) if a != b}

    def reach(place: int, block: int) -> int:
        """The last border up to which it can carry blocks from ``block`` on."""
        if place < len(machines):
            return min(n, block + machines[place].max_blocks)
        span = fixed[place - len(machines)].span
        return span.end if block in span else block

    @cache
    def rest(block: int, used: int, last: int) -> float:
        if block == n:
            return links[last, -1]
        best = float("inf")
        for place in range(len(peers)):
            if not used >> place & 1:
                for end in range(block + 1, reach(place, block) + 1):
                    if not is_cut(end, shape.cuts):
                        continue
                    computing = (end - block) * block_s[place]
                    onward = rest(end, used | 1 << place, place)
                    best = min(best, links[last, place] + computing + onward)
        return best

    return rest(0, 0, -1)


def all_pictures(
    machines: Sequence[Machine], fixed: Sequence[NodeInfo], shape: ModelShape
) -> Iterator[SwarmView]:
    """Every way to give each machine a span as long as its memory allows: a longer one is never worse."""
    links = MeasuredLinks([*fixed, *machines])
    n = shape.n_blocks
    starts = [range(n - machine.max_blocks + 1) for machine in machines]
    for places in product(*starts):
        served = [
            machine.serving(Span(start, start + machine.max_blocks), n)
            for machine, start in zip(machines, places, strict=True)
        ]
        yield SwarmView([*fixed, *served], shape, links)
