from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest

from swarm_node.node.presence import liveness
from swarm_node.node.presence.liveness import (
    FAILURES,
    FIRST_PAUSE_S,
    MOST_ASKED_AGAIN,
    MOST_MET,
    UNREADY_S,
    Liveness,
)
from swarm_node.swarm.errors import ErrorCode, PeerError, PeerUnreachableError
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

MODEL = ModelRef("tiny", "ab" * 32, 4)


def node(peer_id: str, state: NodeState = NodeState.ONLINE, span: Span = Span(0, 4)) -> NodeInfo:  # noqa: B008
    return NodeInfo(peer_id, (f"/{peer_id}",), MODEL, span, state)


class FakeLinks:
    """Nodes in ``up`` answer after 2 ms, those in ``loading`` that they serve nothing, all others refuse."""

    def __init__(self, up: Iterable[str] = (), loading: Iterable[str] = ()) -> None:
        self.up = set(up)
        self.loading = set(loading)
        self.dialled: list[str] = []

    async def get(self, peer_id: str, maddrs: Sequence[str] = ()) -> FakeLinks:
        self.dialled.append(peer_id)
        if peer_id in self.loading:
            raise PeerError("this node serves no blocks now", code=ErrorCode.DRAINING, retriable=True)
        if peer_id not in self.up:
            raise PeerUnreachableError(f"{peer_id} refuses")
        return self

    async def ping(self) -> float:
        return 0.002


class Looking:
    """A node that looks at what others announce. ``seen``: the round trips that it measured."""

    def __init__(self, links: FakeLinks) -> None:
        self.now = 0.0
        self.links = links
        self.seen: dict[str, float] = {}
        self.liveness = Liveness(links, self.seen.__setitem__, clock=lambda: self.now, rng=random.Random(0))

    async def look(self, *nodes: NodeInfo, waits: bool = False, after: float = 0.0) -> list[str]:
        self.now += after
        self.links.dialled.clear()
        return [each.peer_id for each in await self.liveness.living(nodes, "own", waits=waits)]


async def test_a_node_that_answered_and_refuses_twice_is_dead_until_it_answers_again():
    looking = Looking(FakeLinks({"a", "b"}))
    nodes = [node("a"), node("b"), node("own")]
    assert await looking.look(*nodes) == ["a", "b", "own"]
    assert looking.seen == {"a": 0.002, "b": 0.002}
    assert "own" not in looking.links.dialled
    looking.links.up.remove("b")
    for _ in range(FAILURES - 1):
        assert await looking.look(*nodes) == ["a", "b", "own"]
    assert await looking.look(*nodes) == ["a", "own"]
    looking.links.up.add("b")
    assert await looking.look(*nodes) == ["a", "b", "own"]


@pytest.mark.parametrize("state", NodeState)
async def test_a_stranger_who_never_answered_fills_no_hole_and_is_asked_less_and_less(state: NodeState):
    looking = Looking(FakeLinks({"a"}))
    nodes = [node("a", span=Span(0, 2)), node("stranger", state, Span(2, 4))]
    asked = 0
    for _ in range(120):
        assert await looking.look(*nodes, after=5) == ["a"]
        asked += looking.links.dialled.count("stranger")
    assert 3 <= asked <= 8
    assert looking.liveness.answered("stranger") is False
    looking.links.up.add("stranger")
    await looking.look(*nodes, after=liveness.LONGEST_PAUSE_S)
    assert looking.liveness.answered("stranger") is True


async def test_who_joins_counts_as_long_as_loading_may_take_and_again_when_it_serves():
    looking = Looking(FakeLinks(loading={"a"}))
    joining = node("a", NodeState.JOINING)
    assert await looking.look(joining) == ["a"]
    assert looking.seen == {}
    assert await looking.look(joining, after=UNREADY_S - 1) == ["a"]
    assert await looking.look(joining, after=2) == []
    looking.links.loading.clear()
    looking.links.up.add("a")
    assert await looking.look(node("a"), after=5) == ["a"]
    assert await looking.look(node("a", NodeState.DRAINING), after=5) == ["a"]
    assert await looking.look(node("a", NodeState.DRAINING), after=UNREADY_S + 1) == []


