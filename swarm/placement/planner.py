"""Which blocks a node should serve, and when it should change them: snapshot in, verdict out.

The aim, in this order: every block is served; the best route takes as little time per token as it can; all
nodes together compute as many tokens per second as they can. A verdict is a pure function of the
announcements, so nodes that see the same need not talk about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..boundaries import may_serve, span_inside
from ..errors import UsageError
from ..types import NodeInfo, NodeState, Span, short_peer_id
from .assign import assign_machines
from .best_span import BestSpan, choose
from .moves import can_spare, next_move
from .swarm_view import Machine, MeasuredLinks, SwarmView
from .types import Gain, ModelShape, NodeOffer, Serve, StandBy, Stay, Verdict, gigabytes

MOVE_COOL_DOWN_S = 300.0
"""A node waits this many seconds after its last move before it moves for a gain again. It may close a hole at
any time."""
PLACED_TOGETHER = 32
"""Up to this many nodes that start at once are placed together. If there are more, this many at a time."""


def plan_join(snapshot: Sequence[NodeInfo], offer: NodeOffer, shape: ModelShape) -> Verdict:
    """What a node that serves nothing yet should serve.

    ``snapshot``: announcements of one model; the node's own may be among them. DRAINING nodes count as gone,
    JOINING ones as if they served already, except those that have not begun to load (``max_blocks`` above 0):
    they and this node are placed together, the same for each of them that sees the same snapshot.
    """
    own = Machine.offering(offer, shape)
    others = [
        node
        for node in _of_shape(snapshot, shape)
        if node.peer_id != own.peer_id and node.state != "draining"
    ]
    told = next((node for node in _undecided(snapshot, shape) if node.peer_id == own.peer_id), None)
    if told is not None and own.max_blocks > 0:
        own = Machine.announced(told, shape)  # what all others reckon with
    undecided = _undecided(others, shape)
    if undecided and own.max_blocks > 0:
        return _join_together(others, undecided, own, shape)
    view = SwarmView(others, shape, MeasuredLinks([*others, own]), [own.peer_id])
    choice = choose(view, own)
    if not isinstance(choice, BestSpan):
        return StandBy(f"stands by: {choice.why}")
    return _serve(choice.span, choice.gain, view, choice.after)


def plan_move(
    snapshot: Sequence[NodeInfo],
    offer: NodeOffer,
    shape: ModelShape,
    *,
    now: float,
    last_move_at: float | None = None,
) -> Serve | Stay:
    """Whether the node ``offer.peer_id``, ONLINE in ``snapshot``, should serve other blocks now.

    Serve only if it is this node's turn: no node joins or drains, no block that others serve loses its last
    server meanwhile, and the gain is worth it. ``last_move_at``: when this node last moved or joined, on the
    clock of ``now``.
    """
    nodes = _of_shape(snapshot, shape)
    own = next((node for node in nodes if node.peer_id == offer.peer_id), None)
    if own is None or own.state is not NodeState.ONLINE:
        return Stay("stays: the directory does not show it online")
    for state in (NodeState.DRAINING, NodeState.JOINING):
        busy = next((node for node in nodes if node.state is state), None)
        if busy is not None and (state is NodeState.DRAINING or _is_whole(nodes, shape)):
            return Stay(f"stays: {short_peer_id(busy.peer_id)} is {state}, and one node moves at a time")
    machines = {
        node.peer_id: Machine.announced(node, shape)
        for node in nodes
        if node.max_blocks > 0 and node.state is NodeState.ONLINE
    }
    if own.peer_id not in machines:
        return Stay("stays: its announcement offers no change of blocks")
    # As announced, so that all nodes come to the same plan; but no more than its memory holds now.
    holds = min(machines[own.peer_id].max_blocks, shape.max_blocks(offer.memory_bytes))
    machines[own.peer_id] = replace(machines[own.peer_id], max_blocks=holds)
    move = next_move(nodes, machines, shape)
    if move is None:
        return Stay("stays: no move would gain enough")
    if move.peer_id != own.peer_id:
        return Stay(f"stays: {short_peer_id(move.peer_id)} should move to {move.span} first", move.peer_id)
    resting = last_move_at is not None and now - last_move_at < MOVE_COOL_DOWN_S
    if resting and move.gain is not Gain.COVER:
        return Stay(f"stays: it moved less than {MOVE_COOL_DOWN_S:.0f} s ago", move.peer_id)
    return _serve(move.span, move.gain, move.before, move.after)


def why_not_leave(snapshot: Sequence[NodeInfo], peer_id: str, n_blocks: int) -> str:
    """Why ``peer_id`` must not stop serving its span now, in a few words; "" when it may.

    For a last look after a node has announced DRAINING in order to move: of two that drain at once the one
    with the smaller peer id goes on. Where the swarm has a hole already, a new one costs no route.
    """
    rival = min((node.peer_id for node in snapshot if node.state is NodeState.DRAINING), default=peer_id)
    if rival < peer_id:
        return f"{short_peer_id(rival)} is draining, and one node moves at a time"
    ready = [node for node in snapshot if node.state is NodeState.ONLINE or node.peer_id == peer_id]
    if SwarmView.covered(ready, n_blocks) and (alone := can_spare(ready, peer_id, n_blocks)):
        return f"nobody else serves blocks {alone}"
    return ""


def assign(
    offers: Sequence[NodeOffer], shape: ModelShape, *, fixed: Sequence[NodeInfo] = ()
) -> dict[str, Span]:
    """The best spans found for all ``offers`` at once, by peer id, beside nodes that are ``fixed``. A machine
    that would not help is left out."""
    machines = [Machine.offering(offer, shape) for offer in offers]
    if len({machine.peer_id for machine in machines}) < len(machines):
        raise UsageError("a peer has two offers")
    return assign_machines(machines, fixed, shape, MeasuredLinks([*fixed, *machines]))


def _join_together(
    others: Sequence[NodeInfo], undecided: Sequence[NodeInfo], own: Machine, shape: ModelShape
) -> Verdict:
    everybody = sorted([*undecided, own.serving(Span(0, 1), shape.n_blocks)], key=lambda node: node.peer_id)
    place = next(place for place, node in enumerate(everybody) if node.peer_id == own.peer_id)
    first = place - place % PLACED_TOGETHER
    group = {
        node.peer_id: Machine.announced(node, shape) for node in everybody[first : first + PLACED_TOGETHER]
    }
    group[own.peer_id] = own
    fixed = [node for node in others if node.peer_id not in group]
    links = MeasuredLinks([*fixed, *group.values()])
    spans = assign_machines(list(group.values()), fixed, shape, links)
    beside = [
        group[peer_id].serving(span, shape.n_blocks)
        for peer_id, span in spans.items()
        if peer_id != own.peer_id
    ]
    before = SwarmView([*fixed, *beside], shape, links, [own.peer_id])
    if own.peer_id not in spans:
        choice = choose(before, own)
        return StandBy(f"stands by: {'others start too' if isinstance(choice, BestSpan) else choice.why}")
    span = spans[own.peer_id]
    after = before.with_node(own.serving(span, shape.n_blocks))
    if after.n_missing < before.n_missing:
        gain = Gain.COVER
    elif after.cost_s < before.cost_s:
        gain = Gain.FASTER
    else:
        gain = Gain.THROUGHPUT if after.tokens_per_s > before.tokens_per_s else Gain.SPARE
    return _serve(span, gain, before, after)


def _of_shape(snapshot: Sequence[NodeInfo], shape: ModelShape) -> list[NodeInfo]:
    """What counts of ``snapshot``: of a node that says it serves blocks that it could not, those between the
    model's cuts."""
    found = []
    for node in snapshot:
        if node.model.n_blocks != shape.n_blocks:
            continue
        if not _is_undecided(node) and not may_serve(node.span, shape.cuts):
            span = span_inside(node.span, shape.cuts)
            if span is None:
                continue
            node = replace(node, span=span)
        found.append(node)
    return found


