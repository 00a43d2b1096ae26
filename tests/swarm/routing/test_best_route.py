"""Routes against brute force, and what people are told when there is none."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.swarm.boundaries import may_serve, span_inside
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.routing.best_route import (
    NoRouteError,
    Prices,
    RouteRequest,
    find_route,
    missing_blocks,
    route_price_ns,
)
from swarm_node.swarm.routing.edges import Edges, Link
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, PeerLink, Route, Span

NEAR = Link(rtt_s=0.001, bytes_per_s=1e8)


def node(
    peer_id: str,
    start: int,
    end: int,
    *,
    ms: float = 1.0,
    prefill: float = 1000.0,
    n_blocks: int = 6,
    free: int = 1000,
    state: NodeState = NodeState.ONLINE,
    digest: str = "d" * 64,
    queue: float = 0.0,
) -> NodeInfo:
    return NodeInfo(
        peer_id=peer_id,
        maddrs=(f"/ip4/127.0.0.1/tcp/1/p2p/{peer_id}",),
        model=ModelRef("m", digest, n_blocks),
        span=Span(start, end),
        state=state,
        decode_ms_per_block=ms,
        prefill_tokens_per_s=prefill,
        free_kv_tokens=free,
        total_kv_tokens=1000,
        queue_ms=queue,
    )


def request(n_blocks: int = 6, **changes: object) -> RouteRequest:
    return replace(RouteRequest(n_blocks, kv_tokens=100, prompt_tokens=10, new_tokens=20), **changes)  # type: ignore[arg-type]


def links(nodes: Sequence[NodeInfo], link: Link = NEAR) -> Edges:
    return Edges(nodes, {n.peer_id: link for n in nodes})


def shape(route: Route) -> list[tuple[str, int, int]]:
    return [(hop.peer_id, hop.span.start, hop.span.end) for hop in route.hops]


def all_routes(
    nodes: Sequence[NodeInfo],
    start: int,
    end: int,
    used: frozenset[str] = frozenset(),
    cuts: Sequence[int] = (),
) -> Iterator[list[tuple[NodeInfo, Span]]]:
    """Every chain over the blocks that uses no node twice, and that goes on to another node at cuts only."""
    if start == end:
        yield []
    for n in nodes:
        if start in n.span and n.peer_id not in used:
            for stop in range(start + 1, min(end, n.span.end) + 1):
                if cuts and stop not in cuts:
                    continue
                for rest in all_routes(nodes, stop, end, used | {n.peer_id}, cuts):
                    yield [(n, Span(start, stop)), *rest]


def route_legs(route: Route, nodes: Sequence[NodeInfo]) -> list[tuple[NodeInfo, Span]]:
    by_peer = {n.peer_id: n for n in nodes}
    return [(by_peer[hop.peer_id], hop.span) for hop in route.hops]


@st.composite
def swarms(draw: st.DrawFn) -> tuple[list[NodeInfo], Edges, RouteRequest]:
    n_blocks = draw(st.integers(1, 6))
    nodes, known = [], {}
    count = draw(st.integers(0, 5))
    peers = [f"peer{i}" for i in range(count)]
    rtts = st.sampled_from([0.0, 0.001, 0.05, 0.3])
    pairs = st.lists(st.permutations(peers).map(lambda order: tuple(order[:2])), max_size=6)
    for i in range(count):
        start = draw(st.integers(0, n_blocks - 1))
        n = node(
            f"peer{i}",
            start,
            draw(st.integers(start + 1, n_blocks)),
            ms=draw(st.sampled_from([0.0, 0.5, 1.0, 40.0])),
            prefill=draw(st.sampled_from([0.0, 10.0, 1000.0])),
            n_blocks=n_blocks,
            free=draw(st.sampled_from([1000, 1000, 1000, 50])),
            queue=draw(st.sampled_from([0.0, 0.0, 5.0, 80.0, 1e9])),
            state=draw(st.sampled_from([NodeState.ONLINE] * 4 + [NodeState.DRAINING, NodeState.JOINING])),
        )
        told = draw(st.lists(st.sampled_from(peers), max_size=3))
        n = replace(n, links=tuple(PeerLink(p, draw(rtts), draw(st.sampled_from([0.0, 1e6]))) for p in told))
        nodes.append(n)
        if draw(st.booleans()):
            known[n.peer_id] = Link(draw(rtts), draw(st.sampled_from([1e5, 1e6])))
    inside = draw(st.lists(st.integers(0, n_blocks), max_size=3)) if draw(st.booleans()) else None
    cuts = () if inside is None else tuple(sorted({0, *inside, n_blocks}))
    ends = cuts or range(n_blocks + 1)
    start, end = sorted(draw(st.lists(st.sampled_from(ends), min_size=2, max_size=2, unique=True)))
    sizes = st.lists(st.sampled_from([600, 4096, 40_000]), min_size=n_blocks + 1, max_size=n_blocks + 1)
    joined = draw(st.booleans()) and count > 2
    wanted = request(
        n_blocks,
        start=start,
        end=end,
        cuts=cuts,
        row_bytes=draw(st.sampled_from([(), tuple(draw(sizes))])),
        prompt_tokens=draw(st.sampled_from([0, 1, 500])),
        new_tokens=draw(st.sampled_from([0, 1, 200])),
        banned=frozenset({"peer0", "peer1"}) if joined else frozenset(),
        before="peer0" if joined else "",
        after="peer1" if joined and draw(st.booleans()) else "",
    )
    unchained = frozenset(pair for pair in draw(pairs) if len(pair) == 2) if count > 1 else frozenset()
    return nodes, Edges(nodes, known, unchained=unchained), wanted


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(swarms(), st.randoms(use_true_random=False))
def test_agrees_with_brute_force(
    swarm: tuple[list[NodeInfo], Edges, RouteRequest], rng: random.Random
) -> None:
    nodes, edges, wanted = swarm
    usable = [
        n
        for n in nodes
        if n.state is NodeState.ONLINE and n.free_kv_tokens >= 100 and n.peer_id not in wanted.banned
    ]
    routes = list(all_routes(usable, wanted.span.start, wanted.span.end, cuts=wanted.cuts))
    if not routes:
        with pytest.raises(NoRouteError) as caught:
            find_route(nodes, edges, wanted)
        spans = [span_inside(n.span, wanted.cuts) for n in usable]
        covered = {block for span in spans if span for block in range(span.start, span.end)}
        assert all(may_serve(span, wanted.cuts) for span in caught.value.missing)
        holes = {block for span in caught.value.missing for block in range(span.start, span.end)}
        assert holes == set(range(wanted.span.start, wanted.span.end)) - covered
        assert caught.value.seen == tuple(nodes)
        return
    route = find_route(nodes, edges, wanted, salt="x")
    client_links = route_legs(route, usable)
    # it is a route, and no other is cheaper, or as cheap with fewer hops
    assert any(client_links == other for other in routes)
    best = min((route_price_ns(r, edges, wanted), len(r)) for r in routes)
    assert (route_price_ns(client_links, edges, wanted), len(client_links)) == best
    # neither the order of the snapshot nor that of the links decides anything
    shuffled = list(nodes)
    rng.shuffle(shuffled)
    assert find_route(shuffled, edges, wanted, salt="x") == route
    # a spread route is a route too, and costs little more than the best unless queues are in the way
    spread = route_legs(find_route(nodes, edges, wanted, salt="x", spread=0.05), usable)
    assert any(spread == other for other in routes)
    if all(n.queue_ms == 0 for n in nodes):
        assert route_price_ns(spread, edges, wanted) <= 1.2 * best[0] + 10


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.1, 30.0]), min_size=6, max_size=6),
    st.sampled_from([0.0, 0.001]),
    st.lists(st.integers(0, 5), max_size=4),
)
def test_slow_node_over_everything_is_used_once(speeds: list[float], rtt: float, near: list[int]) -> None:
    """Fast islands inside a slow node's span tempt the search to leave it and come back."""
    nodes = [node("wide", 0, 6, ms=10.0)]
    nodes += [node(f"island{i}", i, i + 1, ms=ms) for i, ms in enumerate(speeds)]
    nodes[0] = replace(nodes[0], links=tuple(PeerLink(f"island{i}", 0.0) for i in near))
    edges, wanted = links(nodes, Link(rtt, 1e9)), request()
    client_links = route_legs(find_route(nodes, edges, wanted), nodes)
    peers = [n.peer_id for n, _ in client_links]
    assert len(set(peers)) == len(peers)
    best = min((route_price_ns(r, edges, wanted), len(r)) for r in all_routes(nodes, 0, 6))
    assert (route_price_ns(client_links, edges, wanted), len(client_links)) == best


