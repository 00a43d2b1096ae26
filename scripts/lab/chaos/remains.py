"""What is left when a test is over, and should not be: sessions and pages, processes, listening sockets."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

from ..local_swarm import NodeProcess
from ..soak.verdict import MORE_DAEMON_FDS, MORE_FDS, MUST_BE_ZERO, Sample

MARK = "SWARM_CHAOS_RUN"
"""Environment variable by which the processes of a run are told from all others."""
SETTLE_S = 40.0
"""Time for the nodes to notice that everybody left."""
PROCESSES_END_S = 20.0
"""A p2pd whose node was killed sees its socket close and ends by itself."""


def processes_of(mark: str) -> dict[int, str]:
    """Running processes that inherited the mark, whoever their parent is by now."""
    found = {}
    for process in psutil.process_iter(["cmdline", "status"]):
        with contextlib.suppress(psutil.Error):  # of another user, or gone meanwhile
            if process.info["status"] == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if process.environ().get(MARK) == mark:
                found[process.pid] = " ".join(process.info["cmdline"] or [])[:100]
    return found


@contextlib.contextmanager
def remains(mark: str) -> Iterator[list[str]]:
    """At the end, however it comes, says in the list which processes outlived the block, and ends them."""
    left: list[str] = []
    try:
        yield left
    finally:
        deadline = time.monotonic() + PROCESSES_END_S
        while (running := processes_of(mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid, command in running.items():
            left.append(f"process {pid} is left behind: {command}")
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()


def descriptors(nodes: Sequence[NodeProcess]) -> dict[str, int]:
    """The most that any node has open while it is idle."""
    samples = [Sample.of(0.0, node.statistics()) for node in nodes]
    return {name: max(getattr(sample, name) for sample in samples) for name in ("fds", "p2pd_fds")}


def what_nodes_hold(nodes: Sequence[NodeProcess], before: dict[str, int]) -> list[str]:
    """Wait until nothing is left of the clients, or long enough to say what is."""
    allowed = {"fds": before["fds"] + MORE_FDS, "p2pd_fds": before["p2pd_fds"] + MORE_DAEMON_FDS}
    deadline = time.monotonic() + SETTLE_S
    while True:
        problems = []
        for number, node in enumerate(nodes):
            statistics = node.statistics()
            problems += [f"node {number}: {problem}" for problem in held(statistics, allowed)]
        if not problems or time.monotonic() > deadline:
            return problems
        time.sleep(0.5)


def held(statistics: dict[str, Any], allowed: dict[str, int]) -> list[str]:
    """What one node holds for clients that are gone; pages and journals that are kept for prefixes do not
    count."""
    sample = Sample.of(0.0, statistics)
    problems = [
        f"{getattr(sample, name)} {name} at the end" for name in MUST_BE_ZERO if getattr(sample, name)
    ]
    if journals := statistics["server"].get("journal", {}).get("sessions"):
        problems.append(f"{journals} journals of sessions at the end")
    for name, most in allowed.items():
        if (value := getattr(sample, name)) > most:
            problems.append(f"{value} {name} at the end, at most {most} expected")
    return problems
