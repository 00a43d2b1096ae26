"""Which models nodes announce. A digest alone says neither a model's name nor its number of blocks, and one
node may say anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..types import ModelRef, NodeInfo


def by_model(nodes: Iterable[NodeInfo]) -> dict[str, list[NodeInfo]]:
    """The nodes of each model, by its digest."""
    found: dict[str, list[NodeInfo]] = {}
    for node in nodes:
        found.setdefault(node.model.digest, []).append(node)
    return found


def model_of(nodes: Sequence[NodeInfo]) -> ModelRef:
    """What most of a model's nodes say that it is."""
    said = Counter((node.model.name, node.model.n_blocks) for node in nodes)
    (usual, _), *_ = said.most_common(1)
    return next(node.model for node in nodes if (node.model.name, node.model.n_blocks) == usual)
