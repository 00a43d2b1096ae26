"""Which node should serve other blocks, and which blocks: one node at a time, and only for a gain that is
worth the move.

All nodes that see the same announcements find the same mover. Why this comes to rest: a move makes the best
route faster by a part, or leaves it as it is and adds a part of the throughput; or it is a step of a plan for
all, which does not depend on where nodes are now, in an order that can be gone to its end without a hole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..types import NodeInfo, Span
from .assign import assign_machines
from .best_span import BestSpan, choose
from .chain_search import may_be_faster
from .swarm_view import Machine, MeasuredLinks, SwarmView, block_rate
from .types import Gain, ModelShape

WORTH_MOVING = 0.05
"""A move must save this part of a token's time. Measured speeds vary by a few per cent from run to run."""
WORTH_MOVING_FOR_COPIES = 0.1
"""A move must save this part of the shortage of copies."""
WORTH_MOVING_FOR_ALL = 0.25
"""A move must add this part of the throughput."""
SLOWER = 1.001
"""A move for throughput may raise the best route's time by this factor at most."""
ALL = 12
"""If at most this many nodes may move, every one of them is looked at."""
LIKELY = 4
"""In larger swarms this many of the fastest nodes are looked at, and this many of those least needed."""
TOGETHER = 8
"""If at most this many nodes may move, a plan for all of them is made."""
PLANNED = 32
"""The same while blocks are missing, which is worth more computing."""


@dataclass(frozen=True, slots=True)
class Move:
    """``peer_id`` should serve ``span``: the next step on the link from ``before`` to ``after``."""

    peer_id: str
    span: Span
    gain: Gain
    before: SwarmView
    after: SwarmView


def next_move(nodes: Sequence[NodeInfo], machines: Mapping[str, Machine], shape: ModelShape) -> Move | None:
    """The move that should be made first. ``nodes``: all that serve or are about to; ``machines``: those of
    them that may move."""
    links = MeasuredLinks([*nodes, *machines.values()])
    before = SwarmView(nodes, shape, links, machines)
    if before.missing:
        return _repair(before, nodes, machines)
    fixed = [node for node in nodes if node.peer_id not in machines]
    within_s = before.cost_s * (1 - WORTH_MOVING)
    faster = may_be_faster(list(machines.values()), fixed, before, within_s)
    if faster is False and not _may_compute_more(before):
        return None
    alone = _alone(before, nodes, machines)
    if faster and len(machines) <= TOGETHER and (alone is None or alone.after.cost_s > within_s):
        return _together(before, nodes, machines) or alone
    return alone


def _may_compute_more(before: SwarmView) -> bool:
    """Whether there is enough to gain from what all nodes compute to the work of all, evenly spread."""
    most = sum(map(block_rate, before.nodes.values())) / before.shape.n_blocks
    return most >= before.tokens_per_s * (1 + WORTH_MOVING_FOR_ALL) or 1 / most <= before.shortage * (
        1 - WORTH_MOVING_FOR_COPIES
    )


def can_spare(nodes: Sequence[NodeInfo], peer_id: str, n_blocks: int) -> Span | None:
    """None where every block of ``peer_id`` has another server that is ONLINE; else blocks that have none."""
    own = next((node for node in nodes if node.peer_id == peer_id), None)
    if own is None:
        return None
    copies = [0] * n_blocks
    for node in nodes:
        if node.peer_id != peer_id and node.state == "online":
            for block in range(node.span.start, min(node.span.end, n_blocks)):
                copies[block] += 1
    alone = [block for block in range(own.span.start, min(own.span.end, n_blocks)) if not copies[block]]
    return Span(alone[0], alone[-1] + 1) if alone else None


def _alone(before: SwarmView, nodes: Sequence[NodeInfo], machines: Mapping[str, Machine]) -> Move | None:
    """The best move of a single node."""
    best: tuple[tuple[int, float, float], Move] | None = None
    for peer_id in _likeliest(before, machines):
        if not before.missing and can_spare(nodes, peer_id, before.shape.n_blocks):
            continue
        choice = choose(before.without(peer_id), machines[peer_id], worth=0.01)
        if not isinstance(choice, BestSpan) or choice.span == before.nodes[peer_id].span:
            continue
        gain = _gain(before, choice.after)
        if gain is None:
            continue
        after = choice.after
        faster = gain in (Gain.COVER, Gain.FASTER)
        score = (after.n_missing, after.cost_s if faster else before.cost_s, -after.tokens_per_s)
        if best is None or score < best[0]:
            best = score, Move(peer_id, choice.span, gain, before, after)
    return None if best is None else best[1]


