"""Nodes and shapes for the planner's tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scripts.studies.placement.clusters import BLOCK_BYTES
from swarm_node.swarm.placement.swarm_view import Machine
from swarm_node.swarm.placement.types import ModelShape
from swarm_node.swarm.types import NodeInfo, NodeState, Span


def shape(n_blocks: int = 12, **changes: Any) -> ModelShape:
    return ModelShape(n_blocks, BLOCK_BYTES, **changes)


def node(
    peer_id: str,
    start: int,
    end: int,
    *,
    ms: float = 1.0,
    most: int = 0,
    n_blocks: int = 12,
    state: NodeState = NodeState.ONLINE,
) -> NodeInfo:
    """``most``: how many blocks it could hold; 0: a person chose its blocks."""
    return replace(Machine(peer_id, most, ms).serving(Span(start, end), n_blocks), state=state)
