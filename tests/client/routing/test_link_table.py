"""What a client makes of its measurements, and of pairs that could not be chained."""

from __future__ import annotations

import pytest

from swarm_node.client.routing import link_table
from swarm_node.client.routing.link_table import FIRST_DISTRUST_S, PAIR_S, LinkBook, transfer_rate
from swarm_node.swarm.routing.edges import UNMEASURED_LINK, Link
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, PeerLink, Span


def node(peer_id: str) -> NodeInfo:
    return NodeInfo(peer_id, (), ModelRef("m", "d" * 64, 6), Span(0, 6), NodeState.ONLINE)


NODES = [node(peer) for peer in "abcd"]


def leg(book: LinkBook, peer_id: str = "a") -> Link:
    return book.edges(NODES, 0.0).client_link(peer_id)


def test_a_stranger_is_middling() -> None:
    book = LinkBook()
    assert leg(book) == UNMEASURED_LINK


def test_one_pause_is_no_distance_but_many_are() -> None:
    book = LinkBook()
    for _ in range(10):
        book.measured("a", 0.01)
    book.measured("a", 3.0)
    assert leg(book).rtt_s < 0.02
    for _ in range(20):
        book.measured("a", 3.0)
    assert leg(book).rtt_s > 2.0
    for _ in range(30):
        book.measured("a", 0.01)
    assert leg(book).rtt_s == pytest.approx(0.01, abs=0.001)


def test_a_loopback_link_can_grow() -> None:
    book = LinkBook()
    book.measured("a", 0.0)
    for _ in range(40):
        book.measured("a", 0.05)
    assert leg(book).rtt_s == pytest.approx(0.05, rel=0.1)


def test_bandwidth_is_what_good_transfers_got() -> None:
    book = LinkBook()
    book.measured("a", 0.01)
    assert leg(book).bytes_per_s == UNMEASURED_LINK.bytes_per_s
    for rate in (9e6, 2e6, 8e6, 1e6, 1e5):  # most were held back by something else
        book.measured("a", 0.01, rate)
    assert leg(book).bytes_per_s == 8e6
    book.measured("a", 0.01, 1e12)  # one that cannot be
    assert leg(book).bytes_per_s == 9e6
    for _ in range(8):  # the line has become thinner
        book.measured("a", 0.01, 1e6)
    assert leg(book).bytes_per_s == 1e6
    book.measured("a", 0.01, 0.0)
    assert leg(book).bytes_per_s == 1e6


def test_the_rate_of_a_large_payload() -> None:
    assert transfer_rate(1_000_000, 0.15, 0.05) == pytest.approx(1e7)
    assert transfer_rate(1_000, 0.15, 0.05) is None  # too small to tell
    assert transfer_rate(1_000_000, 0.0504, 0.05) is None  # faster than the round trip is known
    assert transfer_rate(1_000_000, 0.04, 0.05) is None


def test_a_pair_that_failed_is_trusted_again_later_and_later() -> None:
    book = LinkBook()
    now = 0.0
    for times in (1, 2, 4):
        book.edge_failed("a", "b", now)
        book.edge_failed("a", "b", now)  # another session that lost the same edge
        assert not book.may_chain("a", "b", now + times * FIRST_DISTRUST_S - 0.1)
        assert book.edges(NODES, now).unchained == {("a", "b")}
        assert book.may_chain("b", "a", now)
        now += times * FIRST_DISTRUST_S + 0.1
        assert book.may_chain("a", "b", now)
    book.edge_worked("a", "b", None, now)
    book.edge_failed("a", "b", now)
    assert book.may_chain("a", "b", now + FIRST_DISTRUST_S + 0.1)


def test_what_a_chain_measured_counts_within_the_triangle() -> None:
    book = LinkBook()
    book.measured("a", 0.1, 5e6)
    book.measured("b", 0.1, 2e6)
    book.edge_worked("a", "b", 0.004, 0.0)
    between = book.edges(NODES, 0.0).between("a", "b", 0)
    assert between == Link(0.004, 2e6)
    assert not book.edges(NODES, PAIR_S + 1).is_measured("a", "b")  # announcements are fresher by then
    book.measured("b", 0.3)
    between = book.edges(NODES, 0.0).between("a", "b", 0)
    assert between.rtt_s == pytest.approx(leg(book, "b").rtt_s - 0.1)
    book.edge_failed("a", "b", 0.0)
    assert not book.edges(NODES, 1e6).is_measured("a", "b")


def test_what_a_chain_took_shows_that_a_node_lied() -> None:
    book = LinkBook()
    nodes = [*NODES, node("c")]
    for peer in "abc":
        book.measured(peer, 0.040, 1e9)
    book.edge_worked("a", "b", 0.001, 0.0)  # so it says
    book.edge_worked("b", "c", 0.003, 0.0)
    edges = book.edges(nodes, 0.0)
    # 40 ms are the client's own ways, 40 ms those between, shared out as they should have been
    book.chain_measured(["a", "b", "c"], 0.080, 0, edges, 1.0)
    found = book.edges(nodes, 1.0)
    assert found.between("a", "b", 0).rtt_s == pytest.approx(0.020)
    assert found.between("b", "c", 0).rtt_s == pytest.approx(0.060)
    book.edge_worked("a", "b", 0.001, 2.0)  # saying it again makes it no truer
    assert book.edges(nodes, 2.0).between("a", "b", 0).rtt_s == pytest.approx(0.020)
    ways = [found.one_way_s(*way, 0) for way in (("", "a"), ("a", "b"), ("b", "c"), ("c", ""))]
    assert sum(ways) == pytest.approx(0.080)
    assert book.edges(nodes, PAIR_S + 3).one_way_s("a", "b", 0) == pytest.approx(0.020)  # forgotten
    # faster than the client's own links let on: no way is below nothing
    book.chain_measured(["a", "b", "c"], 0.010, 0, edges, 3.0)
    assert book.edges(nodes, 3.0).between("a", "b", 0).rtt_s == 0.0
    book.chain_measured(["a"], 0.010, 0, edges, 3.0)  # one hop has no way between


def test_it_forgets_who_was_not_met_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_table, "MAX_LINKS", 3)
    book = LinkBook()
    for peer in "abcda":
        book.measured(peer, 0.01)
    assert [peer for peer in "abcd" if leg(book, peer) != UNMEASURED_LINK] == ["a", "c", "d"]


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
    book = LinkBook()
    book.measured("a", rtt_s, bytes_per_s)
    book.edge_worked("a", "b", rtt_s, 0.0)
    for _ in range(3):
        book.chain_measured(["a", "b"], wire_s, 600, book.edges(nodes, 0.0), 0.0)
        seconds = book.edges(nodes, 0.0).one_way_s("a", "b", 2.0**40)
        assert 0 <= seconds < 1e12
