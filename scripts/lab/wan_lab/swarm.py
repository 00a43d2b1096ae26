"""A swarm with every process in a machine of its own: ``bootstrap``, ``hop0`` and on, ``client``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from ..local_swarm import NodeProcess
from ..processes.child import Launch, launch_python
from ..processes.event_process import stop_all
from .network import WanLab

CLIENT = "client"


class WanSwarm:
    """A bootstrap node and nodes that serve spans of one model. Use as a context manager, inside the
    laboratory's. ``nodes``: by the name of their machine. The machine ``client`` is left to the caller."""

    def __init__(
        self,
        lab: WanLab,
        model: str | Path,
        spans: Sequence[str],
        *,
        serve_options: Sequence[str] = (),
        overrides: dict[str, Any] | None = None,
        on_event: Callable[[str], None] = lambda text: None,
        launch: Launch = launch_python,
    ) -> None:
        """``serve_options`` and ``overrides`` are every serving node's, ``launch`` every process's; see
        NodeProcess."""
        self.lab = lab
        self.model = str(model)
        self.spans = list(spans)
        self.serve_options = list(serve_options)
        self.overrides = overrides
        self.on_event = on_event
        self._launch = launch
        self.nodes: dict[str, NodeProcess] = {}
        self.peer_ids: dict[str, str] = {}
        self.initial_peers: list[str] = []
        self._bootstrap: NodeProcess | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="swarm-node-wan-")

    def start_node(self, blocks: str, *options: str, wait: bool = True) -> str:
        """One more serving process in the next machine; its name. ``wait`` until it is online."""
        name = f"hop{len(self.nodes)}"
        address = self.lab.add(name)
        peers = [item for peer in self.initial_peers for item in ("--initial-peers", peer)]
        arguments = [
            *("serve", "--json", "--model", self.model, "--blocks", blocks, *self._listen(name, address)),
            *(*peers, *self.serve_options, *options),
        ]
        with self.lab.inside(name):
            self.nodes[name] = NodeProcess(arguments, overrides=self.overrides, launch=self._launch)
        if wait:
            self.wait_online(name)
        return name

    def wait_online(self, name: str) -> None:
        event = self.nodes[name].wait_for("online")
        self.peer_ids[name] = event["peer_id"]
        self.on_event(f"{name} ({self.lab.address(name)}) serves blocks {event['blocks']}")

    def _listen(self, name: str, address: str) -> list[str]:
        identity = str(Path(self._folder.name) / f"{name}.key")
        return ["--host", address, "--port", "0", "--identity", identity]

    def __enter__(self) -> Self:
        try:
            address = self.lab.add("bootstrap")
            with self.lab.inside("bootstrap"):
                words = ["bootstrap", "--json", *self._listen("bootstrap", address)]
                self._bootstrap = NodeProcess(words, launch=self._launch)
            self.initial_peers = list(self._bootstrap.wait_for("listening")["maddrs"])
            for name in [self.start_node(blocks, wait=False) for blocks in self.spans]:
                self.wait_online(name)
            self.lab.add(CLIENT)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        stop_all([*self.nodes.values(), *([self._bootstrap] if self._bootstrap else [])])
        self._folder.cleanup()
