"""How long commands take until they show something and until the shell is back, and what processes weigh that
do nothing. Another checkout's can be measured in turn with this one's."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from ..local_swarm import LocalSwarm, split_evenly
from ..processes.child import launch_python
from ..processes.event_process import EventProcess
from ..prompts import BLOCKS, MODEL
from ..tiny_model import write_tiny_model
from .figures import medians

CLI = ("-m", "swarm_node.node.cli")
ANSWER = ("--raw", "--max-new-tokens", "8", "--ignore-eos", "--quiet", "The capital of France is")
SETTLE_S = 1.0
"""Seconds after a process says that it serves, until its memory is read."""


def starts(nodes: int, repeat: int, against: Sequence[str], serve_options: Sequence[str]) -> dict[str, Any]:
    """``against``: Python interpreters of other checkouts. Figures by command, and then by interpreter."""
    pythons = [sys.executable, *against]
    found: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalSwarm(MODEL, split_evenly(BLOCKS, nodes), serve_options=serve_options) as swarm,
    ):
        peers = ["--initial-peers", swarm.initial_peers[0]]
        model = ["--model", str(MODEL)]
        tiny = str(write_tiny_model(Path(folder)))
        commands = {
            "--help": ["--help"],
            "generate": ["generate", *model, *peers, *ANSWER],
            "status": ["status", *peers],
            "models": ["models", *peers],
            "an error": ["generate", *model, "--temperature", "-1", *peers, "hello"],
        }
        for name, words in commands.items():
            runs: dict[str, list[dict[str, float]]] = {python: [] for python in pythons}
            for round_ in range(repeat + 1):
                for python in pythons:  # in turn: the machine may become slower or faster meanwhile
                    run = timed([python, *CLI, *words])
                    if round_:  # the first fills the caches
                        runs[python].append(run)
            found[name] = {python: medians(each) for python, each in runs.items()}
        serving = {
            "gateway": ["gateway", *model, *peers, "--port", "0"],
            "light node": ["serve", "--pure-python", "--model", tiny, *peers, "--blocks", "all"],
            "node": ["serve", "--model", tiny, *peers, "--blocks", "all"],
            "bootstrap node": ["bootstrap", *peers],
        }
        for name, words in serving.items():
            found[name] = {
                python: resident(python, words, str(Path(folder) / f"{number}.key"))
                for number, python in enumerate(pythons)
            }
    return found


def timed(argv: Sequence[str]) -> dict[str, float]:
    """Run a command: seconds to its first output, from its last to its end, and in all; processor seconds and
    the most memory of the process, without what it leaves to others."""
    began = time.perf_counter()
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout is not None
    first = last = 0.0
    peak = 0
    while os.read(child.stdout.fileno(), 65536):
        last = time.perf_counter()
        first = first or last
        peak = peak_rss(child.pid) or peak
    _, _, used = os.wait4(child.pid, 0)
    ended = time.perf_counter()
    child.returncode = 0  # it was waited for
    child.stdout.close()
    return {
        "first_s": first - began,
        "back_s": ended - last,
        "total_s": ended - began,
        "cpu_s": used.ru_utime + used.ru_stime,
        "rss_mb": peak / 1e6,
    }


def peak_rss(pid: int) -> int:
    """The most bytes of memory that a process had so far; 0 once it has ended. What ``wait4`` says counts its
    parent's."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def resident(python: str, words: Sequence[str], identity: str) -> dict[str, float]:
    """A process that serves: seconds until it does, and then the memory of it and of its children in MB."""
    is_gateway = words[0] == "gateway"
    where = [] if is_gateway else ["--host", "127.0.0.1", "--port", "0", "--identity", identity]
    serves = "listening" if words[0] in ("gateway", "bootstrap") else "online"
    began = time.perf_counter()
    process = EventProcess(
        words[0], [*CLI, *words, *where, "--json"], launch=partial(launch_python, python=python)
    )
    try:
        process.wait_for(serves)
        ready_s = time.perf_counter() - began
        time.sleep(SETTLE_S)
        children = psutil.Process(process.pid).children(recursive=True)
        return {
            "first_s": ready_s,
            "rss_mb": psutil.Process(process.pid).memory_info().rss / 1e6,
            "children_mb": sum(child.memory_info().rss for child in children) / 1e6,
        }
    finally:
        process.stop()


def starts_table(found: dict[str, Any]) -> Table:
    headings = ("first s", "shell back s", "in all s", "CPU s", "RSS MB", "children MB")
    table = Table(title="Starts", title_justify="left")
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, by_python in found.items():
        for number, figures in enumerate(by_python.values()):
            shown = [figures.get(key) for key in ("first_s", "back_s", "total_s", "cpu_s")]
            sizes = [figures.get(key) for key in ("rss_mb", "children_mb")]
            table.add_row(
                name if not number else "  the other checkout",
                *("-" if value is None else f"{value:.2f}" for value in shown),
                *("-" if value is None else f"{value:.0f}" for value in sizes),
            )
    return table
