"""What a route should cost, reckoned by hand."""

from __future__ import annotations

import math

import pytest

from swarm_node.swarm.figures import MEASURED_CONTEXT, QUEUE_MS
from swarm_node.swarm.routing.edges import Edges, Link
from swarm_node.swarm.routing.prediction import chunk_tokens, decode_seconds, predict
from swarm_node.swarm.types import Hop, ModelRef, NodeInfo, NodeState, PeerLink, Span

MODEL = ModelRef("m", "d" * 64, 6)


def node(peer_id: str, span: Span, **more: object) -> NodeInfo:
    values: dict[str, object] = {"decode_ms_per_block": 1.0, "prefill_tokens_per_s": 1000.0, **more}
    return NodeInfo(peer_id, (), MODEL, span, NodeState.ONLINE, **values)  # type: ignore[arg-type]


A = node("a", Span(0, 4), queue_ms=5.0, links=(PeerLink("b", 0.004, 1e7),))
B = node("b", Span(2, 6), decode_ms_per_block=2.0, prefill_tokens_per_s=500.0)
HOPS = [Hop("a", Span(0, 3)), Hop("b", Span(3, 6))]
LINKS = {"a": Link(0.010, 1e6), "b": Link(0.012, 1e6)}


def test_a_decoded_token() -> None:
    predicted = predict(HOPS, [A, B], Edges([A, B], LINKS), prompt_tokens=0, bytes_at=lambda _: 1000)
    assert [edge.wire_s for edge in predicted.edges] == pytest.approx([0.006, 0.0021, 0.007])
    assert [(edge.source, edge.target, edge.chained) for edge in predicted.edges] == [
        ("", "a", True),
        ("a", "b", True),
        ("b", "", True),
    ]
    assert [hop.compute_s for hop in predicted.hops] == pytest.approx([0.003, 0.006])
    assert predicted.token_s == pytest.approx(0.0151 + 0.009 + 0.005)
    assert predicted.around(1) == pytest.approx(0.006 + 0.0021 + 0.007)
    assert predicted.prefill_s == 0
    assert all(edge.measured for edge in predicted.edges)


def test_attention_over_a_long_context_takes_time_and_states_do_not() -> None:
    attends = node("a", Span(0, 3), context_ms_per_block=0.25)
    keeps = node("b", Span(3, 6))
    edges = Edges([attends, keeps], LINKS)

    def compute_s(context: float) -> list[float]:
        predicted = predict(
            HOPS, [attends, keeps], edges, prompt_tokens=0, bytes_at=lambda _: 1000, context=context
        )
        return [hop.compute_s for hop in predicted.hops]

    assert compute_s(0) == compute_s(MEASURED_CONTEXT) == pytest.approx([0.003, 0.003])
    assert compute_s(MEASURED_CONTEXT + 32_000) == pytest.approx([3 * 0.009, 0.003])


def test_a_claim_of_growth_excuses_little_in_a_short_context() -> None:
    claims = node("a", Span(0, 6), context_ms_per_block=600_000.0)
    assert decode_seconds(claims, 420) < 3 * decode_seconds(claims)
    assert math.isfinite(decode_seconds(claims, 2**40))


def test_each_boundary_has_rows_of_its_own_size() -> None:
    sizes = [3000, 2900, 2800, 2000, 1000, 900, 500]
    edges = Edges([A, B], LINKS)
    predicted = predict(HOPS, [A, B], edges, prompt_tokens=0, bytes_at=sizes.__getitem__)
    assert [edge.wire_s for edge in predicted.edges] == pytest.approx([0.008, 0.0022, 0.0065])
    predicted = predict(HOPS, [A, B], edges, prompt_tokens=800, bytes_at=sizes.__getitem__)
    # chunks of 100 tokens, of which the first hop's link takes 0.3 s each; one row comes back
    fill = (0.005 + 0.3) + 0.005 + 0.075 + (0.002 + 0.02) + 0.15 + 0.0065
    assert predicted.prefill_s == pytest.approx(fill + 7 * 0.3)


