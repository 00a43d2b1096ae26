"""Which blocks of a model how many nodes serve: pure functions of announcements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ...swarm.types import NodeInfo, NodeState, Span


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring blocks that the same number of nodes serves."""

    span: Span
    servers: int


def coverage(nodes: Iterable[NodeInfo], n_blocks: int) -> list[Stretch]:
    """Stretches of a model from its first block to its last. Only nodes that are online count."""
    changes = {0: 0, n_blocks: 0}
    for node in nodes:
        if node.state is NodeState.ONLINE:
            changes[node.span.start] = changes.get(node.span.start, 0) + 1
            changes[node.span.end] = changes.get(node.span.end, 0) - 1
    borders = sorted(border for border in changes if border <= n_blocks)
    servers = list(accumulate(changes[border] for border in borders))
    found: list[Stretch] = []
    for (start, end), count in zip(pairwise(borders), servers, strict=False):
        if found and found[-1].servers == count:
            start = found.pop().span.start
        found.append(Stretch(Span(start, end), count))
    return found


def throughput(nodes: Sequence[NodeInfo], n_blocks: int) -> float:
    """Tokens per second that went through the whole model lately, by what its nodes announce. Each token goes
    once through each block, so it is the mean over the blocks of what their nodes computed. A node that a
    route uses for a part of its blocks counts with all of them: this is an estimate from above."""
    return sum(node.tokens_per_s * len(node.span) for node in nodes) / n_blocks
