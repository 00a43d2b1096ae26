from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from swarm_node.client.routing import route_finder as finder_module
from swarm_node.swarm.routing.best_route import NoRouteError
from swarm_node.swarm.types import NodeInfo, NodeState, PeerLink, Route, Span
from tests.doubles.router_case import NEED, clocked_swarm, failure, hops


async def test_an_old_announcement_of_a_full_node_is_not_believed_for_ever() -> None:
    swarm, router, clock = await clocked_swarm(a="0-5", b="0-5")
    swarm.announce("a", free_kv_tokens=50)
    for _ in range(3):
        assert hops(await router.plan(NEED)) == [("b", "0-5")]
    swarm.store.remove("b")
    router.failed(failure("b"))
    assert hops(await router.plan(NEED)) == [("a", "0-5")]
    await router.close()  # the read that the failure began
    swarm.announce("a", free_kv_tokens=50, total_kv_tokens=60)
    clock.time += 10  # snapshots grow old
    with pytest.raises(NoRouteError, match="50 of 60"):
        await router.plan(replace(NEED, kv_tokens=61))


async def test_a_node_that_had_no_states_free_is_asked_last_and_not_given_up() -> None:
    swarm, router, _ = await clocked_swarm(a="0-5", b="0-5")
    swarm.announce("a", free_states=0, total_states=4)
    for _ in range(3):
        assert hops(await router.plan(NEED)) == [("b", "0-5")]
    swarm.store.remove("b")
    router.failed(failure("b"))
    assert hops(await router.plan(NEED)) == [("a", "0-5")]
    await router.close()


async def test_a_long_context_does_not_make_a_liar() -> None:
    """64,000 tokens of context make these blocks take 17 times as long."""
    swarm, router, _ = await clocked_swarm(a="0-5")
    swarm.announce("a", decode_ms_per_block=5.0, context_ms_per_block=1.3)
    await router.plan(NEED)
    router.measured("a", 0.0)
    router.worked("a", 6, 6 * 0.088, 1, 64_000)
    assert not router.is_wary()
    router.worked("a", 6, 6 * 0.088, 1, 300)
    assert router.is_wary()


async def test_draining_peers_are_left_alone() -> None:
    swarm, router, _ = await clocked_swarm(a="0-5")
    swarm.announce("a", state=NodeState.DRAINING)
    with pytest.raises(NoRouteError, match="draining"):
        await router.plan(NEED)


async def test_the_nearer_of_equal_peers_is_taken() -> None:
    _, router, _ = await clocked_swarm(a="0-5", b="0-5")
    router.measured("a", 0.2)
    router.measured("b", 0.01)
    assert hops(await router.plan(NEED)) == [("b", "0-5")]
    for _ in range(20):
        router.measured("b", 0.5)
    assert hops(await router.plan(NEED)) == [("a", "0-5")]


async def test_a_gap_is_filled_between_its_neighbours() -> None:
    _, router, _ = await clocked_swarm(a="0-1", b="2-3", c="4-5", d="1-4", e="2-3")
    taken = set()
    for _ in range(20):
        planned = await router.plan_gap(
            NEED, Span(2, 4), before="a", after="c", keep=frozenset({"a", "c", "b"})
        )
        assert all(hop.span == Span(2, 4) for hop in planned.route.hops)
        edges = [(edge.source, edge.target) for edge in planned.predicted.edges]
        (hop,) = planned.route.hops
        assert edges == [("a", hop.peer_id), (hop.peer_id, "c")]
        assert set(planned.nodes) == {hop.peer_id}
        taken.add(hop.peer_id)
    assert taken == {"d", "e"}  # sessions spread over the two
    with pytest.raises(NoRouteError, match="2-3"):
        await router.plan_gap(NEED, Span(2, 4), before="a", after=None, keep=frozenset("abcde"))


async def test_a_gap_prefers_whom_its_neighbours_are_near_to() -> None:
    swarm, router, _ = await clocked_swarm(a="0-1", b="2-5", c="2-5")
    swarm.announce("a", links=(PeerLink("b", 0.15), PeerLink("c", 0.001)))
    for peer in "abc":
        router.measured(peer, 0.1)
    planned = await router.plan_gap(NEED, Span(2, 6), before="a", after=None, keep=frozenset("a"))
    assert hops(planned) == [("c", "2-5")]
    router.edge_failed("a", "c")  # now only through the client
    assert not router.may_chain("a", "c")
    planned = await router.plan_gap(NEED, Span(2, 6), before="a", after=None, keep=frozenset("a"))
    assert hops(planned) == [("b", "2-5")]
    router.edge_worked("a", "c", 0.002)
    assert router.may_chain("a", "c")
    planned = await router.plan_gap(NEED, Span(2, 6), before="a", after=None, keep=frozenset("a"))
    assert hops(planned) == [("c", "2-5")]
    assert planned.predicted.edges[0].wire_s == pytest.approx(0.001, abs=0.001)


async def test_sessions_of_one_client_spread_over_equal_peers() -> None:
    _, router, _ = await clocked_swarm(a="0-5", b="0-5", c="0-5")
    taken = [hops(await router.plan(NEED))[0][0] for _ in range(60)]
    assert all(taken.count(peer) > 8 for peer in "abc")


async def test_a_route_is_predicted_anew_when_its_links_are_known() -> None:
    swarm, router, _ = await clocked_swarm(a="0-2", b="3-5")
    swarm.announce("a", links=(PeerLink("b", 0.002),))
    planned = await router.plan(NEED)
    assert not any(edge.measured for edge in planned.predicted.edges[::2])
    assert planned.predicted.edges[0].wire_s > 0.05
    for peer in "ab":
        router.measured(peer, 0.002)
    predicted = router.predict(planned.route, NEED)
    assert predicted is not None
    assert all(edge.measured for edge in predicted.edges)
    assert predicted.wire_s < 0.006
    router.edge_failed("a", "b")
    relayed = router.predict(planned.route, NEED)
    assert relayed is not None
    assert not relayed.edges[1].chained
    gone = replace(planned.route, hops=(replace(planned.route.hops[0], peer_id="x"),))
    assert router.predict(gone, NEED) is None


async def test_a_peer_whose_words_the_search_fails_over_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, router, _ = await clocked_swarm(a="0-2", b="0-5", c="3-5")
    find_route = finder_module.find_route

    def fragile(nodes: Sequence[NodeInfo], *arguments: object, **options: object) -> Route:
        if any(node.peer_id == "b" for node in nodes):
            raise OverflowError("cannot convert float infinity to integer")
        return find_route(nodes, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(finder_module, "find_route", fragile)
    for _ in range(2):
        assert hops(await router.plan(NEED)) == [("a", "0-2"), ("c", "3-5")]
    assert caplog.text.count("Traceback") == 1
    assert "event=fault where='routing' peer=b count=2" in caplog.text