def test_enters_and_leaves_inside_spans() -> None:
    nodes = [node("a", 0, 4), node("b", 2, 6, ms=0.5)]
    assert shape(find_route(nodes, links(nodes), request())) == [("a", 0, 2), ("b", 2, 6)]


def test_hops_begin_and_end_at_cuts() -> None:
    nodes = [node("a", 0, 4), node("b", 2, 6, ms=0.5), node("c", 3, 5, ms=0.01)]
    found = find_route(nodes, links(nodes), request(cuts=(0, 4, 6)))
    assert shape(found) == [("a", 0, 4), ("b", 4, 6)]
    with pytest.raises(NoRouteError) as caught:
        find_route(nodes, links(nodes), request(cuts=(0, 1, 6)))
    assert caught.value.missing == (Span(1, 6),)
    with pytest.raises(UsageError, match="blocks 0-2 cannot be cut out of the model"):
        request(cuts=(0, 4, 6), end=3)


def test_a_span_that_a_stranger_announces_counts_between_cuts() -> None:
    nodes = [node("odd", 1, 5, ms=0.01), node("whole", 0, 6)]
    assert shape(find_route(nodes, links(nodes), request(cuts=(0, 3, 6)))) == [("whole", 0, 6)]
    nodes.append(node("more", 0, 6))
    found = find_route(nodes, links(nodes), request(cuts=(0, 2, 4, 6)))
    assert sorted(shape(found), key=lambda hop: hop[1])[1] == ("odd", 2, 4)


