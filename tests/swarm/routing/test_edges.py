"""MeasuredLinks between nodes: what is told, what is estimated, and the triangle that bounds both."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.routing.edges import MAX_BYTES_PER_S, UNMEASURED_LINK, Edges, Link
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, PeerLink, Span

MODEL = ModelRef("m", "d" * 64, 6)


def node(peer_id: str, *links: PeerLink) -> NodeInfo:
    return NodeInfo(peer_id, (), MODEL, Span(0, 6), NodeState.ONLINE, links=links)


def test_nothing_told_is_the_costlier_of_the_two_own_links() -> None:
    edges = Edges([node("a"), node("b")], {"a": Link(0.02, 1e6), "b": Link(0.06, 1e9)})
    assert edges.one_way_s("a", "b", 0) == pytest.approx(0.03)
    assert edges.one_way_s("a", "b", 1_000_000) == pytest.approx(0.01 + 1.0)  # now the thin line counts
    assert not edges.is_measured("a", "b")


def test_what_is_told_counts_in_both_directions() -> None:
    links = {"a": Link(0.05, 1e7), "b": Link(0.05, 1e6)}
    edges = Edges([node("a", PeerLink("b", 0.002)), node("b")], links)
    assert edges.one_way_s("a", "b", 0) == edges.one_way_s("b", "a", 0) == pytest.approx(0.001)
    assert edges.is_measured("a", "b")
    assert edges.between("a", "b", 0).bytes_per_s == 1e7  # of the estimate, nothing was told


def test_of_two_stories_the_worse_counts() -> None:
    links = {"a": Link(0.05, 1e7), "b": Link(0.05, 1e7)}
    a, b = node("a", PeerLink("b", 0.001, 5e7)), node("b", PeerLink("a", 0.01, 2e7))
    for nodes in ([a, b], [b, a]):
        assert Edges(nodes, links).between("a", "b", 0) == Link(0.01, 2e7)


def test_a_liar_cannot_bring_two_nodes_nearer_than_the_client_measured() -> None:
    links = {"liar": Link(0.010, 1e7), "far": Link(0.200, 1e7)}
    edges = Edges([node("liar", PeerLink("far", 0.0, 1e12)), node("far")], links)
    link = edges.between("liar", "far", 0)
    assert link.rtt_s == pytest.approx(0.190)
    assert link.bytes_per_s == MAX_BYTES_PER_S
    # nor farther apart than the way through the client, which is open in any case
    edges = Edges([node("liar", PeerLink("far", 60.0, 1.0)), node("far")], links)
    assert edges.one_way_s("liar", "far", 1000) == pytest.approx(0.105 + 2000 / 1e7)


def test_what_the_client_learned_itself_comes_first_but_within_the_triangle() -> None:
    links = {"a": Link(0.01, 1e7), "b": Link(0.03, 1e7)}
    nodes = [node("a", PeerLink("b", 0.04)), node("b")]
    assert Edges(nodes, links, known={("a", "b"): Link(0.025, 1e8)}).between("a", "b", 0) == Link(0.025, 1e8)
    assert Edges(nodes, links, known={("a", "b"): Link(0.0, 1e8)}).between(
        "a", "b", 0
    ).rtt_s == pytest.approx(0.02)


def test_no_link_is_faster_than_what_people_allow_their_nodes() -> None:
    links = {name: Link(0.01, 1e7) for name in "abc"}
    told = replace(node("a", PeerLink("b", 0.002, 8e6)), up_bytes_per_s=10**6, down_bytes_per_s=4 * 10**6)
    edges = Edges([told, node("b"), node("c")], links)
    assert edges.client_link("a") == Link(0.01, 1e6)  # there and back
    assert edges.client_link("b") == links["b"]
    assert edges.between("a", "b", 1000) == Link(0.002, 1e6)
    assert edges.between("b", "a", 1000) == Link(0.002, 4e6)
    assert edges.between("c", "a", 1000).bytes_per_s == 1e6  # nothing was told: as the client's own
    assert edges.between("b", "c", 1000).bytes_per_s == 1e7


def test_a_pair_that_must_not_be_chained_goes_through_the_client() -> None:
    links = {"a": Link(0.01, 1e6), "b": Link(0.03, 1e6)}
    edges = Edges([node("a", PeerLink("b", 0.021)), node("b")], links, unchained=frozenset({("a", "b")}))
    assert edges.one_way_s("a", "b", 1000) == pytest.approx(0.005 + 0.015 + 0.002)
    assert edges.one_way_s("b", "a", 1000) < edges.one_way_s("a", "b", 1000)
    assert not edges.may_chain("a", "b")
    assert edges.may_chain("b", "a")


def test_links_to_itself_and_to_strangers_say_nothing() -> None:
    edges = Edges([node("a", PeerLink("a", 0.0), PeerLink("gone", 0.0))], {})
    assert not list(edges.told)


def test_who_is_near_a_peer_that_was_met_is_not_taken_to_be_far() -> None:
    met = {"a": Link(0.001, 1e8)}
    new, far = node("new", PeerLink("a", 0.002, 2e7)), node("far", PeerLink("a", 0.5))
    edges = Edges([node("a"), new, far, node("alone")], met)
    assert edges.client_link("new") == Link(0.003, 2e7)
    assert edges.client_link("far") == edges.client_link("alone") == UNMEASURED_LINK
    assert not edges.is_measured("", "new")
    assert edges.between("a", "new", 0).rtt_s == pytest.approx(0.002)


rtts = st.floats(0, 1)
rates = st.floats(1e3, 1e9)
links_st = st.builds(Link, rtts, rates)


@given(
    st.fixed_dictionaries({}, optional={"a": links_st, "b": links_st}),
    st.lists(st.builds(PeerLink, st.just("b"), st.floats(0, 60), st.floats(0, 1e12)), max_size=2),
    st.none() | links_st,
    st.floats(0, 1e8),
)
def test_every_way_is_within_the_triangle(
    links: dict[str, Link], told: list[PeerLink], known: Link | None, size: float
) -> None:
    nodes = [replace(node("a"), links=tuple(told)), node("b")]
    edges = Edges(nodes, links, known={} if known is None else {("a", "b"): known})
    one, other = edges.client_link("a"), edges.client_link("b")
    for peer_id in links:
        assert edges.client_link(peer_id) == links[peer_id]
    link = edges.one_way_s("a", "b", size)
    assert link <= one.one_way_s(size) + other.one_way_s(size) + 1e-12
    assert edges.one_way_s("a", "b", 0) >= abs(one.rtt_s - other.rtt_s) / 2 - 1e-12