def _undecided(nodes: Sequence[NodeInfo], shape: ModelShape) -> list[NodeInfo]:
    return [node for node in _of_shape(nodes, shape) if _is_undecided(node)]


def _is_undecided(node: NodeInfo) -> bool:
    """Whether it has not begun to load."""
    return node.state is NodeState.JOINING and node.max_blocks > 0


def _is_whole(nodes: Sequence[NodeInfo], shape: ModelShape) -> bool:
    return SwarmView.covered([node for node in nodes if node.state is not NodeState.DRAINING], shape.n_blocks)


def _serve(span: Span, gain: Gain, before: SwarmView, after: SwarmView) -> Serve:
    memory = before.shape.room(span)
    return Serve(
        span,
        gain,
        f"serve {_blocks(span)}, {gigabytes(memory)}, {_good_for(span, gain, before, after)}",
        memory,
        after.token_s,
        before.token_s,
        after.tokens_per_s,
        before.tokens_per_s,
    )


def _blocks(span: Span) -> str:
    return str(span) if len(span) > 1 else str(span.start)


def _good_for(span: Span, gain: Gain, before: SwarmView, after: SwarmView) -> str:
    if gain is Gain.COVER:
        closed = [hole for hole in before.missing if hole.start < span.end and span.start < hole.end]
        blocks = [Span(max(hole.start, span.start), min(hole.end, span.end)) for hole in closed]
        return (
            f"nobody else serves {', '.join(map(_blocks, blocks))}" if blocks else "holes can be closed then"
        )
    if gain is Gain.FASTER:
        return f"the route gets {100 * (before.cost_s / after.cost_s - 1):.0f} % faster"
    if gain is Gain.THROUGHPUT:
        return (
            f"all together compute {100 * (after.tokens_per_s / before.tokens_per_s - 1):.0f} % more tokens"
        )
    return "another copy of blocks that few nodes serve"
