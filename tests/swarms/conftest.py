"""Whole swarms for the tests of this folder: real processes, real p2pd daemons, 127.0.0.1, free ports."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scripts.lab.local_swarm import LocalSwarm, split_evenly
from scripts.lab.processes.fork_server import EVERYTHING, ForkServer
from scripts.lab.tiny_model import write_tiny_model
from tests.swarms.harness import EXACT, MARK, ONE_THREAD, Cli

CLI_MODULE = "swarm_node.node.cli"
DAEMONS_END_S = 20.0
"""A p2pd whose node was killed sees its socket close and ends by itself."""


@pytest.fixture(scope="session")
def fork_server_mark() -> str:
    """The mark of all that the fork server starts, for whichever module."""
    return f"{os.getpid()}-fork-server"


@pytest.fixture(scope="session")
def fork_server(fork_server_mark: str) -> Iterator[ForkServer]:
    """Starts processes without importing torch anew for each."""
    environment = {"OMP_NUM_THREADS": "1", MARK: fork_server_mark}
    with ForkServer(environment, [*EVERYTHING, "swarm_node.shards.torch.span"]) as fork_server:
        yield fork_server


@pytest.fixture
def cli_environment(tmp_path: Path) -> dict[str, str]:
    """A state folder of its own, and lines that are not broken."""
    return {"SWARM_NODE_HOME": str(tmp_path / "home"), "COLUMNS": "200"}


@pytest.fixture
def cli(fork_server: ForkServer, cli_environment: dict[str, str]) -> Cli:
    """Runs ``swarm-node`` to its end."""

    def run(*arguments: str, stdin: str = "", timeout: float = 90) -> subprocess.CompletedProcess[str]:
        return fork_server.run(
            ["-m", CLI_MODULE, *arguments], environment=cli_environment, stdin=stdin, timeout=timeout
        )

    return run


@pytest.fixture
def cold_cli(cli_environment: dict[str, str]) -> Cli:
    """The same in a new interpreter, as a person's shell does it."""

    def run(*arguments: str, stdin: str = "", timeout: float = 90) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", CLI_MODULE, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **cli_environment},
        )

    return run


def _descendants(mark: str, fork_server_mark: str) -> dict[int, str]:
    """Processes that inherited a mark, whoever their parent is by now, except for the fork server itself."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):  # of another user, or gone meanwhile
            theirs = process.environ().get(MARK)
            is_fork_server = theirs == fork_server_mark and process.ppid() == os.getpid()
            if process.pid != os.getpid() and theirs in (mark, fork_server_mark) and not is_fork_server:
                found[process.pid] = " ".join(process.info["cmdline"] or [])[:100]
    return found


@pytest.fixture(scope="module", autouse=True)
def no_process_stays(fork_server_mark: str) -> Iterator[None]:
    """What a module starts ends with it: nodes, clients, and the daemons of those that were killed."""
    mark = f"{os.getpid()}-{time.monotonic()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        yield
    deadline = time.monotonic() + DAEMONS_END_S
    while (left := _descendants(mark, fork_server_mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"processes outlive their swarm: {left}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights: seconds of an answer cost little."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def exact_swarm(smollm2_path: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    """SmolLM2 in float32 over three processes."""
    options = [*ONE_THREAD, *EXACT]
    with LocalSwarm(
        smollm2_path, split_evenly(30, 3), serve_options=options, launch=fork_server.launch
    ) as swarm:
        yield swarm
