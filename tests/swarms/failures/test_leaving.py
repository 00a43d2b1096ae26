"""Nodes that leave, politely or not."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from scripts.lab.local_swarm import LocalSwarm
from scripts.lab.processes.fork_server import ForkServer
from swarm_node.client import SwarmModel
from swarm_node.shards.kernels.library import library
from tests.swarms.harness import EXACT, ONE_THREAD, Cli

pytestmark = [pytest.mark.swarm, pytest.mark.model]

PROMPT = "Count from 1 to 20."


def _status(cli: Cli, swarm: LocalSwarm) -> dict:
    (model,) = json.loads(cli("status", "--json", "--initial-peers", swarm.initial_peers[0]).stdout)["models"]
    return model


@pytest.mark.parametrize("weights", ["float32", "int4"])
def test_a_node_that_is_killed_mid_answer_costs_no_token(
    smollm2_path: Path, fork_server: ForkServer, weights: str
) -> None:
    """In four bits and over the int8 wire too: native kernels give a token the same bits in a replayed prompt
    as in the step that computed it first."""
    serving: list[str] = []
    asking: dict[str, str] = {}
    if weights == "float32":
        serving = [*EXACT]
        asking = {"wire_codec": "none", "dtype": "float32"}
    else:
        library()
    with (
        LocalSwarm(
            smollm2_path,
            ["0-14", "15-29", "15-29"],
            serve_options=[*ONE_THREAD, *serving],
            launch=fork_server.launch,
        ) as swarm,
        SwarmModel.connect(
            model=swarm.model, initial_peers=swarm.initial_peers, prefix_cache=False, **asking
        ) as model,
    ):
        undisturbed = model.generate_detailed(PROMPT, max_new_tokens=80, ignore_eos=True)
        stream = model.stream(PROMPT, max_new_tokens=80, ignore_eos=True)
        text = next(stream)
        assert stream.route is not None
        used = {hop.peer_id for hop in stream.route.hops}  # perhaps not those of the answer before
        for node in swarm.nodes[1:]:
            if node.events[-1]["peer_id"] in used:
                node.kill()
        text += "".join(stream)
        assert text == undisturbed.text
        assert stream.result.token_ids == undisturbed.token_ids
        (repair,) = stream.result.repaired
        assert repair.kind == "replay"
        assert set(repair.lost) < used
        assert repair.replayed_bytes_nodes > 0, "the first hop had a journal of what it sent"
        assert repair.replayed_bytes_client == 0, "and this end of the line, perhaps a slow one, none to send"


def test_a_clean_exit_disappears_at_once_and_names_the_hole(
    smollm2_path: Path, fork_server: ForkServer, cli: Cli
) -> None:
    with LocalSwarm(
        smollm2_path, ["0-14", "15-29"], serve_options=ONE_THREAD, launch=fork_server.launch
    ) as swarm:
        assert _status(cli, swarm)["missing"] == []
        leaving = swarm.nodes[1]
        assert leaving.stop() == 0
        assert [event["event"] for event in _drained(leaving)][-2:] == ["draining", "stopped"]
        assert _status(cli, swarm)["missing"] == ["15-29"]
        done = cli("generate", "--model", swarm.model, "--initial-peers", swarm.initial_peers[0], "Hi")
        assert done.returncode == 5
        lines = done.stderr.strip().splitlines()
        assert "15-29" in done.stderr
        assert swarm.nodes[0].events[-1]["peer_id"][-6:] in done.stderr, "says who was seen"
        assert "Traceback" not in done.stderr
        assert len([line for line in lines if line.startswith(("error:", "       "))]) <= 2


def test_a_node_stops_when_its_daemon_is_stopped_with_it(smollm2_path: Path, fork_server: ForkServer) -> None:
    """As service managers do, who signal every process of a service at once."""
    with LocalSwarm(smollm2_path, ["0-4"], serve_options=ONE_THREAD, launch=fork_server.launch) as swarm:
        process = psutil.Process(swarm.nodes[0].pid)
        for each in [*process.children(recursive=True), process]:
            each.terminate()
        swarm.nodes[0].wait_for("stopped", timeout=20)
        process.wait(20)


def _drained(node: object) -> list[dict]:
    node.wait_for("stopped", timeout=5)  # type: ignore[attr-defined]
    return node.events  # type: ignore[attr-defined]
