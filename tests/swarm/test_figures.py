"""Whatever peers claim within the bounds, what is computed of it is finite and in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_node.swarm.errors import SwarmError
from swarm_node.swarm.figures import (
    BYTES_PER_S,
    DECODE_MS,
    MAX_RTT_US,
    MAX_STEP_US,
    PREFILL_TOKENS_PER_S,
    QUEUE_MS,
    TOKENS_PER_S,
    Figure,
)
from swarm_node.swarm.placement.planner import assign, plan_join, plan_move
from swarm_node.swarm.placement.throughput import throughput
from swarm_node.swarm.placement.types import ModelShape, NodeOffer, Serve
from swarm_node.swarm.routing.best_route import RouteRequest, find_route, predict_route, route_price_ns
from swarm_node.swarm.routing.edges import Edges, Link
from swarm_node.swarm.routing.prediction import Prediction, decode_seconds, prefill_seconds, queue_seconds
from swarm_node.swarm.routing.slow_hop import HopSpent, Replacement, hop_to_replace
from swarm_node.swarm.types import MAX_BLOCKS, ModelRef, NodeInfo, NodeState, PeerLink, Span

N_BLOCKS = 6
MODEL = ModelRef("m", "ab" * 32, N_BLOCKS)
PEERS = ("p0", "p1", "p2", "p3", "p4")
MOST_TOKENS = 2**31 - 1
SHAPE = ModelShape(N_BLOCKS, 1000, 10, 100)


def extremes(figure: Figure) -> st.SearchStrategy[float]:
    return st.sampled_from([0.0, figure.low, figure.high, math.sqrt(max(figure.low, 1e-9) * figure.high)])


links = st.builds(
    PeerLink,
    st.sampled_from(PEERS),
    st.sampled_from([0.0, 1e-6, 0.01, MAX_RTT_US / 1e6]),
    extremes(BYTES_PER_S),
)


@st.composite
def nodes(draw: st.DrawFn, peer_id: str) -> NodeInfo:
    start = draw(st.integers(0, N_BLOCKS - 1))
    return NodeInfo(
        peer_id,
        (),
        MODEL,
        Span(start, draw(st.integers(start + 1, N_BLOCKS))),
        draw(st.sampled_from([NodeState.ONLINE, NodeState.ONLINE, NodeState.JOINING, NodeState.DRAINING])),
        decode_ms_per_block=draw(extremes(DECODE_MS)),
        prefill_tokens_per_s=draw(extremes(PREFILL_TOKENS_PER_S)),
        free_kv_tokens=2**40,
        total_kv_tokens=2**40,
        queue_ms=draw(extremes(QUEUE_MS)),
        tokens_per_s=draw(extremes(TOKENS_PER_S)),
        links=tuple(draw(st.lists(links, max_size=4))),
        max_blocks=draw(st.sampled_from([0, 1, N_BLOCKS, MAX_BLOCKS])),
    )


swarms = st.tuples(*(nodes(peer_id) for peer_id in PEERS))


@given(st.floats())
def test_the_nearest_figure_is_one(value: float) -> None:
    for figure in (DECODE_MS, PREFILL_TOKENS_PER_S, QUEUE_MS, TOKENS_PER_S, BYTES_PER_S):
        assert figure.holds(figure.nearest(value))
        if figure.holds(value):
            assert figure.nearest(value) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -5e-324])
def test_no_figure_is_negative_infinite_or_no_number(value: float) -> None:
    for figure in (DECODE_MS, PREFILL_TOKENS_PER_S, QUEUE_MS, TOKENS_PER_S, BYTES_PER_S):
        assert not figure.holds(value)


@pytest.mark.parametrize("claim", [5e-324, 1e-300, 1e300, math.inf])
def test_times_are_finite_and_above_zero_even_of_claims_that_no_door_lets_in(claim: float) -> None:
    node = NodeInfo("p", (), MODEL, Span(0, 1), NodeState.ONLINE, 5e-324, claim, queue_ms=claim)
    assert 0 < decode_seconds(node) < math.inf
    assert 0 < prefill_seconds(node) < math.inf
    assert 0 <= queue_seconds(node) <= QUEUE_MS.high / 1000


def numbers(value: object) -> list[float]:
    """Every number inside."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list | tuple):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.slow