def test_a_prompt_is_a_pipeline_of_chunks() -> None:
    predicted = predict(HOPS, [A, B], Edges([A, B], LINKS), prompt_tokens=800, bytes_at=lambda _: 1000)
    # a has 3 of 4 blocks at 1000 tokens/s, b 3 of 4 at 500: 0.6 s and 1.2 s for 800 tokens, in 8 chunks
    assert [hop.prefill_s for hop in predicted.hops] == pytest.approx([0.6, 1.2])
    fill = (0.005 + 0.1) + 0.005 + 0.075 + (0.002 + 0.01) + 0.15 + 0.007
    assert predicted.prefill_s == pytest.approx(fill + 7 * 0.15)
    # through the client an edge takes both lines, one after the other, at the same time as other chunks
    edges = Edges([A, B], LINKS, unchained=frozenset({("a", "b")}))
    relayed = predict(HOPS, [A, B], edges, prompt_tokens=800, bytes_at=lambda _: 1000)
    fill = (0.005 + 0.1) + 0.005 + 0.075 + (0.011 + 0.2) + 0.15 + 0.007
    assert relayed.prefill_s == pytest.approx(fill + 7 * 0.15)
    assert not relayed.edges[1].chained


def test_one_hop_takes_the_prompt_in_one_piece() -> None:
    whole = node("a", Span(0, 6))
    edges = Edges([whole], {"a": Link(0.010, 1e6)})
    predicted = predict([Hop("a", Span(0, 6))], [whole], edges, prompt_tokens=500, bytes_at=lambda _: 1000)
    assert predicted.prefill_s == pytest.approx(0.005 + 0.5 + 0.5 + 0.005 + 0.001)
    cut = predict(
        [Hop("a", Span(0, 6))],
        [whole],
        edges,
        prompt_tokens=500,
        bytes_at=lambda _: 1000,
        max_step_tokens=100,
    )
    assert cut.prefill_s == pytest.approx(0.005 + 0.1 + 0.1 + 0.006 + 4 * 0.1)


def test_a_gap_between_two_nodes_sends_on_every_row() -> None:
    edges = Edges([A, B], LINKS)
    predicted = predict(
        [Hop("b", Span(3, 6))], [B], edges, prompt_tokens=100, bytes_at=lambda _: 1000, before="a", after="a"
    )
    assert [edge.wire_s for edge in predicted.edges] == pytest.approx([0.0021, 0.0021])
    assert predicted.prefill_s == pytest.approx(0.15 + 2 * (0.002 + 0.01))


def test_an_announced_queue_is_bounded() -> None:
    full = node("a", Span(0, 6), queue_ms=1e9)
    predicted = predict(
        [Hop("a", Span(0, 6))], [full], Edges([full], {}), prompt_tokens=0, bytes_at=lambda _: 1
    )
    assert predicted.hops[0].queue_s == QUEUE_MS.high / 1000


def test_chunks() -> None:
    assert chunk_tokens(2048, 1, 512) == 512
    assert chunk_tokens(2048, 2, 4096) == 256
    assert chunk_tokens(100, 2, 4096) == 64
    assert chunk_tokens(10, 3, 4096) == 10


def test_as_dict_is_plain() -> None:
    predicted = predict(HOPS, [A, B], Edges([A, B], LINKS), prompt_tokens=4, bytes_at=lambda _: 1000)
    told = predicted.as_dict()
    assert told["token_ms"] == pytest.approx(29.1)
    assert told["hops"][0] == {  # type: ignore[index]
        "peer_id": "a",
        "blocks": "0-2",
        "queue_ms": 5.0,
        "compute_ms": 3.0,
        "prefill_ms": 3.0,
    }
    assert told["edges"][1]["from"] == "a"  # type: ignore[index]
