"""Random heterogeneous clusters: machines that differ in memory, speed and distance."""

from __future__ import annotations

import random
from collections.abc import Sequence

from swarm_node.swarm.placement.swarm_view import Machine
from swarm_node.swarm.placement.types import NodeOffer
from swarm_node.swarm.types import NodeInfo, PeerLink, Span

BLOCK_BYTES = 100
"""Bytes of a block in these clusters. An offer's memory is this times its blocks."""


def links_between(rng: random.Random, peer_id: str, others: Sequence[str]) -> tuple[PeerLink, ...]:
    """To most of ``others``: 0.5 to 200 ms, from unmeasured to 800 Mbit/s."""
    near = rng.choice([0.0005, 0.002, 0.02])
    return tuple(
        PeerLink(other, near * rng.choice([1, 1, 2, 10]), rng.choice([0.0, 1e6, 1e7, 1e8]))
        for other in others
        if other != peer_id and rng.random() < 0.8
    )[:16]


def cluster(
    rng: random.Random, count: int, fixed: int, n_blocks: int
) -> tuple[list[Machine], list[NodeInfo]]:
    """``count`` machines that hold an eighth of the blocks to all of them, at 0.08 to 6 ms a block, and
    ``fixed`` nodes whose spans somebody chose."""
    peers = [f"peer{number:02d}" for number in range(count + fixed)]
    machines = [
        Machine(
            peer_id,
            rng.randint(max(1, n_blocks // 8), n_blocks),
            rng.choice([0.1, 0.3, 1, 2, 5]) * rng.uniform(0.8, 1.2),
            links_between(rng, peer_id, peers),
        )
        for peer_id in peers[:count]
    ]
    nodes = []
    for peer_id in peers[count:]:
        start = rng.randrange(n_blocks)
        machine = Machine(peer_id, 0, rng.choice([0.3, 1, 2]), links_between(rng, peer_id, peers))
        nodes.append(machine.serving(Span(start, rng.randint(start + 1, n_blocks)), n_blocks))
    return machines, nodes


def offers(machines: Sequence[Machine]) -> list[NodeOffer]:
    """What they would offer, where a block takes BLOCK_BYTES."""
    return [
        NodeOffer(m.peer_id, m.max_blocks * BLOCK_BYTES, m.decode_ms_per_block, 0.0, m.links)
        for m in machines
    ]