def test_fewest_hops_among_equal_costs() -> None:
    nodes = [node("whole", 0, 6), node("left", 0, 3), node("right", 3, 6)]
    free = links(nodes, Link(0.0, 1e30))  # a hop costs nothing, so all routes cost the same
    for salt in "abcdef":
        nodes = [replace(n, prefill_tokens_per_s=1e3 * len(n.span)) for n in nodes]
        assert shape(find_route(nodes, free, request(), salt=salt)) == [("whole", 0, 6)]


def test_a_far_fast_node_loses_to_a_near_slow_one() -> None:
    nodes = [node("far", 0, 6, ms=1.0), node("near", 0, 6, ms=2.0)]
    known = Edges(nodes, {"far": Link(0.1, 1e8), "near": NEAR})
    assert shape(find_route(nodes, known, request())) == [("near", 0, 6)]
    assert shape(find_route(nodes, links(nodes), request())) == [("far", 0, 6)]


def test_a_thin_line_matters_for_long_prompts_only() -> None:
    nodes = [node("thin", 0, 6, ms=1.0), node("thick", 0, 6, ms=1.5)]
    known = Edges(nodes, {"thin": Link(0.001, 1e6), "thick": Link(0.001, 1e9)})
    assert shape(find_route(nodes, known, request(bytes_per_token=600))) == [("thin", 0, 6)]
    assert shape(find_route(nodes, known, request(bytes_per_token=600, prompt_tokens=2000))) == [
        ("thick", 0, 6)
    ]


def test_salt_spreads_over_equal_peers_and_repeats_itself() -> None:
    nodes = [node(f"peer{i}", 0, 6) for i in range(4)]
    chosen = [shape(find_route(nodes, links(nodes), request(), salt=str(s)))[0][0] for s in range(200)]
    assert all(chosen.count(f"peer{i}") > 20 for i in range(4))
    again = [shape(find_route(nodes, links(nodes), request(), salt=str(s)))[0][0] for s in range(200)]
    assert chosen == again


def test_predicts_a_decode_step() -> None:
    nodes = [node("a", 0, 3, ms=2.0), node("b", 3, 6, ms=1.0)]
    route = find_route(nodes, links(nodes, Link(0.010, 1e6)), request(bytes_per_token=1000))
    assert route.seconds_per_token == pytest.approx(0.006 + 0.003 + 3 * (0.005 + 0.001))


def test_a_queue_is_paid_for_every_step() -> None:
    nodes = [node("fast", 0, 6, ms=1.0, queue=20.0), node("slow", 0, 6, ms=2.0)]
    route = find_route(nodes, links(nodes), request())
    assert shape(route) == [("slow", 0, 6)]
    busy = find_route(nodes[:1], links(nodes), request())
    idle = find_route([replace(nodes[0], queue_ms=0.0)], links(nodes), request())
    assert busy.seconds_per_token - idle.seconds_per_token == pytest.approx(0.020)
    enter, _ = Prices(links(nodes), request()).hop(nodes[0])
    assert enter == 21 * 20_000_000  # the prompt's and 20 tokens'


