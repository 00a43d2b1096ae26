"""A real swarm of processes on 127.0.0.1: what the demo, the benchmark and the whole-swarm tests start.

Every process runs ``swarm-node ... --json`` on a port that the system chooses, writes its identity into a
temporary folder, and is ended by its own pid when the swarm is left.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

STOP_SECONDS = 20.0
"""How long a process may take to leave after SIGTERM before it is killed."""


class ProcessFailedError(RuntimeError):
    """A process ended or said nothing in time; the message holds the end of its error output."""


class NodeProcess:
    """One ``swarm-node`` process and the JSON events that it prints.

    ``overrides``: fields of NodeConfig beyond the command line's options; the process is then
    ``local_node.py``, which runs the same node and answers ``statistics``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: dict[str, str] | None = None,
        overrides: dict[str, Any] | None = None,
    ) -> None:
        self.arguments = list(arguments)
        self.events: list[dict[str, Any]] = []
        self._told_to_stop = False
        self._incoming: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._errors: list[str] = []
        program = ["-m", "swarm_node.node.cli"]
        if overrides is not None:
            program = [str(Path(__file__).with_name("local_node.py")), json.dumps(overrides)]
        self.process = subprocess.Popen(
            [sys.executable, *program, *self.arguments],
            stdin=subprocess.DEVNULL if overrides is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            start_new_session=True,  # a Ctrl-C at the terminal is for the parent, which ends its children
        )
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_events(self) -> None:
        stdout = self.process.stdout
        if stdout is not None:
            for line in stdout:
                try:
                    self._incoming.put(json.loads(line))
                except json.JSONDecodeError:
                    self._errors.append(f"not JSON on standard output: {line}")
        self._incoming.put(None)

    def _read_errors(self) -> None:
        stderr = self.process.stderr
        if stderr is not None:
            self._errors.extend(stderr)

    @property
    def stderr(self) -> str:
        return "".join(self._errors)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for(self, event: str, timeout: float = 120.0) -> dict[str, Any]:
        """The first ``event`` not yet waited past. Raises ProcessFailedError if it ends before."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                item = self._incoming.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ProcessFailedError(self._report(f"no {event!r} within {timeout:.0f} s")) from None
            if item is None:
                self._incoming.put(None)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(timeout=5)
                for reader in self._readers[1:]:
                    reader.join(timeout=5)
                raise ProcessFailedError(
                    self._report(f"ended with {self.process.returncode} before {event!r}")
                )
            self.events.append(item)
            if item.get("event") == event:
                return item

    def statistics(self) -> dict[str, Any]:
        """How the node is now: see ``local_node.statistics_of``. Needs ``overrides``, if only ``{}``."""
        if self.process.stdin is None:
            raise ProcessFailedError(self._report("does not answer questions"))
        with contextlib.suppress(BrokenPipeError):  # it ended: said better by the wait
            self.process.stdin.write("statistics\n")
            self.process.stdin.flush()
        answer = self.wait_for("statistics", timeout=30)
        self.events.remove(answer)  # asked often: kept by whoever asked
        return answer

    def _report(self, what: str) -> str:
        return f"swarm-node {' '.join(self.arguments)}: {what}\n{self.stderr[-2000:]}{self.events[-3:]}"

    def kill(self) -> None:
        """SIGKILL, as when a machine dies. Its p2pd follows when it sees the socket close."""
        self.process.kill()
        self.process.wait(timeout=STOP_SECONDS)

    def ask_to_stop(self) -> None:
        """SIGTERM, once: a second one would tell it not to wait for its sessions."""
        if self.process.poll() is None and not self._told_to_stop:
            self._told_to_stop = True
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM, then SIGKILL if it does not leave in time. Returns the exit code."""
        self.ask_to_stop()
        if self.process.poll() is None:
            try:
                self.process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=STOP_SECONDS)
        for reader in self._readers:
            reader.join(timeout=5)
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        return int(self.process.returncode)


def split_evenly(n_blocks: int, parts: int) -> list[str]:
    """Inclusive spans that cover ``n_blocks``: 30 blocks in 3 parts are 0-9, 10-19, 20-29."""
    borders = [round(part * n_blocks / parts) for part in range(parts + 1)]
    return [f"{start}-{end - 1}" for start, end in itertools.pairwise(borders)]


class LocalSwarm:
    """A bootstrap node and nodes that serve spans of one model. Use as a context manager."""

    def __init__(
        self,
        model: str | Path,
        spans: Sequence[str],
        *,
        serve_options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        overrides: dict[str, Any] | None = None,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``serve_options``, ``environment`` and ``overrides`` are every serving node's; see NodeProcess."""
        self.model = str(model)
        self.spans = list(spans)
        self.serve_options = list(serve_options)
        self.environment = environment or {}
        self.overrides = overrides
        self.on_event = on_event
        self.bootstrap: NodeProcess | None = None
        self.nodes: list[NodeProcess] = []
        self.initial_peers: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="swarm-node-local-")

    def start_bootstrap(self, *options: str) -> NodeProcess:
        identity = str(Path(self._folder.name) / "bootstrap.key")
        node = NodeProcess(
            ["bootstrap", "--json", "--host", "127.0.0.1", "--port", "0", "--identity", identity, *options],
            environment=self.environment,
        )
        self.bootstrap = node
        self.initial_peers = list(node.wait_for("listening")["maddrs"])
        self.on_event(f"bootstrap node listens at {self.initial_peers[0]}")
        return node

    def start_node(self, blocks: str, *options: str, wait: bool = True) -> NodeProcess:
        """One more serving process; ``wait`` until its blocks are announced."""
        identity = str(Path(self._folder.name) / f"node-{len(self.nodes)}.key")
        peers = [item for peer in self.initial_peers for item in ("--initial-peers", peer)]
        node = NodeProcess(
            [
                "serve",
                "--json",
                "--model",
                self.model,
                "--blocks",
                blocks,
                "--host",
                "127.0.0.1",
                "--port",
                "0",
            ]
            + ["--identity", identity, *peers, *self.serve_options, *options],
            environment=self.environment,
            overrides=self.overrides,
        )
        self.nodes.append(node)
        if wait:
            self.wait_online(node)
        return node

    def wait_online(self, node: NodeProcess) -> dict[str, Any]:
        event = node.wait_for("online")
        self.on_event(f"node {event['peer_id'][-6:]} serves blocks {event['blocks']}")
        return event

    def __enter__(self) -> Self:
        try:
            self.start_bootstrap()
            started = [self.start_node(blocks, wait=False) for blocks in self.spans]
            for node in started:
                self.wait_online(node)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        processes = [*self.nodes, *([self.bootstrap] if self.bootstrap else [])]
        for node in processes:  # all at once, so that their times to leave overlap
            node.ask_to_stop()
        for node in processes:
            node.stop()
        self._folder.cleanup()