@settings(max_examples=150)
@given(
    swarms,
    st.sampled_from([0, 1, 100, MOST_TOKENS]),
    st.sampled_from([0, 1, MOST_TOKENS]),
    st.sampled_from([0, 600, 2**18]),
    st.sampled_from([0.0, 0.05]),
)
def test_routes_cost_a_finite_time(
    swarm: Sequence[NodeInfo], prompt: int, new: int, row_bytes: int, spread: float
) -> None:
    edges = Edges(swarm, {"p0": Link(0.0, BYTES_PER_S.low), "p1": Link(60.0, BYTES_PER_S.high)})
    request = RouteRequest(N_BLOCKS, 1, prompt, new, row_bytes)
    try:
        route = find_route(swarm, edges, request, salt="s", spread=spread)
    except SwarmError:
        return
    by_peer = {node.peer_id: node for node in swarm}
    predicted = predict_route(route.hops, by_peer, edges, request)
    assert all(map(math.isfinite, numbers(predicted.as_dict())))
    assert predicted.token_s > 0
    assert predicted.prefill_s >= 0
    picks = [(by_peer[hop.peer_id], hop.span) for hop in route.hops]
    assert 0 <= route_price_ns(picks, edges, request) < 1e40


@settings(max_examples=40, deadline=None)
@given(swarms, extremes(DECODE_MS), st.lists(links, max_size=3), st.sampled_from([0, 2000, 10**15]))
def test_plans_are_made_of_finite_numbers(
    swarm: Sequence[NodeInfo], decode_ms: float, own: list[PeerLink], memory: int
) -> None:
    offer = NodeOffer("own", memory, decode_ms, 0.0, tuple(own))
    moving = NodeOffer("p0", memory, decode_ms, 0.0, tuple(own))
    verdicts = [plan_join(swarm, offer, SHAPE), plan_move(swarm, moving, SHAPE, now=0.0)]
    for verdict in verdicts:
        assert all(map(math.isfinite, numbers(verdict.as_dict())))
        if isinstance(verdict, Serve):
            assert verdict.tokens_per_s >= 0
            assert "inf" not in verdict.why
            assert "nan" not in verdict.why
    assign([offer], SHAPE, fixed=swarm)


@given(st.lists(extremes(DECODE_MS), min_size=2, max_size=5))
def test_a_slower_claim_never_gives_more(speeds: list[float]) -> None:
    ordered = sorted(speeds, key=lambda ms: ms or 5.0)
    seconds = [decode_seconds(NodeInfo("p", (), MODEL, Span(0, 1), NodeState.ONLINE, ms)) for ms in ordered]
    assert all(a <= b for a, b in pairwise(seconds))
    rates = [throughput({(0, 3): 1 / slow, (1, 6): 1 / seconds[0], (0, 6): 0.5}, 6) for slow in seconds]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)
    assert all(b <= a * 1.002 for a, b in pairwise(rates))  # throughput is exact to a thousandth


step_seconds = st.sampled_from([0.0, 1e-6, 0.01, MAX_STEP_US / 1e6])


@given(swarms, st.lists(st.tuples(step_seconds, step_seconds, step_seconds), min_size=5, max_size=5))
def test_what_hops_say_of_a_step_is_compared_without_overflow(
    swarm: Sequence[NodeInfo], told: list[tuple[float, float, float]]
) -> None:
    edges = Edges(swarm, {})
    request = RouteRequest(N_BLOCKS, 1, 10, 10)
    try:
        route = find_route(swarm, edges, request)
    except SwarmError:
        return
    predicted: Prediction = predict_route(route.hops, {node.peer_id: node for node in swarm}, edges, request)
    spent = [HopSpent(40, *times, tokens=1.5) for times in told[: len(route.hops)]]
    stand_ins = [Replacement(predicted.token_s, predicted.prefill_s)] * len(route.hops)
    chosen = hop_to_replace(predicted, spent, stand_ins, MOST_TOKENS)
    assert chosen is None or 0 <= chosen < len(route.hops)
