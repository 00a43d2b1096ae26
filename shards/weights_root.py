"""Whom to believe about what a model's files contain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..swarm.errors import ModelMismatchError
from ..swarm.types import ModelRef, NodeInfo


def holders(nodes: Iterable[NodeInfo], root: str) -> list[NodeInfo]:
    """Those who share the files of this root."""
    return [node for node in nodes if node.shares_weights and node.weights_root == root]


def agreed_root(nodes: Sequence[NodeInfo], model: ModelRef) -> str:
    """The root that all who share files of ``model`` announce; "" where nobody does.

    ModelMismatchError where they announce different ones: then a person must say which to believe.
    """
    said: dict[str, list[str]] = {}
    for node in nodes:
        if node.weights_root and (not model.digest or node.model.digest == model.digest):
            said.setdefault(node.weights_root, []).append(node.peer_id)
    if len(said) <= 1:
        return next(iter(said), "")
    listed = ", ".join(
        f"{root[:12]} ({len(peers)}, such as …{peers[0][-6:]})" for root, peers in sorted(said.items())[:4]
    )
    raise ModelMismatchError(
        f"peers share different files as {model.name}: {listed}",
        hint=f"Say which you trust: --model {model.name}@sha256:ROOT (`status --json` shows whole roots).",
    )
