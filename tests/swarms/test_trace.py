"""What ``generate --trace`` tells of a real route, and link times in real announcements."""

from __future__ import annotations

import json
import time

import pytest

from scripts.lab.local_swarm import LocalSwarm
from tests.swarms.harness import Cli

pytestmark = [pytest.mark.swarm, pytest.mark.model]

QUESTION = "What is the capital of France?"


def test_prediction_and_measurement_side_by_side(default_swarm: LocalSwarm, cli: Cli) -> None:
    options = ["--model", default_swarm.model, "--initial-peers", default_swarm.initial_peers[0], "--trace"]
    options += ["--speculate", "off"]
    done = cli("generate", *options, "--ignore-eos", "--max-new-tokens", "20", "--json", QUESTION)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    predicted, trace = result["predicted"], result["trace"]
    hops = [hop["peer_id"] for hop in result["route"]]
    assert [hop["peer_id"] for hop in predicted["hops"]] == hops
    assert [edge["from"] for edge in predicted["edges"]] == ["", *hops]
    assert [edge["to"] for edge in predicted["edges"]] == [*hops, ""]
    assert [stage["peer_id"] for stage in trace["stages"] if stage["peer_id"]] == hops
    assert sum(stage["name"].startswith("wire") for stage in trace["stages"]) == len(result["chains"]) == 1
    # what the stages add up to is what the client saw
    total_ms = sum(stage["measured_ms"] for stage in trace["stages"])
    seen_ms = result["timings"]["decode_s"] * 1000 / (result["timings"]["new_tokens"] - 1)
    assert total_ms == pytest.approx(seen_ms, rel=0.35, abs=3)
    assert trace["prefill_predicted_s"] > 0

    done = cli("generate", *options, "--max-new-tokens", "5", QUESTION)
    for words in ("A decoded token, ms", "predicted", "wire", "client (head)", "█", "Prefill of"):
        assert words in done.stderr


def test_nodes_announce_how_far_the_others_are(default_swarm: LocalSwarm, cli: Cli) -> None:
    deadline = time.monotonic() + 60
    while True:
        done = cli("status", "--json", "--initial-peers", default_swarm.initial_peers[0])
        (model,) = json.loads(done.stdout)["models"]
        nodes = {node["peer_id"]: node for node in model["nodes"]}
        links = [(peer_id, link) for peer_id, node in nodes.items() for link in node["links"]]
        if links or time.monotonic() > deadline:
            break
    assert links
    for peer_id, link in links:
        assert link["peer_id"] in set(nodes) - {peer_id}
        assert 0 < link["rtt_ms"] < 1000
