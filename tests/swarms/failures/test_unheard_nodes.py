"""A node lives as long as it is wanted, whoever reads what it says; and how a process is asked to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.doubles.terminal import Terminal

pytestmark = pytest.mark.swarm

NODE = [
    sys.executable,
    "-m",
    "swarm_node.node.cli",
    "bootstrap",
    "--host",
    "127.0.0.1",
    "--port",
    "0",
    "--no-mdns",
]
UP_S = 60.0

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a node by a shell, with these redirections; it is up when this returns."""
    processes = []

    def start(redirections: str, *, wait: bool = True, **options: object) -> subprocess.Popen[bytes]:
        command = " ".join(NODE) + f" --json {redirections}"
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            env={**os.environ, "SWARM_NODE_HOME": str(tmp_path)},
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, **options},  # type: ignore[call-overload]
        )
        processes.append(process)
        if wait:
            wait_until_up(process.pid)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until_up(pid: int) -> None:
    """Until the node's daemon listens."""
    deadline = time.monotonic() + UP_S
    while time.monotonic() < deadline:
        try:
            children = psutil.Process(pid).children()
            if any(link.status == "LISTEN" for child in children for link in child.net_connections("tcp")):
                return
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    raise AssertionError("the node did not come up")


def ends_by(process: subprocess.Popen[bytes], number: int) -> int:
    assert process.poll() is None
    process.send_signal(number)
    return process.wait(30)


def full_pipe() -> tuple[int, int]:
    """A pipe in which there is no room; its two ends."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writing, True)
    return reading, writing


def test_a_node_needs_none_of_its_standard_streams(start: Start) -> None:
    """Closed by who started it, as by a daemon; on a full disk; into a pipe that nobody reads."""
    reading, writing = full_pipe()
    nodes = [
        start("<&- >&- 2>&-", wait=False),
        start(">/dev/full 2>/dev/full" if os.path.exists("/dev/full") else ">&-", wait=False),
        start("--log-level debug", wait=False, stdout=writing, stderr=writing),
    ]
    for node in nodes:
        wait_until_up(node.pid)
    # Nothing of a node's is where a library would write remarks.
    for link in psutil.Process(nodes[0].pid).net_connections("all"):
        assert link.fd > 2
    assert [ends_by(node, signal.SIGTERM) for node in nodes] == [0, 0, 0]
    os.close(reading)
    os.close(writing)


def test_a_node_goes_on_when_who_read_its_events_leaves_and_ends_by_a_hang_up(start: Start) -> None:
    node = start("", wait=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert node.stdout is not None
    assert node.stderr is not None
    assert json.loads(node.stdout.readline())["event"] == "listening"
    node.stdout.close()
    node.stderr.close()
    node.stdout = node.stderr = None
    assert ends_by(node, signal.SIGHUP) == 0


def test_a_node_that_was_told_to_ignore_the_hang_up_does(start: Start) -> None:
    node = start(
        "", stdout=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    node.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        node.wait(0.5)
    assert ends_by(node, signal.SIGTERM) == 0


def test_a_node_whose_terminal_goes_leaves_cleanly(tmp_path: Path) -> None:
    with Terminal(NODE, {"SWARM_NODE_HOME": str(tmp_path)}) as terminal:
        terminal.wait_for("Ctrl-C stops it", UP_S)
        assert terminal.hang_up() == 0
