"""A real swarm of processes on 127.0.0.1: what the demo, the benchmark and the whole-swarm tests start.

Every process runs ``swarm-node ... --json`` on a port that the system chooses, writes its identity into a
temporary folder, and is ended by its own pid when the swarm is left.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from .processes.child import Launch, launch_python
from .processes.event_process import EventProcess, stop_all


class NodeProcess(EventProcess):
    """One ``swarm-node`` process and the JSON events that it prints.

    ``overrides``: fields of NodeConfig beyond the command line's options; the process is then
    ``local_node``, which runs the same node and does what it is told: see there.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: dict[str, str] | None = None,
        overrides: dict[str, Any] | None = None,
        launch: Launch = launch_python,
    ) -> None:
        self.arguments = list(arguments)
        program = ["-m", "swarm_node.node.cli"]
        if overrides is not None:
            program = ["-m", "scripts.lab.local_node", json.dumps(overrides)]
        super().__init__(
            f"swarm-node {' '.join(arguments)}",
            [*program, *arguments],
            environment=environment,
            asked=overrides is not None,
            launch=launch,
        )

    def statistics(self) -> dict[str, Any]:
        """How the node is now: see ``local_node.statistics_of``. Needs ``overrides``, if only ``{}``."""
        self.tell("statistics")
        answer = self.wait_for("statistics", timeout=30)
        self.events.remove(answer)  # asked often: kept by whoever asked
        return answer


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
        launch: Launch = launch_python,
        bootstrap_host: str = "127.0.0.1",
    ) -> None:
        """``serve_options`` and ``overrides`` are every serving node's, ``environment`` and ``launch`` every
        process's; see NodeProcess."""
        self.model = str(model)
        self.spans = list(spans)
        self.serve_options = list(serve_options)
        self.environment = environment or {}
        self.overrides = overrides
        self.on_event = on_event
        self.bootstrap: NodeProcess | None = None
        self.nodes: list[NodeProcess] = []
        self.gateways: list[NodeProcess] = []
        self.initial_peers: list[str] = []
        self._launch = launch
        self._bootstrap_host = bootstrap_host
        self._identities = 0
        self._folder = tempfile.TemporaryDirectory(prefix="swarm-node-local-")

    def start_bootstrap(self, *options: str, host: str = "127.0.0.1") -> NodeProcess:
        identity = str(Path(self._folder.name) / "bootstrap.key")
        node = NodeProcess(
            ["bootstrap", "--json", "--host", host, "--port", "0", "--identity", identity, *options],
            environment=self.environment,
            launch=self._launch,
        )
        self.bootstrap = node
        self.initial_peers = list(node.wait_for("listening")["maddrs"])
        self.on_event(f"bootstrap node listens at {self.initial_peers[0]}")
        return node

    def start_node(
        self, blocks: str, *options: str, host: str = "127.0.0.1", wait: bool = True
    ) -> NodeProcess:
        """One more serving process; ``wait`` until its blocks are announced."""
        words = ["serve", "--json", "--model", self.model, "--blocks", blocks]
        words += ["--host", host, "--port", "0"]
        node = self._start(
            [*words, *self._peers(), *self.serve_options, *options, "--identity", self._new_identity()]
        )
        self.nodes.append(node)
        if wait:
            self.wait_online(node)
        return node

    def start_gateway(self, *options: str) -> dict[str, Any]:
        """A gateway for the swarm's model; its event ``listening``."""
        words = ["gateway", "--json", "--model", self.model, "--drain-seconds", "2", *self._peers(), *options]
        gateway = self._start(words)
        self.gateways.append(gateway)
        return gateway.wait_for("listening")

    def restart_node(self, node: NodeProcess, *, same_identity: bool = True) -> NodeProcess:
        """In the place of a node that has ended, or is to leave now: another process with its options. Does
        not wait until it is online."""
        node.stop()
        words = node.arguments if same_identity else [*node.arguments[:-1], self._new_identity()]
        self.nodes[self.nodes.index(node)] = started = self._start(words)
        return started

    def _start(self, words: Sequence[str]) -> NodeProcess:
        return NodeProcess(words, environment=self.environment, overrides=self.overrides, launch=self._launch)

    def _peers(self) -> list[str]:
        return [word for peer in self.initial_peers for word in ("--initial-peers", peer)]

    def _new_identity(self) -> str:
        self._identities += 1
        return str(Path(self._folder.name) / f"node-{self._identities}.key")

    def wait_online(self, node: NodeProcess) -> dict[str, Any]:
        event = node.wait_for("online")
        self.on_event(f"node {event['peer_id'][-6:]} serves blocks {event['blocks']}")
        return event

    def __enter__(self) -> Self:
        try:
            self.start_bootstrap(host=self._bootstrap_host)
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
        stop_all([*self.gateways, *self.nodes, *([self.bootstrap] if self.bootstrap else [])])
        self._folder.cleanup()