async def test_who_joins_is_asked_now_and_then():
    looking = Looking(FakeLinks(loading={"a"}))
    joining = node("a", NodeState.JOINING)
    asked = 0
    for _ in range(40):
        await looking.look(joining, after=0.25)
        asked += len(looking.links.dialled)
    assert asked <= 3


async def test_who_claims_to_serve_and_says_that_it_does_not_is_no_server():
    looking = Looking(FakeLinks(loading={"a"}))
    assert await looking.look(node("a")) == []
    assert await looking.look(node("a"), after=FIRST_PAUSE_S + 1) == []


async def test_a_node_that_waits_beside_a_hole_waits_for_strangers_that_long_and_no_longer():
    """However many identities say one after the other that they are about to serve it."""
    looking = Looking(FakeLinks({"a"}, loading={f"stranger {n}" for n in range(100)}))
    counted = [
        await looking.look(
            node("a", span=Span(0, 2)),
            node(f"stranger {number}", NodeState.JOINING, Span(2, 4)),
            waits=True,
            after=10,
        )
        for number in range(20)
    ]
    assert counted[:5] == [["a", f"stranger {number}"] for number in range(5)]
    assert counted[6:] == [["a"]] * 14
    looking.links.up.add("b")
    whole = [node("a", span=Span(0, 2)), node("b", span=Span(2, 4)), node("stranger 99", NodeState.JOINING)]
    assert await looking.look(*whole, waits=True, after=10) == ["a", "b", "stranger 99"]


async def test_a_node_that_serves_waits_longer_and_knows_what_it_serves_itself():
    looking = Looking(FakeLinks(loading={f"stranger {n}" for n in range(100)}))

    async def counted(own: Span) -> int:
        """Looks, 10 seconds apart, of 30 in which another stranger each time counts."""
        times = 0
        for number in range(30):
            stranger = node(f"stranger {number}", NodeState.JOINING, Span(2, 4))
            times += len(await looking.look(node("own", span=own), stranger, after=10)) - 1
        return times

    assert await counted(Span(0, 4)) == 30
    looking.liveness._known.clear()
    assert await counted(Span(0, 2)) == 17


async def test_where_too_many_are_announced_those_whose_claims_decide_are_asked_first():
    strangers = [node(f"stranger {number}", span=Span(0, 3)) for number in range(900)]
    looking = Looking(FakeLinks({"a", "b", "c"}))
    nodes = [*strangers, node("a", span=Span(0, 2)), node("b", span=Span(2, 3)), node("c", span=Span(3, 4))]
    assert "c" in await looking.look(*nodes[-1:])
    counts = await looking.look(*nodes)
    assert len(looking.links.dialled) <= MOST_MET + MOST_ASKED_AGAIN
    assert set(counts) <= {"a", "b", "c"}, "nobody who was not asked fills a hole"
    for _ in range(3):
        counts = await looking.look(*nodes[-3:])
    assert counts == ["a", "b", "c"]
    counts = await looking.look(*nodes)
    assert set(counts) >= {"a", "b", "c"}
    assert len(counts) > 800, "those not asked count beside others that answered"
    assert not {each for each in counts if looking.liveness.answered(each) is False}


async def test_of_a_large_swarm_a_sample_is_asked_and_as_many_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(liveness, "MOST_KNOWN", 40)
    nodes = [node(f"peer-{number}") for number in range(100)]
    looking = Looking(FakeLinks({one.peer_id for one in nodes}))
    assert await looking.look(*nodes) == [one.peer_id for one in nodes]
    assert len(looking.links.dialled) == MOST_MET
    for _ in range(6):
        await looking.look(*nodes)
        assert len(looking.links.dialled) <= MOST_MET + MOST_ASKED_AGAIN
    assert len(looking.liveness._known) == 40
