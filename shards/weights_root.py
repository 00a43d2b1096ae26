"""Which files of a model to try first, where peers announce several roots for one digest.

What comes is checked against the digest, so a wrong root is found out, but only after something was fetched.
So the order is by what a stranger cannot make: networks that answer. Nodes that have hashed every byte of the
files themselves bear witness; those that fetched them repeat what they were told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..swarm.address_groups import UNKNOWN, groups_of, networks
from ..swarm.model_choice import ENOUGH
from ..swarm.transport import Transport
from ..swarm.types import ModelRef, NodeInfo
from ..swarm.witnesses import Witnesses


def holders(nodes: Iterable[NodeInfo], root: str) -> list[NodeInfo]:
    """Those who share the files of this root."""
    return [node for node in nodes if node.shares_weights and node.weights_root == root]


@dataclass(frozen=True, slots=True)
class LikelyRoots:
    """``roots``: the likeliest first. ``in_doubt``: another is announced, and witnesses to the first answer
    from less than ENOUGH networks, or from no more than to another."""

    roots: list[str]
    in_doubt: bool = False


async def likely_roots(nodes: Sequence[NodeInfo], model: ModelRef, transport: Transport) -> LikelyRoots:
    """Those under which peers share files of ``model``. Where there are several, nodes are asked whether they
    are there."""
    said = [node for node in nodes if node.weights_root and model.digest in ("", node.model.digest)]
    if len({node.weights_root for node in said}) < 2:
        return LikelyRoots(in_order(said))
    came_from = (await Witnesses(transport).ask(said)).came_from
    roots = in_order(said, came_from, salt=transport.peer_id)
    witnesses = [node for node in said if node.weights_whole and node.peer_id in came_from]
    places = {
        root: networks(came_from[node.peer_id] for node in witnesses if node.weights_root == root)
        for root in {node.weights_root for node in said}
    }
    first = places.pop(roots[0]) if roots else 0
    return LikelyRoots(roots, in_doubt=first < max(ENOUGH, max(places.values()) + 1))


def in_order(
    nodes: Iterable[NodeInfo], came_from: Mapping[str, str] | None = None, *, salt: str = ""
) -> list[str]:
    """The roots that somebody shares. ``came_from``: where those nodes answered that did, by peer id.
    ``salt``: orders what nothing else tells apart, so that nobody can choose a root that comes first."""
    answered = came_from or {}
    by_root: dict[str, list[NodeInfo]] = {}
    for node in nodes:
        by_root.setdefault(node.weights_root, []).append(node)

    def rank(root: str) -> tuple[int, int, int, bytes]:
        found = by_root[root]
        whole = [node for node in found if node.weights_whole]
        return (
            -networks(answered[node.peer_id] for node in whole if node.peer_id in answered),
            -networks(answered[node.peer_id] for node in found if node.peer_id in answered),
            # Of nobody who answered: one network a node, whatever addresses it names.
            -len({min(groups_of(node.maddrs), default=UNKNOWN) for node in whole}),
            hashlib.sha256(f"{salt}/{root}".encode()).digest(),
        )

    return sorted((root for root in by_root if root and holders(by_root[root], root)), key=rank)
