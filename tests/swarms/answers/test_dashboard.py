"""The live page of a real swarm: beside a node, by itself, and by the demo in one command."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from scripts.lab.local_swarm import LocalSwarm
from scripts.lab.processes.event_process import EventProcess
from scripts.lab.processes.fork_server import ForkServer
from tests import ROOT
from tests.swarms.harness import ONE_THREAD, Cli

pytestmark = [pytest.mark.swarm, pytest.mark.model]


@pytest.fixture(scope="module")
def swarm(smollm2_path: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    options = [*ONE_THREAD, "--dashboard", "0"]
    with LocalSwarm(smollm2_path, ["0-29"], serve_options=options, launch=fork_server.launch) as swarm:
        yield swarm


def state_at(url: str) -> dict[str, Any]:
    """Of a page's server, once it has read the directory."""
    with httpx2.Client(verify=False, timeout=30) as http:
        while True:
            state = http.get(f"{url}/state").raise_for_status().json()
            if state["nodes"]:
                return state


def test_a_node_shows_what_it_has_done(swarm: LocalSwarm, cli: Cli) -> None:
    (node,) = swarm.nodes
    url = next(event["url"] for event in node.events if event["event"] == "dashboard")
    before = state_at(url)
    (peer_id,) = before["nodes"]
    assert before["own"]["work"]["peer_id"] == peer_id
    assert before["nodes"][peer_id]["device"] == "cpu"
    options = ("--model", swarm.model, "--initial-peers", swarm.initial_peers[0], "--max-new-tokens", "4")
    assert cli("generate", *options, "Hello").returncode == 0
    work = state_at(url)["own"]["work"]
    assert work["tokens"] > before["own"]["work"]["tokens"]
    assert work["peers"] == 1
    assert work["bytes_in"] > 0 < work["bytes_out"]


def test_the_command_shows_the_swarm_and_ends_by_a_signal(swarm: LocalSwarm, fork_server: ForkServer) -> None:
    words = ["dashboard", "--json", "--port", "0", "--initial-peers", swarm.initial_peers[0]]
    process = EventProcess("dashboard", ["-m", "swarm_node.node.cli", *words], launch=fork_server.launch)
    try:
        state = state_at(process.wait_for("dashboard")["url"])
        (model,) = state["models"].values()
        assert model["coverage"] == [[0, 29, 1]]
        (command,) = model["commands"].values()
        assert command.endswith(f"--blocks 0-29 --initial-peers {swarm.initial_peers[0]}")
        assert "counters" not in state["own"]
    finally:
        assert process.stop() == 0


def test_the_demo_stays_with_a_page_to_open(smollm2_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "scripts.lab.demo", "--keep", "--nodes", "1"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert demo.stderr is not None
        url = ""
        for line in demo.stderr:
            if found := re.search(r"http://\S+/swarm", line):
                url = found[0]
            if "Ctrl-C" in line:
                break
        assert len(state_at(url)["nodes"]) == 1
        assert state_at(url)["swarm"]["has_chat"]
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0
    finally:
        demo.kill()
        demo.wait()
