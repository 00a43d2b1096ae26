"""Prediction beside measurement, from the dictionaries that ``generate --json`` prints."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from swarm_node.node.cli.generate.trace import prefill_line, trace_of, waterfall

TOKENS = 11


def hop(peer: str, blocks: str, queue: float, compute: float, codec: float = 0.1) -> dict[str, Any]:
    parts = {"queue_ms": queue, "compute_ms": compute, "codec_ms": codec, "wire_ms": 0.0}
    return {"peer_id": peer, "blocks": blocks, **parts, "decode": {"tokens": TOKENS - 1}}


def chain(wire: float, *peers: str, tokens: int = TOKENS - 1) -> dict[str, Any]:
    return {"peer_ids": list(peers), "wire_ms": wire, "decode": {"tokens": tokens}}


def edge(source: str, target: str, wire: float, *, measured: bool = True) -> dict[str, Any]:
    return {"from": source, "to": target, "wire_ms": wire, "chained": True, "measured": measured}


def result(**changes: Any) -> dict[str, Any]:
    timings = {
        "new_tokens": TOKENS,
        "prompt_tokens": 100,
        "cached_tokens": 0,
        "prefill_s": 1.0,
        "repair_s": 0.0,
        "local_s": 0.022,
    }
    usual = {
        "route": [hop("aaaaaaaa", "0-2", 0.5, 10.0), hop("bbbbbbbb", "3-5", 1.0, 20.0)],
        "chains": [chain(31.0, "aaaaaaaa", "bbbbbbbb")],
        "predicted": {
            "prefill_ms": 900.0,
            "prompt_tokens": 100,
            "hops": [
                {"peer_id": "aaaaaaaa", "blocks": "0-2", "queue_ms": 0.0, "compute_ms": 9.0},
                {"peer_id": "bbbbbbbb", "blocks": "3-5", "queue_ms": 2.0, "compute_ms": 18.0},
            ],
            "edges": [
                edge("", "aaaaaaaa", 10.0),
                edge("aaaaaaaa", "bbbbbbbb", 12.0),
                edge("bbbbbbbb", "", 8.0),
            ],
        },
        "timings": timings | changes.pop("timings", {}),
    }
    return usual | changes


@pytest.mark.parametrize(
    ("way_on", "told"),
    [
        ("daemon", "Ways: client → aaaaaa direct, aaaaaa → bbbbbb daemon"),
        ("", "Ways: client → aaaaaa direct, client → bbbbbb relay"),  # which the client feeds
    ],
)
def test_the_way_of_each_edge(way_on: str, told: str) -> None:
    first = hop("aaaaaaaa", "0-2", 0.5, 10.0) | {"way": "direct", "way_on": way_on}
    last = hop("bbbbbbbb", "3-5", 1.0, 20.0) | {"way": "relay", "way_on": ""}
    assert trace_of(result(route=[first, last])).ways.replace("…", "") == told
    assert trace_of(result()).ways == ""  # of an earlier version


def test_the_codec_of_each_edge() -> None:
    first = hop("aaaaaaaa", "0-2", 0.5, 10.0) | {"codec": "int8s", "codec_on": "f8"}
    last = hop("bbbbbbbb", "3-5", 1.0, 20.0) | {"codec": "f8", "codec_on": "bf16"}
    told = trace_of(result(route=[first, last])).codecs.replace("…", "")
    assert told == "Codecs: client → aaaaaa int8s, aaaaaa → bbbbbb f8, bbbbbb → client bf16"


def test_stages_in_the_order_of_the_route() -> None:
    trace = trace_of(result())
    assert [stage.name for stage in trace.stages] == [
        "wire",
        "…aaaaaa blocks 0-2",
        "…bbbbbb blocks 3-5",
        "client (head)",
    ]
    assert [stage.predicted_ms for stage in trace.stages] == [30.0, 9.0, 20.0, None]
    assert [stage.measured_ms for stage in trace.stages] == pytest.approx([31.0, 10.6, 21.1, 2.0])
    assert trace.disagreements == ()
    assert (trace.prefill_predicted_s, trace.prefill_measured_s) == (0.9, 1.0)
    json.dumps(trace.as_dict())


def test_a_hop_that_is_slower_than_predicted_is_named_with_why() -> None:
    slow = [hop("aaaaaaaa", "0-2", 0.5, 10.0), hop("bbbbbbbb", "3-5", 60.0, 20.0)]
    (sentence,) = trace_of(result(route=slow)).disagreements
    assert (
        sentence
        == "…bbbbbb blocks 3-5: 80.1 ms a pass, 4.0 times as slow as predicted (20.0 ms) (mostly queue)."
    )


def test_the_wire_that_was_only_estimated() -> None:
    found = result(chains=[chain(1.0, "aaaaaaaa", "bbbbbbbb")])
    found["predicted"]["edges"][1]["measured"] = False
    (sentence,) = trace_of(found).disagreements
    assert sentence.startswith("wire: 1.0 ms a pass, 30.0 times as fast as predicted (30.0 ms)")
    assert "1 of 3 links were only estimated" in sentence


def test_small_differences_are_no_disagreement() -> None:
    quick = [hop("aaaaaaaa", "0-2", 0.0, 1.0), hop("bbbbbbbb", "3-5", 0.0, 20.0)]
    found = result(route=quick)
    found["predicted"]["hops"][0]["compute_ms"] = 0.1  # ten times, but under LEAST_MS
    assert trace_of(found).disagreements == ()


def test_a_relayed_edge_belongs_half_to_each_chain() -> None:
    found = result(chains=[chain(16.0, "aaaaaaaa"), chain(14.0, "bbbbbbbb")])
    stages = trace_of(found).stages
    assert [stage.predicted_ms for stage in stages[::2]] == [16.0, 14.0, None]
    assert [stage.name for stage in stages[:3]] == ["wire …aaaaaa", "…aaaaaa blocks 0-2", "wire …bbbbbb"]


def test_after_a_repair_the_last_chains_count() -> None:
    old = [chain(5.0, "aaaaaaaa", "dddddddd"), chain(7.0, "aaaaaaaa", "bbbbbbbb")]
    assert trace_of(result(chains=old)).stages[0].measured_ms == 7.0
    found = result(timings={"repair_s": 0.5})
    found["predicted"]["hops"][1]["peer_id"] = "dddddddd"
    trace = trace_of(found)
    assert all(stage.predicted_ms is None for stage in trace.stages)
    assert trace.prefill_predicted_s is None
    assert trace.disagreements == ()


def test_ways_that_were_not_told_leave_the_hops() -> None:
    for chains in ([], [chain(5.0, "aaaaaaaa")], [chain(5.0, "aaaaaaaa", "bbbbbbbb", tokens=0)]):
        trace = trace_of(result(chains=chains))
        assert [stage.blocks for stage in trace.stages] == ["0-2", "3-5", ""]


def test_one_token_has_a_prefill_only() -> None:
    trace = trace_of(result(timings={"new_tokens": 1, "prefill_s": 3.0, "cached_tokens": 50}))
    assert trace.stages == ()
    assert trace.prefill_predicted_s == 0.45  # half of the prompt was held
    assert trace.disagreements == ("The prefill took 3.00 s; the prediction was 0.45 s.",)
    assert prefill_line(trace) == "Prefill of 50 tokens: 3.00 s measured, 0.45 s predicted"
    assert prefill_line(trace_of(result(predicted=None))).endswith("no prediction")


def test_passes_that_check_drafts_are_shown_as_passes() -> None:
    """Ten tokens in four passes of five tokens each: what a hop's token cost, five times over."""
    speculation = {"passes": 4, "drafted": 16, "accepted": 6, "draft_s": 0.0}
    trace = trace_of(result(speculation=speculation))
    assert (trace.fed_per_pass, trace.gained_per_pass) == (5.0, 2.5)
    wire, first, second, client = trace.stages
    assert wire.measured_ms == pytest.approx(155.0)
    assert (wire.predicted_ms, first.predicted_ms) == (30.0, None)
    assert first.measured_ms == pytest.approx(53.0)
    assert second.queue_ms == pytest.approx(5.0)
    assert client.measured_ms == pytest.approx(22.0 / 5)
    shown = io.StringIO()
    Console(width=80, file=shown).print(waterfall(trace))
    assert "Milliseconds of a pass: 5.0 tokens in, 2.5 new" in shown.getvalue()
    total = next(line for line in shown.getvalue().splitlines() if line.startswith("total"))
    assert len(total.split()) == 2  # no prediction for the hops: a sum of the others would look too small


