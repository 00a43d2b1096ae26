"""A swarm that is only announcements, and answers that are only figures: what dashboards are tried on."""

from __future__ import annotations

import random
from dataclasses import replace

from swarm_node.client.dashboard.source import Counters, OwnWork, RunningAnswer, SeenRepair
from swarm_node.swarm.placement.demand import Wanted, WantedModel
from swarm_node.swarm.runtime.histogram import Histogram
from swarm_node.swarm.types import Hop, ModelRef, NodeInfo, NodeState, PeerLink, Span

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
LLAMA = ModelRef("Llama-3.3-70B-Instruct-Q4_K_M", "ab" * 32, 80)
SMOL = ModelRef("SmolLM2-135M-Instruct", "cd" * 32, 30)
BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def peer_id(chance: random.Random) -> str:
    return "12D3KooW" + "".join(chance.choices(BASE58, k=44))


def simulated_node(model: ModelRef, span: Span, chance: random.Random) -> NodeInfo:
    total = chance.choice([4096, 16384, 65536])
    busy = chance.random() ** 2
    return NodeInfo(
        peer_id=peer_id(chance),
        maddrs=(f"/ip4/{chance.randrange(11, 99)}.{chance.randrange(256)}.3.4/tcp/4001",),
        model=model,
        span=span,
        state=NodeState.ONLINE,
        decode_ms_per_block=0.2 + chance.random(),
        prefill_tokens_per_s=200 + 2000 * chance.random(),
        free_kv_tokens=round(total * (1 - 0.8 * busy)),
        total_kv_tokens=total,
        codecs=("int8",),
        weights=chance.choice(["int4 (Q4_K)", "bf16", "int8 (Q8_0)", "int5 (Q5_0)"]),
        version="0.1.0",
        queue_ms=30 * busy,
        tokens_per_s=200 * busy,
        sessions=round(10 * busy),
        direct_maddrs=("/ip4/1.2.3.4/tcp/4002",) if chance.random() < 0.7 else (),
    )


def simulated_swarm(
    count: int, model: ModelRef = LLAMA, *, seed: int = 1, leave_out: Span | None = None
) -> list[NodeInfo]:
    """``count`` nodes over a model, most blocks served by several; ``leave_out``: blocks that none serves."""
    chance = random.Random(seed)
    whole = [Span(at, at + model.n_blocks // 5) for at in range(0, model.n_blocks, model.n_blocks // 5)]
    nodes = [] if leave_out else [simulated_node(model, span, chance) for span in whole]
    while len(nodes) < count:
        length = chance.choice([4, 8, 10, 16, 20])
        start = chance.randrange(0, model.n_blocks - length + 1)
        span = Span(start, start + length)
        if leave_out is None or span.end <= leave_out.start or span.start >= leave_out.end:
            nodes.append(simulated_node(model, span, chance))
    states = [NodeState.JOINING, NodeState.DRAINING]
    nodes = [replace(node, state=states[i % 2]) if i % 29 == 28 else node for i, node in enumerate(nodes)]
    ids = [node.peer_id for node in nodes]
    return [
        replace(
            node,
            links=tuple(
                PeerLink(peer, 0.001 + 0.08 * chance.random(), 1e6 + 1e8 * chance.random())
                for peer in chance.sample(ids, min(6, len(ids)))
                if peer != node.peer_id
            ),
        )
        for node in nodes
    ]


def three_nodes(model: ModelRef = SMOL) -> list[NodeInfo]:
    chance = random.Random(3)
    third = model.n_blocks // 3
    return [simulated_node(model, Span(i * third, (i + 1) * third), chance) for i in range(3)]


def route_over(nodes: list[NodeInfo], n_blocks: int, seed: int = 0) -> tuple[Hop, ...]:
    """A route of random nodes that are online."""
    chance = random.Random(seed)
    hops: list[Hop] = []
    at = 0
    while at < n_blocks:
        usable = [n for n in nodes if n.state is NodeState.ONLINE and n.span.start <= at < n.span.end]
        node = chance.choice(usable)
        hops.append(Hop(node.peer_id, Span(at, node.span.end)))
        at = node.span.end
    return tuple(hops)


def wanted_by(peer: str, name: str) -> Wanted:
    return Wanted(peer, (WantedModel(name),))


class SimulatedSource:
    """Figures that a test sets."""

    def __init__(self) -> None:
        self.running: list[RunningAnswer] = []
        self.seen: list[SeenRepair] = []
        self.totals: Counters | None = Counters()
        self.work: OwnWork | None = None
        self.first_token_s = Histogram(BOUNDS)
        self.token_s = Histogram(BOUNDS)

    def answers(self) -> list[RunningAnswer]:
        return self.running

    def repairs(self) -> list[SeenRepair]:
        return self.seen

    def counters(self) -> Counters | None:
        if self.totals is None:
            return None
        return replace(self.totals, first_token_s=self.first_token_s.totals(), token_s=self.token_s.totals())

    def own(self) -> OwnWork | None:
        return self.work
