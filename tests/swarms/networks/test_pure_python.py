"""A swarm of a node with p2pd and a light node without, and clients of both kinds, in a swarm with a name."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.local_swarm import LocalSwarm, NodeProcess
from scripts.lab.processes.event_process import EventProcess
from scripts.lab.processes.fork_server import ForkServer
from tests.swarms.harness import ONE_THREAD, Cli

pytestmark = pytest.mark.swarm

NAMED = ("--swarm", "lab")
WITHOUT_UNIX = Path(__file__).with_name("without_unix.py")
PROMPT = ("--raw", "--max-new-tokens", "24", "--ignore-eos", "hello")


@pytest.fixture(scope="module")
def swarm(tiny: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    swarm = LocalSwarm(tiny, [], serve_options=[*ONE_THREAD, *NAMED], launch=fork_server.launch)
    try:
        swarm.start_bootstrap(*NAMED)
        full = swarm.start_node("0-1", wait=False)
        light = swarm.start_node("2-3", "--pure-python", wait=False)
        for node in (full, light):
            swarm.wait_online(node)
        yield swarm
    finally:
        swarm.close()


@pytest.fixture(scope="module")
def light(swarm: LocalSwarm) -> NodeProcess:
    return swarm.nodes[1]


def words(swarm: LocalSwarm, command: str, *more: str) -> list[str]:
    model = [] if command == "status" else ["--model", swarm.model]
    return [command, *model, "--initial-peers", swarm.initial_peers[0], *NAMED, "--json", *more]


def result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def answer(swarm: LocalSwarm, fork_server: ForkServer) -> dict[str, Any]:
    """What a client with p2pd gets of the node without."""
    program = ["-m", "swarm_node.node.cli", *words(swarm, "generate", *PROMPT)]
    return result(fork_server.run(program, environment={}, stdin="", timeout=60))


def test_a_client_with_p2pd_is_served_by_a_light_node(
    swarm: LocalSwarm, light: NodeProcess, answer: dict[str, Any]
) -> None:
    assert [hop["blocks"] for hop in answer["route"]] == ["0-1", "2-3"]
    assert answer["route"][1]["peer_id"] == light.events[-1]["peer_id"]
    (chain,) = answer["chains"]
    assert len(chain["peer_ids"]) == 2  # p2pd's node passes activations on to the light one


def test_pure_python_clients_get_the_same(swarm: LocalSwarm, answer: dict[str, Any], cli: Cli) -> None:
    found = result(cli(*words(swarm, "generate", "--pure-python", *PROMPT)))
    assert (found["text"], [hop["blocks"] for hop in found["route"]]) == (answer["text"], ["0-1", "2-3"])
    (model,) = result(cli(*words(swarm, "status", "--pure-python")))["models"]
    assert [node["blocks"] for node in model["nodes"]] == ["0-1", "2-3"]
    assert model["missing"] == []


def test_a_gateway_where_nothing_but_python_is(swarm: LocalSwarm, tmp_path: Path) -> None:
    """Without saying so: it is the only way there. No Unix, no p2pd, no process of its own."""
    program = words(swarm, "gateway", "--port", "0", "--drain-seconds", "1")
    environment = {"SWARM_NODE_HOME": str(tmp_path), "SWARM_NODE_NATIVE": "0"}
    gateway = EventProcess("gateway", [str(WITHOUT_UNIX), *program], environment=environment)
    try:
        listening = gateway.wait_for("listening")
        asked = {"model": listening["models"][0], "prompt": "hello", "max_tokens": 5}
        request = urllib.request.Request(
            f"{listening['url']}/v1/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 5
    finally:
        assert gateway.stop() == 0
    assert json.loads(gateway.stderr.splitlines()[-1]) == {"loaded": [], "children": []}


def test_members_of_other_swarms_and_wrong_uses_are_told(swarm: LocalSwarm, cli: Cli) -> None:
    asked = ["status", "--pure-python", "--initial-peers", swarm.initial_peers[0]]
    done = cli(*asked, "--swarm", "other")
    assert done.returncode == 6, done.stderr
    assert "swarm" in done.stderr
    alone = cli("serve", "--model", swarm.model, "--pure-python", "--no-mdns")
    assert alone.returncode == 2
    assert "cannot begin a swarm of its own" in alone.stderr
    relayed = ["--pure-python", "--relay", swarm.initial_peers[0], "--initial-peers", swarm.initial_peers[0]]
    done = cli("serve", "--model", swarm.model, *NAMED, *relayed)
    assert (done.returncode, "relays need p2pd" in done.stderr) == (2, True)


def test_a_light_node_leaves_the_directory(swarm: LocalSwarm, light: NodeProcess, cli: Cli) -> None:
    """Last, since the swarm is incomplete then."""
    light.process.send_signal(signal.SIGTERM)
    light.wait_for("stopped")
    (model,) = result(cli(*words(swarm, "status")))["models"]
    assert [node["blocks"] for node in model["nodes"]] == ["0-1"]
    assert model["missing"] == ["2-3"]
