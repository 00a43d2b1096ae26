"""Whether machines can carry a model together: how many like this one, and those of the swarm by what they
announce. Free memory is not announced, so of a node is known at least what it holds now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...shards.catalogue.catalogue import find_in_catalogue
from ...swarm.placement.swarm_view import Machine, MeasuredLinks, SwarmView
from ...swarm.placement.types import ModelShape
from ...swarm.types import ModelRef, NodeInfo, Span
from .machine import MeasuredMachine


@dataclass(frozen=True, slots=True)
class Alike:
    """Machines like this one that carry the whole model: ``spans``, one each. ``token_s``: seconds a token
    through all of them on a home's network; the answer of one client, without waiting."""

    spans: tuple[Span, ...]
    token_s: float


@dataclass(frozen=True, slots=True)
class OtherMachine:
    """Another node, and ``blocks`` of the planned model that it could hold at least in place of what it holds
    now; None where that cannot be told, since nobody here knows how large what it serves is."""

    node: NodeInfo
    blocks: int | None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "peer_id": self.node.peer_id,
            "serves": self.node.model.name,
            "blocks": str(self.node.span),
            "could_hold": self.blocks,
        }


def alike(machine: MeasuredMachine) -> Alike | None:
    """None where no block fits into a machine like this one."""
    fits = machine.max_blocks() > 0
    shape = machine.shape if fits else machine.lean
    if shape is None:
        return None
    spans = _filled(shape, machine.memory_bytes)
    if not spans:
        return None
    one = Machine.offering(machine.offer("this machine"), shape)
    nodes = [
        replace(one, peer_id=str(number)).serving(span, shape.n_blocks) for number, span in enumerate(spans)
    ]
    return Alike(tuple(spans), SwarmView(nodes, shape, MeasuredLinks(nodes)).cost_s)


def _filled(shape: ModelShape, memory_bytes: int) -> list[Span]:
    """Spans from the first block to the last, each as long as fits; [] where one block or group does not."""
    cuts = [boundary for boundary in range(shape.n_blocks + 1) if boundary not in shape.closed]
    spans: list[Span] = []
    start = 0
    while start < shape.n_blocks:
        ends = [end for end in cuts if end > start and shape.room(Span(start, end)) <= memory_bytes]
        if not ends:
            return []
        spans.append(Span(start, ends[-1]))
        start = ends[-1]
    return spans


def others(nodes: Iterable[NodeInfo], model: ModelRef, shape: ModelShape) -> tuple[OtherMachine, ...]:
    """The machines of all ``nodes`` of a swarm, whatever they serve, the roomiest first."""
    found = [OtherMachine(node, _blocks_of(node, model, shape)) for node in nodes]
    return tuple(sorted(found, key=lambda each: (-(each.blocks or 0), each.node.peer_id)))


def _blocks_of(node: NodeInfo, model: ModelRef, shape: ModelShape) -> int | None:
    held = max(node.max_blocks, len(node.span))
    if model.digest and node.model.digest == model.digest:
        return min(held, shape.n_blocks)
    files = find_in_catalogue(node.model.name)
    if files is None or files.config.n_blocks != node.model.n_blocks:
        return None
    return shape.max_blocks(held * min(files.block_bytes))