def test_each_source_of_guesses_has_a_line() -> None:
    kinds = [
        {"kind": "text", "judged": [10, 4, 0, 0, 0, 0, 0, 5], "right": [5, 4, 0, 0, 0, 0, 0, 4]},
        {"kind": "next second", "judged": [0, 3], "right": [0, 1]},
        {"kind": "another", "judged": [2], "right": [2]},
        {"kind": "model", "judged": [0], "right": [0]},
    ]
    trace = trace_of(result(speculation={"passes": 4, "drafted": 30, "accepted": 16, "kinds": kinds}))
    assert trace.guesses == (
        "Guesses of the text: 13 of 19 right; by tokens ahead: 1: 50%, 2: 100%, 8 or more: 80%",
        "Second guesses of the model's own block: 1 of 3 right; by tokens ahead: 2: 33%",
        "Guesses of another: 2 of 2 right; by tokens ahead: 1: 100%",
        "Guesses behind a wrong one, or behind the end: 6",
    )
    assert trace.as_dict()["guesses"] == list(trace.guesses)


def test_the_waterfall_for_people() -> None:
    shown = io.StringIO()
    Console(width=80, file=shown).print(waterfall(trace_of(result())))
    lines = [line.rstrip() for line in shown.getvalue().splitlines()]
    wire, first, second, local, total = (
        next(line for line in lines if line.lstrip().startswith(start))
        for start in ("wire", "…aaaaaa", "…bbbbbb", "client", "total")
    )
    assert "30.00" in wire
    assert "31.00" in wire
    assert first.split()[3:8] == ["9.00", "10.60", "0.50", "10.00", "0.10"]
    assert wire.index("█") < first.index("█") < second.index("█") < local.index("█")
    assert first.index("█") == wire.rindex("█") + 1  # one begins where the other ends
    assert total.split() == ["total", "59.00", "64.70"]
