"""Each kind of process does its work with what it needs for that: what it imported, and the memory it took.

A client, a gateway and a light node need no p2pd; a node with the native kernels needs no torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.local_swarm import LocalSwarm
from scripts.lab.processes.child import Child, child_environment, launch_python
from scripts.lab.processes.event_process import EventProcess
from swarm_node.shards.kernels import library
from swarm_node.swarm.runtime.c_build import NativeUnavailableError
from tests.swarms.harness import ONE_THREAD

pytestmark = [pytest.mark.swarm, pytest.mark.slow]

WATCHED_CLI = str(Path(__file__).with_name("watched_cli.py"))
KEYED = ("--swarm", "lab", "--no-mdns")

NEEDS = {
    "client": {"numpy"},
    "gateway": {"numpy", "pydantic"},
    "light node": {"numpy"},
    "node": {"hivemind", "numpy"},
    "bootstrap node": {"hivemind"},
}
"""What may be imported of the libraries that ``watched_cli`` looks for."""

MOST_MB = {"client": 120, "gateway": 130, "light node": 120, "node": 130, "bootstrap node": 90}
"""Resident at once, with the tiny model: half as much again as was measured. torch alone takes 200."""

Told = Mapping[str, Mapping[str, Any]]


def launch_watched(arguments: Sequence[str], environment: dict[str, str], asked: bool) -> Child:
    """In place of ``python -m swarm_node.node.cli``, and in a new interpreter: a fork has its parent's
    modules."""
    return launch_python([WATCHED_CLI, *arguments[2:]], environment, asked)


@pytest.fixture(scope="module")
def told(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What each process told at its end, after it had served an answer or shown one."""
    try:
        library.library()
    except NativeUnavailableError:
        pytest.skip("no C compiler here: nodes compute with torch")
    home = {"SWARM_NODE_HOME": str(tmp_path_factory.mktemp("home"))}
    serve = [*ONE_THREAD, *KEYED, "--kernels", "native"]
    swarm = LocalSwarm(tiny, [], serve_options=serve, environment=home, launch=launch_watched)
    ends: dict[str, str] = {}
    try:
        bootstrap = swarm.start_bootstrap(*KEYED)
        node = swarm.start_node("0-1", wait=False)
        light = swarm.start_node("2-3", "--pure-python", wait=False)
        for serving in (node, light):
            assert swarm.wait_online(serving)["kernels"].startswith("native")
        asked = ["--model", swarm.model, "--initial-peers", swarm.initial_peers[0], *KEYED, "--json"]
        done = subprocess.run(
            [sys.executable, WATCHED_CLI, "generate", *asked, "--max-new-tokens", "16", "--raw", "hello"],
            capture_output=True,
            text=True,
            timeout=90,
            env=child_environment(home),
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["text"]
        ends["client"] = done.stderr
        gateway = EventProcess(
            "gateway",
            [WATCHED_CLI, "gateway", *asked, "--port", "0", "--drain-seconds", "1"],
            environment=home,
        )
        try:
            assert complete(**gateway.wait_for("listening"))
        finally:
            assert gateway.stop() == 0
        ends["gateway"] = gateway.stderr
    finally:
        swarm.close()
    ends |= {"light node": light.stderr, "node": node.stderr, "bootstrap node": bootstrap.stderr}
    return {kind: json.loads(text.splitlines()[-1]) for kind, text in ends.items()}


def complete(url: str, models: Sequence[str], **_: object) -> str:
    """A short answer of the gateway that says this of itself."""
    body = {"model": models[0], "prompt": "hello", "max_tokens": 8}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return str(answer["choices"][0]["text"])


@pytest.mark.parametrize("kind", NEEDS)
def test_nothing_is_imported_that_it_does_not_need(told: Told, kind: str) -> None:
    assert set(told[kind]["loaded"]) <= NEEDS[kind]


@pytest.mark.parametrize("kind", NEEDS)
def test_its_memory_is_small(told: Told, kind: str) -> None:
    assert told[kind]["peak_mb"] <= MOST_MB[kind]


@pytest.mark.parametrize("kind", NEEDS)
def test_only_nodes_of_the_dht_have_a_daemon(told: Told, kind: str) -> None:
    assert ("p2pd" in told[kind]["started"]) == ("hivemind" in NEEDS[kind])
