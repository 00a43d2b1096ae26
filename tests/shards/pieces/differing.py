"""What two models differ in."""

from __future__ import annotations

from swarm_node.shards.pieces.digest import ModelIdentity, Part


def differing_parts(one: ModelIdentity, other: ModelIdentity) -> list[Part]:
    return [part for part, own, its in zip(Part, one.parts, other.parts, strict=True) if own != its]