def _gain(before: SwarmView, after: SwarmView) -> Gain | None:
    """The gain that makes a change worthwhile; None if there is none."""
    if after.n_missing != before.n_missing:
        return Gain.COVER if after.n_missing < before.n_missing else None
    if after.cost_s <= before.cost_s * (1 - WORTH_MOVING):
        return Gain.FASTER
    if before.missing or after.cost_s > before.cost_s * SLOWER:
        return None
    if after.reaches(before.tokens_per_s * (1 + WORTH_MOVING_FOR_ALL)):
        return Gain.THROUGHPUT
    if after.shortage > before.shortage * (1 - WORTH_MOVING_FOR_COPIES) or after.singles > before.singles:
        return None
    return Gain.SPARE if after.reaches(before.tokens_per_s * SLOWER) else None


def _likeliest(view: SwarmView, machines: Mapping[str, Machine]) -> list[str]:
    if len(machines) <= ALL:
        return sorted(machines)

    def needed(peer_id: str) -> tuple[float, str]:
        span = view.nodes[peer_id].span
        own = block_rate(view.nodes[peer_id]) / len(span)
        return -min(view.density[span.start : span.end]) / own, peer_id

    spare = [
        peer_id
        for peer_id in machines
        if view.missing or min(view.copies[slice(*_ends(view.nodes[peer_id]))]) > 1
    ]
    fastest = sorted(spare, key=lambda peer_id: (machines[peer_id].decode_ms_per_block, peer_id))
    least = sorted(spare, key=needed)
    return list(dict.fromkeys([*fastest[:LIKELY], *least[:LIKELY]]))


def _ends(node: NodeInfo) -> tuple[int, int]:
    return node.span.start, node.span.end


def _repair(before: SwarmView, nodes: Sequence[NodeInfo], machines: Mapping[str, Machine]) -> Move | None:
    """The move that closes most of the holes; where several must move for that, the first of them. No route
    exists meanwhile, so none is lost."""
    alone = _alone(before, nodes, machines)
    if (alone is not None and not alone.after.missing) or len(machines) > PLANNED:
        return alone
    moved, after = _target(before, nodes, machines)
    if after.n_missing >= (before if alone is None else alone.after).n_missing:
        return alone
    served = {node.peer_id: node for node in nodes}
    steps = [peer_id for peer_id in sorted(moved) if moved[peer_id].span != served[peer_id].span]

    def left_open(peer_id: str) -> tuple[int, str]:
        return before.without(peer_id).with_node(moved[peer_id]).n_missing, peer_id

    step = min(steps, key=left_open)
    return Move(step, moved[step].span, Gain.COVER, before, after)


def _target(
    before: SwarmView, nodes: Sequence[NodeInfo], machines: Mapping[str, Machine]
) -> tuple[dict[str, NodeInfo], SwarmView]:
    """The best plan for all that may move, wherever they are now, and the view with it."""
    fixed = [node for node in nodes if node.peer_id not in machines]
    spans = assign_machines(list(machines.values()), fixed, before.shape, before.links)
    moved = {
        peer_id: machines[peer_id].serving(span, before.shape.n_blocks) for peer_id, span in spans.items()
    }
    everybody = {node.peer_id: node for node in nodes} | moved
    return moved, SwarmView(everybody.values(), before.shape, before.links)


def _together(before: SwarmView, nodes: Sequence[NodeInfo], machines: Mapping[str, Machine]) -> Move | None:
    """The first step towards the best plan for all that may move, if all of it can be gone without a hole."""
    moved, after = _target(before, nodes, machines)
    if after.missing or after.cost_s > before.cost_s * (1 - WORTH_MOVING):
        return None
    served = {node.peer_id: node for node in nodes}
    wanted = {
        hop.peer_id: moved[hop.peer_id]
        for hop in after.best_route().hops
        if hop.peer_id in moved and not served[hop.peer_id].span.covers(hop.span)
    }
    order = _safe_order(served, wanted, before)
    if not order:
        return None
    after = SwarmView({**served, **wanted}.values(), before.shape, before.links)
    return Move(order[0], wanted[order[0]].span, Gain.FASTER, before, after)


def _safe_order(
    served: Mapping[str, NodeInfo], wanted: Mapping[str, NodeInfo], before: SwarmView
) -> list[str] | None:
    """The moves of ``wanted`` in an order in which none opens a hole, and none makes the best route slower
    than it was: else a later look would take it back. None where there is no such order."""
    if not wanted:
        return []
    now = list(served.values())
    for peer_id in sorted(wanted):
        if can_spare(now, peer_id, before.shape.n_blocks):
            continue
        then = {**served, peer_id: wanted[peer_id]}
        if SwarmView(then.values(), before.shape, before.links).cost_s > before.cost_s * SLOWER:
            continue
        rest = {other: node for other, node in wanted.items() if other != peer_id}
        order = _safe_order(then, rest, before)
        if order is not None:
            return [peer_id, *order]
    return None
