"""What a person types, against processes as a person would start them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from scripts.lab.local_swarm import LocalSwarm, split_evenly
from swarm_node.client import SwarmModel, generate
from tests.swarms.harness import ONE_THREAD, Cli

pytestmark = [pytest.mark.swarm, pytest.mark.model]

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def _generate(swarm: LocalSwarm, *more: str) -> list[str]:
    return ["generate", "--model", swarm.model, "--initial-peers", swarm.initial_peers[0], *more]


@pytest.fixture(scope="module")
def default_swarm(smollm2_path: Path) -> Iterator[LocalSwarm]:
    """Started as a person starts it: each process imports for itself."""
    with LocalSwarm(smollm2_path, split_evenly(30, 3), serve_options=ONE_THREAD) as swarm:
        yield swarm


def test_generate_prints_the_answer_and_only_the_answer(default_swarm: LocalSwarm, cold_cli: Cli) -> None:
    done = cold_cli(*_generate(default_swarm, QUESTION))
    assert (done.returncode, done.stdout) == (0, ANSWER + "\n"), done.stderr
    for blocks in ("0-9", "10-19", "20-29"):
        assert blocks in done.stderr, "the route goes to standard error"


def test_generate_reads_standard_input(default_swarm: LocalSwarm, cli: Cli) -> None:
    done = cli(*_generate(default_swarm, "--quiet", "-"), stdin=QUESTION)
    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWER + "\n", "")


def test_generate_json_is_one_stable_object(default_swarm: LocalSwarm, cli: Cli) -> None:
    done = cli(*_generate(default_swarm, "--json", QUESTION))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {
        *("text", "prompt_token_ids", "token_ids", "finish_reason", "route", "chains", "predicted"),
        *("timings", "repairs", "repaired", "model", "speculation", "logprobs", "passed_over"),
        *("content", "reasoning_content"),
    }
    assert result["text"] == ANSWER
    assert result["finish_reason"] == "stop"
    assert [hop["blocks"] for hop in result["route"]] == ["0-9", "10-19", "20-29"]
    for hop in result["route"]:
        assert {"peer_id", "ms_per_token", "bytes_sent", "bytes_received"} <= set(hop)
    (chain,) = result["chains"]
    assert chain["peer_ids"] == [hop["peer_id"] for hop in result["route"]], "hops pass activations on"
    assert [hop["peer_id"] for hop in result["predicted"]["hops"]] == chain["peer_ids"]
    assert (result["repairs"], result["repaired"]) == (0, [])


def test_generate_json_of_a_schema_with_logprobs(default_swarm: LocalSwarm, cli: Cli, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    options = ("--json-schema", str(tmp_path / "schema.json"), "--logprobs", "2", "--presence-penalty", "0.1")
    done = cli(*_generate(default_swarm, "--json", *options, QUESTION))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["finish_reason"] == "stop"
    jsonschema.validate(json.loads(result["text"]), schema)
    assert [choice["token"] for choice in result["logprobs"]] == result["token_ids"]
    for choice in result["logprobs"]:
        (_, first), (_, second) = choice["top"]
        assert 0 >= first >= second
        assert choice["logprob"] <= first


def test_generate_raw_and_length(default_swarm: LocalSwarm, cli: Cli) -> None:
    done = cli(*_generate(default_swarm, "--json", "--raw", "--max-new-tokens", "5", "Once upon a time"))
    result = json.loads(done.stdout)
    assert len(result["prompt_token_ids"]) == 4
    assert (len(result["token_ids"]), result["finish_reason"]) == (5, "length")


def test_status_shows_who_serves_what(default_swarm: LocalSwarm, cli: Cli) -> None:
    table = cli("status", "--initial-peers", default_swarm.initial_peers[0])
    assert table.returncode == 0, table.stderr
    for text in ("0-9", "10-19", "20-29", "online", "all 30 blocks are served"):
        assert text in table.stderr + table.stdout
    deadline = time.monotonic() + 30
    while True:  # the answers before were given back a moment ago; announcements are seconds old
        done = cli("status", "--json", "--initial-peers", default_swarm.initial_peers[0])
        (model,) = json.loads(done.stdout)["models"]
        assert model["missing"] == []
        assert all(node["decode_ms_per_block"] > 0 for node in model["nodes"])
        assert all(node["total_kv_tokens"] == 16384 for node in model["nodes"])
        if all(node["free_kv_tokens"] == 16384 for node in model["nodes"]):
            break
        assert time.monotonic() < deadline, model["nodes"]


def test_python_in_three_lines(default_swarm: LocalSwarm) -> None:
    text = generate(QUESTION, model=default_swarm.model, initial_peers=default_swarm.initial_peers)
    assert text == ANSWER


def test_sessions_sampling_and_streaming(default_swarm: LocalSwarm) -> None:
    with SwarmModel.connect(model=default_swarm.model, initial_peers=default_swarm.initial_peers) as model:
        pieces = list(model.stream(QUESTION))
        assert "".join(pieces) == ANSWER
        assert len(pieces) > 3
        sampled = [model.generate("A word:", temperature=1.0, seed=7, max_new_tokens=8) for _ in range(2)]
        assert sampled[0] == sampled[1]
        chat = [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Hello Ada!"},
            {"role": "user", "content": "What is my name?"},
        ]
        asked, single = (model.generate_detailed(turns, max_new_tokens=4) for turns in (chat, chat[2:]))
        assert len(asked.prompt_token_ids) > len(single.prompt_token_ids) > 4, "every turn is in the prompt"
        assert model.generate(QUESTION, stop=[" Paris"]) == "The capital of France is"


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
    for words in ("Milliseconds of a decoded token", "predicted", "wire", "client (head)", "█", "Prefill of"):
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


def test_serving_processes_stay_small(default_swarm: LocalSwarm) -> None:
    """Under 700 MB and weights and cache, each; weights of ten blocks and 16384 tokens take under 300 MB."""
    import psutil

    for node in default_swarm.nodes:
        assert psutil.Process(node.pid).memory_info().rss < 1000e6
