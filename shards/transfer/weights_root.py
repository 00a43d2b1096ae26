"""Which files of a model to try first, where peers announce several roots for one digest.

What comes is checked against the digest, so a wrong root is found out, but only after something was fetched.
So the order is by what a stranger cannot make: networks that answer. Nodes that have hashed every byte of the
files themselves count; those that fetched them repeat what they were told.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ...swarm.naming.model_choice import ENOUGH
from ...swarm.naming.witnesses import Witnesses
from ...swarm.transport.address_groups import UNKNOWN, address_group, groups_of, networks
from ...swarm.transport.interface import Transport
from ...swarm.types import ModelRef, NodeInfo


def holders(nodes: Iterable[NodeInfo], root: str) -> list[NodeInfo]:
    """The nodes that share the files of this root."""
    return [node for node in nodes if node.shares_weights and node.weights_root == root]


@dataclass(frozen=True, slots=True)
class LikelyRoots:
    """``roots``: the likeliest first. ``in_doubt``: another is announced, and witnesses to the first answer
    from less than ENOUGH networks, or from no more than to another."""

    roots: list[str]
    in_doubt: bool = False


async def likely_roots(nodes: Sequence[NodeInfo], model: ModelRef, transport: Transport) -> LikelyRoots:
    """The roots under which peers share files of ``model``. If there are several, nodes are asked whether
    they are there."""
    said = [node for node in nodes if node.weights_root and model.digest in ("", node.model.digest)]
    if len({node.weights_root for node in said}) < 2:
        return LikelyRoots(in_order(said))
    came_from = (await Witnesses(transport).ask(said)).came_from
    roots = in_order(said, came_from, salt=transport.peer_id)
    witnesses = [node for node in said if node.weights_whole]
    weights = {
        root: networks(_answered((node for node in witnesses if node.weights_root == root), came_from))
        for root in {node.weights_root for node in said}
    }
    first = weights.pop(roots[0]) if roots else 0
    return LikelyRoots(roots, in_doubt=first < max(ENOUGH, max(weights.values()) + 1))


def in_order(
    nodes: Iterable[NodeInfo], came_from: Mapping[str, str] = MappingProxyType({}), *, salt: str = ""
) -> list[str]:
    """The roots that nodes share. ``came_from``: the addresses of the nodes that answered, by peer id.
    ``salt``: orders roots that are otherwise equal, so that a peer cannot choose a root that comes first. A
    machine that announces a hundred roots has one turn in each round."""
    by_root: dict[str, list[NodeInfo]] = {}
    for node in nodes:
        by_root.setdefault(node.weights_root, []).append(node)

    def rank(root: str) -> tuple[int, int, int]:
        whole = [node for node in by_root[root] if node.weights_whole]
        there = networks(_answered(by_root[root], came_from))
        # Without answers a node counts as one network, however many addresses it names.
        named = 0 if there else len({_named_group(node) for node in whole})
        return -networks(_answered(whole, came_from)), -there, -named

    roots = [root for root in by_root if root and holders(by_root[root], root)]
    ranks = {root: rank(root) for root in roots}
    turns: dict[str, int] = {}  # of those that rank alike, one of each place, then the next of each
    before: Counter[tuple[tuple[int, int, int], str]] = Counter()
    for root in sorted(roots, key=lambda root: hashlib.sha256(f"{salt}/{root}".encode()).digest()):
        groups = set(map(address_group, _answered(by_root[root], came_from)))
        places = [(ranks[root], group) for group in groups or set(map(_named_group, by_root[root]))]
        turns[root] = min(before[place] for place in places)
        before.update(places)
    return sorted(turns, key=lambda root: (ranks[root], turns[root]))


def _answered(nodes: Iterable[NodeInfo], came_from: Mapping[str, str]) -> list[str]:
    """The addresses of the nodes that answered."""
    return [came_from[node.peer_id] for node in nodes if node.peer_id in came_from]


def _named_group(node: NodeInfo) -> str:
    return min(groups_of(node.maddrs), default=UNKNOWN)
