"""What a client makes of its measurements, and of pairs that could not be chained."""

from __future__ import annotations

import pytest

from swarm_node.client.routing import link_table
from swarm_node.client.routing.link_table import FIRST_DISTRUST_S, PAIR_S, LinkTable, transfer_rate
from swarm_node.swarm.routing.edges import UNMEASURED_LINK, Link
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, PeerLink, Span


def node(peer_id: str) -> NodeInfo:
    return NodeInfo(peer_id, (), ModelRef("m", "d" * 64, 6), Span(0, 6), NodeState.ONLINE)


NODES = [node(peer) for peer in "abcd"]


def leg(table: LinkTable, peer_id: str = "a") -> Link:
    return table.edges(NODES, 0.0).client_link(peer_id)


def test_a_stranger_is_middling() -> None:
    table = LinkTable()
    assert leg(table) == UNMEASURED_LINK


def test_one_pause_is_no_distance_but_many_are() -> None:
    table = LinkTable()
    for _ in range(10):
        table.measured("a", 0.01)
    table.measured("a", 3.0)
    assert leg(table).rtt_s < 0.02
    for _ in range(20):
        table.measured("a", 3.0)
    assert leg(table).rtt_s > 2.0
    for _ in range(30):
        table.measured("a", 0.01)
    assert leg(table).rtt_s == pytest.approx(0.01, abs=0.001)


def test_a_loopback_link_can_grow() -> None:
    table = LinkTable()
    table.measured("a", 0.0)
    for _ in range(40):
        table.measured("a", 0.05)
    assert leg(table).rtt_s == pytest.approx(0.05, rel=0.1)


def test_bandwidth_is_what_good_transfers_got() -> None:
    table = LinkTable()
    table.measured("a", 0.01)
    assert leg(table).bytes_per_s == UNMEASURED_LINK.bytes_per_s
    for rate in (9e6, 2e6, 8e6, 1e6, 1e5):  # most were held back by something else
        table.measured("a", 0.01, rate)
    assert leg(table).bytes_per_s == 8e6
    table.measured("a", 0.01, 1e12)  # one that cannot be
    assert leg(table).bytes_per_s == 9e6
    for _ in range(8):  # the line has become thinner
        table.measured("a", 0.01, 1e6)
    assert leg(table).bytes_per_s == 1e6
    table.measured("a", 0.01, 0.0)
    assert leg(table).bytes_per_s == 1e6


def test_the_rate_of_a_large_payload() -> None:
    assert transfer_rate(1_000_000, 0.15, 0.05) == pytest.approx(1e7)
    assert transfer_rate(1_000, 0.15, 0.05) is None  # too small to tell
    assert transfer_rate(1_000_000, 0.0504, 0.05) is None  # faster than the round trip is known
    assert transfer_rate(1_000_000, 0.04, 0.05) is None


def test_a_pair_that_failed_is_trusted_again_later_and_later() -> None:
    table = LinkTable()
    now = 0.0
    for times in (1, 2, 4):
        table.edge_failed("a", "b", now)
        table.edge_failed("a", "b", now)  # another session that lost the same edge
        assert not table.may_chain("a", "b", now + times * FIRST_DISTRUST_S - 0.1)
        assert table.edges(NODES, now).unchained == {("a", "b")}
        assert table.may_chain("b", "a", now)
        now += times * FIRST_DISTRUST_S + 0.1
        assert table.may_chain("a", "b", now)
    table.edge_worked("a", "b", None, now)
    table.edge_failed("a", "b", now)
    assert table.may_chain("a", "b", now + FIRST_DISTRUST_S + 0.1)


def test_what_a_chain_measured_counts_within_the_triangle() -> None:
    table = LinkTable()
    table.measured("a", 0.1, 5e6)
    table.measured("b", 0.1, 2e6)
    table.edge_worked("a", "b", 0.004, 0.0)
    between = table.edges(NODES, 0.0).between("a", "b", 0)
    assert between == Link(0.004, 2e6)
    assert not table.edges(NODES, PAIR_S + 1).is_measured("a", "b")  # announcements are fresher by then
    table.measured("b", 0.3)
    between = table.edges(NODES, 0.0).between("a", "b", 0)
    assert between.rtt_s == pytest.approx(leg(table, "b").rtt_s - 0.1)
    table.edge_failed("a", "b", 0.0)
    assert not table.edges(NODES, 1e6).is_measured("a", "b")


def test_what_a_chain_took_shows_that_a_node_lied() -> None:
    table = LinkTable()
    nodes = [*NODES, node("c")]
    for peer in "abc":
        table.measured(peer, 0.040, 1e9)
    table.edge_worked("a", "b", 0.001, 0.0)  # so it says
    table.edge_worked("b", "c", 0.003, 0.0)
    edges = table.edges(nodes, 0.0)
    # 40 ms are the client's own ways, 40 ms those between, shared out as they should have been
    table.chain_measured(["a", "b", "c"], 0.080, 0, edges, 1.0)
    found = table.edges(nodes, 1.0)
    assert found.between("a", "b", 0).rtt_s == pytest.approx(0.020)
    assert found.between("b", "c", 0).rtt_s == pytest.approx(0.060)
    table.edge_worked("a", "b", 0.001, 2.0)  # saying it again makes it no truer
    assert table.edges(nodes, 2.0).between("a", "b", 0).rtt_s == pytest.approx(0.020)
    ways = [found.one_way_s(*way, 0) for way in (("", "a"), ("a", "b"), ("b", "c"), ("c", ""))]
    assert sum(ways) == pytest.approx(0.080)
    assert table.edges(nodes, PAIR_S + 3).one_way_s("a", "b", 0) == pytest.approx(0.020)  # forgotten
    # faster than the client's own links let on: no way is below nothing
    table.chain_measured(["a", "b", "c"], 0.010, 0, edges, 3.0)
    assert table.edges(nodes, 3.0).between("a", "b", 0).rtt_s == 0.0
    table.chain_measured(["a"], 0.010, 0, edges, 3.0)  # one hop has no way between


def test_it_forgets_who_was_not_met_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_table, "MAX_LINKS", 3)
    table = LinkTable()
    for peer in "abcda":
        table.measured(peer, 0.01)
    assert [peer for peer in "abcd" if leg(table, peer) != UNMEASURED_LINK] == ["a", "c", "d"]


@pytest.mark.parametrize("rtt_s", [0.0, 1e-6, 60.0])
@pytest.mark.parametrize("bytes_per_s", [0.0, 100.0, 1e12])
@pytest.mark.parametrize("wire_s", [0.0, 1e-9, 3600.0])
def test_what_nodes_tell_of_their_links_is_shared_out_without_overflow(
    rtt_s: float, bytes_per_s: float, wire_s: float
) -> None:
    told = (PeerLink("b", rtt_s, bytes_per_s),)
    nodes = [
        NodeInfo(name, (), ModelRef("m", "ab" * 32, 4), Span(0, 4), NodeState.ONLINE, links=told)
        for name in ("a", "b")
    ]
    table = LinkTable()
    table.measured("a", rtt_s, bytes_per_s)
    table.edge_worked("a", "b", rtt_s, 0.0)
    for _ in range(3):
        table.chain_measured(["a", "b"], wire_s, 600, table.edges(nodes, 0.0), 0.0)
        seconds = table.edges(nodes, 0.0).one_way_s("a", "b", 2.0**40)
        assert 0 <= seconds < 1e12
