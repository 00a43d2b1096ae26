"""Clients start no process and import no hivemind, unless they must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.local_swarm import LocalSwarm
from scripts.lab.processes.event_process import EventProcess
from scripts.lab.processes.fork_server import ForkServer
from tests.swarms.harness import ONE_THREAD

pytestmark = pytest.mark.swarm

WATCHED_CLI = str(Path(__file__).with_name("watched_cli.py"))
PROMPT = ("--raw", "--max-new-tokens", "8", "--ignore-eos", "hello")
KEYED = ("--swarm", "lab")


@pytest.fixture(scope="module")
def swarm(tiny: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    options = [*ONE_THREAD, *KEYED]
    swarm = LocalSwarm(tiny, [], serve_options=options, launch=fork_server.launch)
    try:
        swarm.start_bootstrap(*KEYED)
        for blocks in ("0-1", "2-3"):
            swarm.start_node(blocks, wait=False)
        for node in swarm.nodes:
            swarm.wait_online(node)
        yield swarm
    finally:
        swarm.close()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "SWARM_NODE_HOME": str(tmp_path), "COLUMNS": "200"}


def words(swarm: LocalSwarm, command: str, *more: str) -> list[str]:
    model = ["--model", swarm.model] if command in ("generate", "gateway", "plan") else []
    return [command, *model, "--initial-peers", swarm.initial_peers[0], *KEYED, "--json", *more]


@pytest.mark.parametrize("command", ["generate", "status", "models", "plan"])
def test_commands(swarm: LocalSwarm, environment: dict[str, str], command: str) -> None:
    asked = words(swarm, command, *(PROMPT if command == "generate" else ()))
    done = subprocess.run(
        [sys.executable, WATCHED_CLI, *asked], capture_output=True, text=True, timeout=90, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert watched(done.stderr) == []


def test_a_gateway(swarm: LocalSwarm, environment: dict[str, str]) -> None:
    asked = words(swarm, "gateway", "--port", "0", "--drain-seconds", "1")
    gateway = EventProcess("gateway", [WATCHED_CLI, *asked], environment=environment)
    try:
        gateway.wait_for("listening")
    finally:
        assert gateway.stop() == 0
    assert watched(gateway.stderr) == []


def watched(stderr: str) -> list[str]:
    """What a client does without: what it has started at all, and what it has imported of the daemon's."""
    told: dict[str, Any] = json.loads(stderr.splitlines()[-1])
    return [*({"hivemind", "grpc"} & set(told["loaded"])), *told["started"]]
