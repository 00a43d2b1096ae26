from __future__ import annotations

import random
from collections.abc import Sequence

from swarm_node.node import liveness
from swarm_node.node.liveness import FAILURES, MOST_PINGED, Liveness
from swarm_node.swarm.errors import PeerUnreachableError
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

MODEL = ModelRef("tiny", "ab" * 32, 4)


def node(peer_id: str, state: NodeState = NodeState.ONLINE) -> NodeInfo:
    return NodeInfo(peer_id, (f"/{peer_id}",), MODEL, Span(0, 4), state)


class FakeLinks:
    """Nodes in ``up`` answer after 2 ms, all others refuse."""

    def __init__(self, up: set[str]) -> None:
        self.up = up
        self.dialled: list[str] = []

    async def get(self, peer_id: str, maddrs: Sequence[str] = ()) -> FakeLinks:
        self.dialled.append(peer_id)
        if peer_id not in self.up:
            raise PeerUnreachableError(f"{peer_id} refuses")
        return self

    async def ping(self) -> float:
        return 0.002


def liveness_of(links: FakeLinks) -> tuple[Liveness, dict[str, float]]:
    seen: dict[str, float] = {}
    return Liveness(links, seen.__setitem__, rng=random.Random(0)), seen


async def test_a_node_that_answered_and_refuses_twice_is_dead_until_it_answers_again():
    links = FakeLinks({"a", "b"})
    alive, seen = liveness_of(links)
    nodes = [node("a"), node("b"), node("own")]
    assert await alive.living(nodes, "own") == nodes
    assert seen == {"a": 0.002, "b": 0.002}
    assert "own" not in links.dialled
    links.up.remove("b")
    for _ in range(FAILURES - 1):
        assert await alive.living(nodes, "own") == nodes
    assert await alive.living(nodes, "own") == [node("a"), node("own")]
    links.up.add("b")
    assert await alive.living(nodes, "own") == nodes


async def test_a_node_that_never_answered_is_not_dead():
    """Behind NAT it may serve everybody but us."""
    alive, seen = liveness_of(FakeLinks(set()))
    for _ in range(5):
        assert await alive.living([node("a")], "own") == [node("a")]
    assert seen == {}


async def test_a_node_that_joins_again_is_not_asked_and_not_dead():
    links = FakeLinks({"a"})
    alive, _ = liveness_of(links)
    await alive.living([node("a")], "own")
    links.up.clear()
    for _ in range(FAILURES):
        await alive.living([node("a")], "own")
    links.dialled.clear()
    joining = node("a", NodeState.JOINING)
    assert await alive.living([joining], "own") == [joining]
    assert links.dialled == []


async def test_of_a_large_swarm_a_sample_is_asked(monkeypatch):
    monkeypatch.setattr(liveness, "MOST_MET", 40)
    nodes = [node(f"peer-{number}") for number in range(100)]
    links = FakeLinks({one.peer_id for one in nodes})
    alive, _ = liveness_of(links)
    assert await alive.living(nodes, "own") == nodes
    assert len(links.dialled) == MOST_PINGED
    await alive.living(nodes, "own")
    assert len(alive._failures) == 40