def test_a_busy_node_is_left_as_early_as_another_can_take_over() -> None:
    nodes = [node("busy", 0, 4, queue=50.0), node("free", 1, 6), node("head", 0, 2)]
    assert shape(find_route(nodes, links(nodes), request())) == [("head", 0, 1), ("free", 1, 6)]


def test_unmeasured_nodes_are_used_but_not_preferred() -> None:
    nodes = [node("new", 0, 6, ms=0.0, prefill=0.0), node("known", 0, 6, ms=2.0)]
    assert shape(find_route(nodes, links([]), request())) == [("known", 0, 6)]
    assert shape(find_route(nodes[:1], links([]), request())) == [("new", 0, 6)]


def test_tail_route_for_a_repair() -> None:
    nodes = [node("a", 0, 3), node("b", 3, 6), node("c", 0, 6, ms=9.0)]
    assert shape(find_route(nodes, links(nodes), request(start=4))) == [("b", 4, 6)]
    assert shape(find_route(nodes, links(nodes), request(start=4, banned=frozenset({"b"})))) == [("c", 4, 6)]


def test_two_announcements_of_one_peer_count_once() -> None:
    nodes = [node("a", 0, 3), node("a", 2, 6)]
    with pytest.raises(NoRouteError) as caught:
        find_route(nodes, links([]), request())
    assert caught.value.missing == (Span(0, 2),)


def test_no_route_says_what_is_missing_and_who_was_seen() -> None:
    nodes = [
        node("peer-online", 0, 2),
        node("peer-drains", 2, 4, state=NodeState.DRAINING),
        node("peer-isfull", 4, 6, free=7),
        node("peer-failed", 2, 5),
        node("peer-others", 0, 6, digest="e" * 64),
        node("peer-second", 0, 1),
    ]
    wanted = request(banned=frozenset({"peer-failed"}), digest="d" * 64)
    with pytest.raises(NoRouteError) as caught:
        find_route(nodes, links([]), wanted)
    error = caught.value
    assert error.missing == (Span(2, 6),)
    assert error.exit_code == 5
    text = str(error)
    assert "blocks 2-5 of 6" in text
    for words in (
        "…isfull has 4-5 (full, 7 of 1000 tokens free)",
        "…drains has 2-3 (draining)",
        "…failed has 2-4 (failed lately)",
    ):
        assert words in text
    assert "2 more" in text
    assert len((text + error.hint).splitlines()) == 1
    assert "--blocks 2-5" in error.hint
    with pytest.raises(NoRouteError, match=r"full, 7 of 1000 tokens free"):
        find_route(nodes[2:3], links([]), wanted)
    with pytest.raises(NoRouteError, match=r"another model"):
        find_route(nodes[4:5], links([]), wanted)
    with pytest.raises(NoRouteError, match=r"No peer of this model was seen"):
        find_route([], links([]), wanted)


def test_a_gap_keeps_the_borders_of_the_hops_that_were_there() -> None:
    nodes = [node("fast1", 0, 3, ms=1.0), node("fast2", 3, 6, ms=1.0), node("whole", 0, 6, ms=1.5)]
    near = links(nodes, Link(0.0001, 1e9))

    def found(**more: object) -> list[tuple[str, int, int]]:
        return shape(find_route(nodes, near, request(prompt_tokens=0, **more)))

    assert found() == [("fast1", 0, 3), ("fast2", 3, 6)]
    nodes[2] = replace(nodes[2], decode_ms_per_block=1.2)
    assert found() == [("fast1", 0, 3), ("fast2", 3, 6)]
    assert found(borders=()) == [("whole", 0, 6)]  # a fifth dearer, with no border inside
    assert found(borders=(3,)) == [("fast1", 0, 3), ("fast2", 3, 6)]
    assert found(borders=(2,)) == [("fast1", 0, 2), ("whole", 2, 6)]
    assert found(borders=(1, 2)) == [("fast1", 0, 3), ("fast2", 3, 6)]  # would need three nodes for 0-3
    nodes[2] = replace(nodes[2], decode_ms_per_block=1.5)
    assert found(borders=()) == [("fast1", 0, 3), ("fast2", 3, 6)]  # half dearer: too much
    nodes[2] = replace(nodes[2], decode_ms_per_block=0.9)
    assert found() == [("whole", 0, 6)]
    kept = found(borders=(3, 0, 6, 99))  # borders outside ask for nothing
    assert [(start, end) for _, start, end in kept] == [(0, 3), (3, 6)]


