"""Which model an idle node loads: votes by peers, and what a peer that lies can do."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest

from swarm_node.swarm.placement.demand import (
    COOL_DOWN_S,
    MAX_DEMAND,
    MAX_WANTED,
    PATIENCE_S,
    SPREAD_S,
    UNUSED_S,
    Demand,
    Idle,
    Wanted,
    WantedModel,
    next_model,
    tally,
)
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

A, B = ModelRef("a", "aa" * 32, 10), ModelRef("b", "bb" * 32, 10)


def wanted(peer: str, *names: str) -> Wanted:
    return Wanted(peer, tuple(WantedModel(name) for name in names))


def node(peer: str, model: ModelRef, blocks: str, state: NodeState = NodeState.ONLINE) -> NodeInfo:
    return NodeInfo(peer, (), model, Span.parse(blocks), state)


def pick(demand: list[Demand], idle: Idle = Idle(), peer: str = "node") -> str | None:  # noqa: B008  frozen
    chosen = next_model([_seen(each) for each in demand], lambda _: True, idle, peer_id=peer)
    return None if chosen is None else chosen.model.name


def _seen(demand: Demand) -> Demand:
    return demand if demand.seen_s else replace(demand, seen_s=SPREAD_S)


def shares(demand: list[Demand], nodes: int = 4000) -> dict[str | None, float]:
    picks = Counter(pick(demand, peer=f"node {number}") for number in range(nodes))
    return {name: count / nodes for name, count in picks.items()}


def test_a_peer_has_one_vote_however_much_it_wants() -> None:
    demand = tally([wanted("p", "a", "b"), wanted("q", "a"), wanted("q", "b"), wanted("q", "c")], [])
    assert [(each.model.name, each.votes, each.peers) for each in demand] == [
        ("a", 1.5, ("p", "q")),
        ("b", 0.5, ("p",)),
    ], "of one peer's records only the first counts"
    repeated = tally([wanted("p", "a", "A", "a")], [])
    assert [each.votes for each in repeated] == [1.0]
    many = tally([wanted("p", *map(str, range(20)))], [])
    assert len(many) == MAX_WANTED


def test_a_name_is_the_announced_model_of_that_name() -> None:
    nodes = [
        node("n", A, "0-4"),
        node("m", A, "7-9", NodeState.JOINING),
        node("d", A, "5-6", NodeState.DRAINING),
    ]
    (demand,) = tally([wanted("p", "A"), Wanted("q", (WantedModel("other", A.digest),))], nodes)
    assert demand.model == WantedModel("a", A.digest)
    assert demand.votes == 2
    assert demand.ref == A
    assert demand.missing == (Span(5, 7),), "a node that leaves will not serve"
    assert demand.covered == pytest.approx(0.8)
    assert [each.peer_id for each in demand.loading] == ["m"]
    two = tally([wanted("p", "a")], [*nodes, node("x", replace(B, name="a"), "0-9")])
    assert [each.model.digest for each in two] == [""], "an ambiguous name means neither"
    assert two[0].ref is None


def test_listing_is_bounded() -> None:
    demand = tally([wanted(f"p{n}", f"m{n}") for n in range(1000)], [])
    assert len(demand) == MAX_DEMAND


def test_an_idle_node_takes_what_is_wanted_and_can_be_had() -> None:
    demand = [_seen(each) for each in tally([wanted("p", "a"), wanted("q", "b")], [])]
    chosen = next_model(demand, lambda each: each.model.name == "b", Idle(), peer_id="x")
    assert chosen is not None
    assert chosen.model.name == "b"
    assert next_model(demand, lambda _: False, Idle(), peer_id="x") is None
    assert next_model([], lambda _: True, Idle(), peer_id="x") is None


def test_shares_of_the_nodes_follow_the_votes() -> None:
    demand = tally([wanted(f"p{n}", "honest") for n in range(9)] + [wanted("liar", "junk")], [])
    share = shares(demand)
    assert share["junk"] == pytest.approx(0.1, abs=0.02)
    assert share["honest"] == pytest.approx(0.9, abs=0.02)


def test_one_peer_steers_few_even_if_it_says_its_model_is_nearly_complete() -> None:
    junk = ModelRef("junk", "cc" * 32, 100)
    claims = [node("liar", junk, "0-98")]
    demand = tally([wanted(f"p{n}", "honest") for n in range(9)] + [wanted("liar", "junk")], claims)
    assert shares(demand)["junk"] < 0.2


def test_a_begun_model_is_finished_first() -> None:
    demand = tally([wanted("p", "a"), wanted("q", "b")], [node("n", A, "0-7")])
    assert shares(demand)["a"] == pytest.approx(1.8 / 2.8, abs=0.03)


def test_a_choice_stays_while_the_demand_does() -> None:
    demand = tally([wanted("p", "a"), wanted("q", "b")], [])
    assert len({pick(demand) for _ in range(20)}) == 1
    more = tally([wanted("p", "a"), wanted("q", "b"), wanted("r", "b")], [])
    movers = {(pick(demand, peer=f"n{n}"), pick(more, peer=f"n{n}")) for n in range(300)}
    assert ("b", "a") not in movers, "nobody leaves what has won votes"


def test_nodes_answer_one_after_another() -> None:
    (demand,) = tally([wanted("p", "a")], [])
    first = [
        min(
            t
            for t in range(31)
            if next_model([replace(demand, seen_s=t / 10)], lambda _: True, Idle(), peer_id=p)
        )
        for p in map(str, range(50))
    ]
    assert min(first) < 5
    assert max(first) > 25


def test_what_is_wanted_first_does_not_win_by_that() -> None:
    """An early demand and a later one: no node takes the early one only because its delay is over."""
    early, late = tally([wanted("p", "a"), wanted("q", "b")], [])
    seen = [replace(early, seen_s=SPREAD_S), late]
    picks = [next_model(seen, lambda _: True, Idle(), peer_id=f"n{n}") for n in range(1000)]
    assert sum(each is not None for each in picks) == pytest.approx(500, abs=60)


def test_what_is_being_loaded_needs_nobody_until_it_takes_too_long() -> None:
    covered = tally([wanted("p", "a")], [node("n", A, "0-5"), node("m", A, "6-9", NodeState.JOINING)])
    assert covered[0].covered == 1
    assert pick(covered) is None
    assert pick([replace(covered[0], seen_s=PATIENCE_S)]) == "a"


@pytest.mark.parametrize(
    "idle",
    [
        Idle("bb" * 32, in_use=True),
        Idle("bb" * 32, since_change_s=COOL_DOWN_S - 1),
        Idle("bb" * 32, unused_s=UNUSED_S - 1),
        Idle(in_use=True),
    ],
    ids=["sessions", "just loaded", "used lately", "its owner's choice"],
)
def test_a_model_in_use_is_never_unloaded(idle: Idle) -> None:
    demand = tally([wanted(f"p{n}", "a") for n in range(100)], [node("x", B, "0-9")])
    assert pick(demand, idle) is None
    assert pick(demand, replace(idle, in_use=False, since_change_s=math.inf, unused_s=math.inf)) == "a"


def test_halves_of_two_models_become_one_whole() -> None:
    """Two nodes hold a half of two models each and wait for each other: exactly one of them moves."""
    nodes = [node("n", A, "0-4"), node("m", B, "0-4")]
    demand = tally([wanted("p", "a"), wanted("q", "b")], nodes)
    moves = [
        pick(demand, Idle(model.digest, since_change_s=COOL_DOWN_S), peer)
        for peer, model in (("n", A), ("m", B))
    ]
    assert set(moves) in ({None, "a"}, {None, "b"})
    assert moves.count(None) == 1


def test_an_incomplete_model_that_has_most_votes_is_kept() -> None:
    demand = tally([wanted("p", "a"), wanted("r", "a"), wanted("q", "b")], [node("n", A, "0-4")])
    assert pick(demand, Idle(A.digest)) is None


@pytest.mark.parametrize(("idle_nodes", "models", "needed"), [(2, 2, 2), (4, 2, 2), (8, 4, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_idle_nodes_complete_models_without_talking(
    idle_nodes: int, models: int, needed: int, seed: int
) -> None:
    """Everybody decides alone, by what is announced: as many models as can be are whole soon, and stay so."""
    refs = {f"m{number}": ModelRef(f"m{number}", f"{number:064x}", needed) for number in range(models)}
    records = [wanted(f"client of {name}", name) for name in refs]
    holds: dict[str, str] = {}
    changed: dict[str, int] = {}
    changes = 0

    def whole() -> set[str]:
        return {name for name in refs if list(holds.values()).count(name) >= needed}

    for now in range(0, 2 * int(COOL_DOWN_S) + 10, 2):
        for number in range(idle_nodes):
            peer = f"node {seed} {number}"
            announced = []
            for name, ref in refs.items():
                holders = sorted(each for each in holds if holds[each] == name)
                announced += [node(each, ref, str(n % needed)) for n, each in enumerate(holders)]
            demand = [
                replace(each, seen_s=float(now))
                for each in tally(records, announced)
                if each.model.name not in whole()  # its client has found a route
            ]
            held = holds.get(peer, "")
            idle = Idle(
                refs[held].digest if held else "",
                in_use=held in whole(),
                since_change_s=now - changed.get(peer, 0),
                unused_s=now - changed.get(peer, 0),
            )
            chosen = next_model(demand, lambda _: True, idle, peer_id=peer)
            if chosen is not None:
                holds[peer], changed[peer] = chosen.model.name, now
                changes += 1
    assert len(whole()) == min(models, idle_nodes // needed)
    assert changes <= 2 * idle_nodes
