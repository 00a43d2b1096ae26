"""Whole swarms for the tests of this folder: real processes, real p2pd daemons, 127.0.0.1, free ports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness import EXACT, ONE_THREAD, Cli
from local_swarm import LocalSwarm, split_evenly

DAEMONS_END_S = 20.0
"""A p2pd whose node was killed sees its socket close and ends by itself."""


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Runs ``swarm-node`` to its end, with a state folder of its own."""
    home = tmp_path_factory.mktemp("swarm-node-home")

    def run(*arguments: str, stdin: str = "", timeout: float = 90) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "swarm_node.node.cli", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "SWARM_NODE_HOME": str(home), "COLUMNS": "200"},
        )

    return run


def _daemons() -> set[int]:
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        words = [process.info["name"] or "", *(process.info["cmdline"] or [])]
        if any(word.endswith("p2pd") for word in words[:2]) or "swarm_node.node.cli" in words:
            found.add(process.pid)
    return found


@pytest.fixture(scope="module", autouse=True)
def no_process_stays() -> Iterator[None]:
    """Nodes and daemons of a module end with it, those of killed nodes too."""
    before = _daemons()
    yield
    deadline = time.monotonic() + DAEMONS_END_S
    while (left := _daemons() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"processes {left} outlive their swarm"


@pytest.fixture(scope="module")
def exact_swarm(smollm2_path: Path) -> Iterator[LocalSwarm]:
    """SmolLM2 in float32 over three processes."""
    with LocalSwarm(smollm2_path, split_evenly(30, 3), serve_options=[*ONE_THREAD, *EXACT]) as swarm:
        yield swarm


@pytest.fixture(scope="module")
def default_swarm(smollm2_path: Path) -> Iterator[LocalSwarm]:
    """SmolLM2 as a person would serve it, over three processes."""
    with LocalSwarm(smollm2_path, split_evenly(30, 3), serve_options=ONE_THREAD) as swarm:
        yield swarm