def test_missing_blocks() -> None:
    nodes = [node("a", 1, 2), node("b", 4, 6, n_blocks=9), node("c", 4, 5)]
    assert missing_blocks(nodes, 9) == (Span(0, 1), Span(2, 4), Span(6, 9))
    assert missing_blocks(nodes, 3, start=1) == (Span(2, 3),)
    assert missing_blocks(nodes, 6, start=4) == ()
    assert missing_blocks([], 4) == (Span(0, 4),)


def test_senseless_requests_and_links() -> None:
    with pytest.raises(UsageError):
        request(n_blocks=4, start=4)
    with pytest.raises(UsageError):
        request(kv_tokens=-1)
    for rtt, rate in ((-1.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (0.1, 0.0), (0.1, float("nan"))):
        with pytest.raises(UsageError):
            Link(rtt, rate)


def test_a_large_swarm_is_routed_at_once() -> None:
    """1000 nodes, 80 blocks: a client must not stall its event loop over a snapshot."""
    rng = random.Random(0)
    nodes = []
    for i in range(1000):
        start = rng.randrange(0, 80)
        span = (start, min(80, start + rng.randrange(1, 30)))
        nodes.append(node(f"peer{i}", *span, ms=rng.uniform(0.1, 5), n_blocks=80))
    route = find_route(nodes, links(nodes, Link(0.02, 1e7)), request(80))
    assert route.hops[0].span.start == 0
    assert route.hops[-1].span.end == 80


def test_a_swarm_made_to_tempt_the_search_is_still_routed() -> None:
    """Many wide, slow nodes with fast islands inside, at no distance: the best chain that may use peers twice
    is far from any that may not. The search ends early, with a good route."""
    islands = [f"island{i}" for i in range(1, 80, 2)]
    near = tuple(PeerLink(island, 0.0) for island in islands[:16])
    nodes = [replace(node(f"wide{i}", 0, 80, ms=10.0 + i, n_blocks=80), links=near) for i in range(12)]
    nodes += [
        node(island, start, start + 1, ms=0.1, n_blocks=80)
        for island, start in zip(islands, range(1, 80, 2), strict=True)
    ]
    edges, wanted = links(nodes, Link(0.001, 1e9)), request(80)
    client_links = route_legs(find_route(nodes, edges, wanted), nodes)
    assert len({n.peer_id for n, _ in client_links}) == len(client_links)
    assert [span.start for _, span in client_links[1:]] == [span.end for _, span in client_links[:-1]]
    assert (client_links[0][1].start, client_links[-1][1].end) == (0, 80)
    alone = route_price_ns([(nodes[0], Span(0, 80))], edges, wanted)
    assert route_price_ns(client_links, edges, wanted) < alone


def test_a_node_without_room_for_states_is_full() -> None:
    some = replace(node("s", 0, 6), free_states=1, total_states=4)
    none = replace(some, free_states=0)
    assert find_route([some], links([some]), request()).hops[0].peer_id == "s"
    with pytest.raises(NoRouteError, match="no room for the states of another session beside 4"):
        find_route([none], links([none]), request())
    planned = find_route([none], links([none]), request(kv_tokens=0))
    assert planned.hops[0].peer_id == "s", "a session that needs no room finds one"


def test_over_a_long_context_blocks_that_keep_a_state_win() -> None:
    """Both are announced with a short context, in which attention is the faster."""
    attends = replace(node("a", 0, 6), context_ms_per_block=0.2)
    keeps = node("k", 0, 6, ms=1.5)
    nodes = [attends, keeps]
    short = find_route(nodes, links(nodes), request())
    assert short.hops[0].peer_id == "a"
    long = find_route(nodes, links(nodes), request(prompt_tokens=20_000, fed=0, kv_tokens=0))
    assert long.hops[0].peer_id == "k"
    held = find_route(nodes, links(nodes), request(prompt_tokens=1, fed=20_000))
    assert held.hops[0].peer_id == "k", "tokens that need not be fed are context too"
    assert held.seconds_per_token > 6 * 0.0015
    with pytest.raises(UsageError):
        request(fed=-1)
