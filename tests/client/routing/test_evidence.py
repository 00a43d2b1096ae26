"""What a client found out itself comes before what peers say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm_node.client.routing.evidence import (
    AGE_S,
    CREDIT,
    HONEST,
    MAX_PEERS,
    OWN_S,
    PROVEN_S,
    Evidence,
    Standing,
)
from swarm_node.swarm.types import NodeInfo, NodeState, Span
from tests.doubles.toy_model import MODEL


def node(peer_id: str, address: str = "", ms: float = 1.0) -> NodeInfo:
    maddrs = (f"/ip4/{address}/tcp/4001",) if address else ()
    return NodeInfo(peer_id, maddrs, MODEL, Span(0, 6), NodeState.ONLINE, ms, 1000.0, 4096, 4096)


def names(nodes: list[NodeInfo]) -> str:
    return "".join(node.peer_id for node in nodes)


def test_standing_comes_with_what_a_peer_does_and_goes_with_time() -> None:
    evidence = Evidence()
    assert evidence.standing("a", 0.0) is Standing.STRANGER
    evidence.answered("a", 0.0)
    assert evidence.standing("a", 1.0) is Standing.ANSWERED
    evidence.proved("a", 1.0)
    assert evidence.standing("a", 2.0) is Standing.PROVEN
    evidence.failed("a", 0.0)
    assert evidence.standing("a", 3.0) is Standing.STRANGER
    evidence.answered("a", 4.0)
    assert evidence.standing("a", 5.0) is Standing.PROVEN, "it is back"
    assert evidence.standing("a", 5.0 + PROVEN_S) is Standing.STRANGER


def test_circles_begin_with_the_proven() -> None:
    evidence = Evidence()
    nodes = [node("a"), node("b"), node("c")]
    assert [names(circle) for circle in evidence.circles(nodes, 0.0)] == ["abc"]
    evidence.proved("b", 0.0)
    assert [names(circle) for circle in evidence.circles(nodes, 0.0)] == ["b", "abc"]
    evidence.answered("a", 0.0)
    assert [names(circle) for circle in evidence.circles(nodes, 0.0)] == ["b", "ab", "abc"]
    evidence.answered("c", 0.0)
    assert [names(circle) for circle in evidence.circles(nodes, 0.0)] == ["b", "abc"]
    assert list(evidence.circles([], 0.0)) == [[]]


def test_address_groups_take_turns_whatever_their_number_of_records() -> None:
    evidence = Evidence("s")
    crowd = [node(f"x{number}", f"9.9.9.{number}") for number in range(200)]
    honest = [node("a", "8.8.4.1"), node("b", "8.8.5.1"), node("c", "8.8.6.1")]
    assert {"a", "b", "c"} < {first.peer_id for first in evidence.in_turn([*crowd, *honest], 0.0)[:4]}
    # nor does a group begin again and again
    asked = []
    left = [*crowd, *honest]
    for _ in range(4):
        first = evidence.in_turn(left, 0.0)[0]
        evidence.asked(first)
        evidence.failed(first.peer_id, 0.0)
        asked.append(first.peer_id)
    assert {"a", "b", "c"} < set(asked)


def test_the_known_come_first_and_those_that_failed_last() -> None:
    evidence = Evidence()
    nodes = [node(peer) for peer in "fnaopq"]
    evidence.saw([node("o")], 0.0)
    evidence.failed("f", 0.0)
    evidence.failed("f", 0.0)
    evidence.failed("n", 0.0)
    evidence.answered("a", 0.0)
    evidence.failed("a", 0.0)
    evidence.proved("p", 0.0)
    evidence.failed("p", 0.0)
    now = 2 * AGE_S
    evidence.saw(nodes, now)
    assert names(evidence.in_turn(nodes, now)) == "paoqnf"


def test_claims_are_capped_by_what_was_seen() -> None:
    evidence = Evidence()
    honest, fantastic = node("a", ms=10.0), node("x", ms=1e-6)
    assert evidence.believed([fantastic], 0.0)[0].decode_ms_per_block == 1e-6, "nothing is known yet"
    evidence.served("a", 0.0)
    known, believed = evidence.believed([honest, fantastic], 1.0)
    assert known is honest
    assert believed.decode_ms_per_block == pytest.approx(10.0 / CREDIT)
    # one that passed a trial shares the work of those that serve, and does not outbid them
    evidence.measured("x", 1e-7, 0.0)
    evidence.proved("x", 0.0)
    assert evidence.believed([honest, fantastic], 1.0)[1].decode_ms_per_block == pytest.approx(10.0)
    assert evidence.believed([honest, fantastic], 1.0, own_only=True)[1] is fantastic
    evidence.served("x", 0.0)
    assert evidence.believed([honest, fantastic], 1.0)[1] is fantastic


def test_a_stranger_does_not_outbid_others_by_a_claim_that_contexts_cost_nothing() -> None:
    evidence = Evidence()
    honest, stranger = replace(node("a"), context_ms_per_block=0.4), node("x")
    evidence.served("a", 0.0)
    known, believed = evidence.believed([honest, stranger], 1.0)
    assert known is honest
    assert believed.context_ms_per_block == pytest.approx(0.4 / CREDIT)
    evidence.proved("x", 0.0)
    assert evidence.believed([honest, stranger], 1.0)[1] is stranger


def test_an_own_measure_outranks_a_claim_that_is_far_off() -> None:
    evidence = Evidence()
    claim = node("a", ms=1.0)
    evidence.proved("a", 0.0)
    evidence.measured("a", 0.001 * HONEST * 0.99, 0.0)
    assert evidence.believed([claim], 1.0) == [claim], "noise and load"
    assert evidence.believed([claim], 1.0, own_only=True)[0].decode_ms_per_block > 1.9
    evidence.measured("a", 0.3, 0.0)
    assert evidence.believed([claim], 1.0)[0].decode_ms_per_block == pytest.approx(300)
    assert evidence.believed([claim], OWN_S + 1)[0].decode_ms_per_block < 300, "it may have been busy"


def test_who_did_not_own_up_to_its_time_is_doubted_longer_each_time() -> None:
    evidence = Evidence()
    claim = node("a", ms=1.0)
    evidence.proved("a", 0.0)
    for times in (1, 2, 3):
        evidence.doubted("a", 0.3, 0.0)
        held = OWN_S * 2**times
        assert evidence.standing("a", 1.0) is Standing.ANSWERED
        assert evidence.believed([claim], held - 1)[0].decode_ms_per_block == pytest.approx(300)
        assert evidence.believed([claim], held + 1)[0].decode_ms_per_block < 300


def test_what_is_kept_is_bounded() -> None:
    evidence = Evidence()
    evidence.proved("a", 0.0)
    for number in range(2 * MAX_PEERS):
        evidence.failed(f"x{number}", 0.0)
        if number % 1000 == 0:
            evidence.proved("a", 0.0)
    assert evidence.standing("a", 0.0) is Standing.PROVEN
    assert len(evidence._peers) == MAX_PEERS
