"""Names that the whole-swarm tests share."""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil

from scripts.lab.local_swarm import LocalSwarm, NodeProcess
from scripts.lab.processes.child import Launch
from scripts.lab.processes.event_process import stop_all
from swarm_node.client import AsyncSwarmModel

MARK = "SWARM_NODE_TEST_RUN"
"""Environment variable by which processes that a test module started are told from all others."""

ONE_THREAD = ("--threads", "1", "--kv-cache-tokens", "16384")
"""Options of a serving process in tests: several share few cores."""

EXACT = ("--quantize", "none", "--dtype", "float32")

LOCAL = ("--json", "--host", "127.0.0.1", "--port", "0", "--no-mdns")
TINY = ("--threads", "1", "--kv-cache-tokens", "2048", "--kernels", "torch", *EXACT)
ASK = ("--quiet", "--max-new-tokens", "8", "--wire-codec", "none", *EXACT, "hello")
"""Options of a command on this machine alone, of one that serves the tiny model, and of one that asks it."""

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs ``swarm-node`` with the given arguments (``stdin=``, ``timeout=``) to its end."""

Start = Callable[..., NodeProcess]
"""``start(home, *words)``: a ``swarm-node`` command that goes on, with its state in the folder ``home``."""


@contextmanager
def machines(launch: Launch) -> Iterator[Start]:
    """What was started ends with the context."""
    started: list[NodeProcess] = []

    def start(home: Path, *words: str, overrides: dict[str, Any] | None = None) -> NodeProcess:
        environment = {"SWARM_NODE_HOME": str(home)}
        started.append(NodeProcess(words, environment=environment, overrides=overrides, launch=launch))
        return started[-1]

    try:
        yield start
    finally:
        stop_all(started)


@asynccontextmanager
async def exact_client(swarm: LocalSwarm, **options: Any) -> AsyncIterator[AsyncSwarmModel]:
    """A client of a swarm in float32, everything of its own in float32 too."""
    async with await AsyncSwarmModel.connect(
        model=swarm.model,
        initial_peers=swarm.initial_peers,
        wire_codec="none",
        quantize="none",
        dtype="float32",
        **options,
    ) as model:
        yield model


def daemon_of(process: psutil.Process | int) -> psutil.Process:
    parent = psutil.Process(process) if isinstance(process, int) else process
    (daemon,) = [child for child in parent.children() if child.name() == "p2pd"]
    return daemon


def freeze(*processes: psutil.Process) -> None:
    for process in processes:
        process.suspend()
    until(lambda: all(each.status() == psutil.STATUS_STOPPED for each in processes))


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
