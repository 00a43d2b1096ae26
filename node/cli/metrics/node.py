"""``--metrics`` of the commands that run a node."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from ....swarm.types import NodeState
from ...config import NodeEvent, OnEvent
from ..shared.output import console, shown

if TYPE_CHECKING:
    from ....client.metrics.exposition import Family
    from ...node import Node
    from ...weights.sharing import WeightService

RESTING = "resting"
"""The state of a command whose limits forbid it to have a node now."""


class ServeMetrics:
    """What the figures of ``swarm-node serve`` are of: the node that it has, or none. ``rests``: whether it
    has none because it rests."""

    def __init__(self, rests: Callable[[], bool]) -> None:
        self._rests = rests
        self._now: tuple[Node, WeightService] | None = None

    @contextmanager
    def of(self, node: Node, weights: WeightService) -> Iterator[None]:
        """They are of this node meanwhile."""
        self._now = node, weights
        try:
            yield
        finally:
            self._now = None

    def state(self) -> tuple[str, bool]:
        """And whether it is ready."""
        if self._now is None:
            return RESTING if self._rests() else NodeState.JOINING.value, False
        node, _ = self._now
        return node.state.value, node.figures().ready

    def load(self) -> Callable[[], Iterable[Family]]:
        from .families import families, without_node

        def current() -> Iterable[Family]:
            return without_node(self.state()[0]) if self._now is None else families(*self._now)

        return current


@asynccontextmanager
async def node_metrics(
    arguments: argparse.Namespace, on_event: OnEvent, rests: Callable[[], bool]
) -> AsyncIterator[ServeMetrics]:
    """Serve what the options ask for, of a command that serves. Raises UsageError and ListenError."""
    metrics = ServeMetrics(rests)
    async with _served(arguments, metrics.load, metrics.state) as url:
        if url:
            on_event(NodeEvent("metrics", details={"url": url}))
        yield metrics


class BootstrapState:
    """What the events of a bootstrap node say of it."""

    def __init__(self) -> None:
        self.name = "joining"

    @property
    def ready(self) -> bool:
        return self.name == "online"

    def on_event(self, event: NodeEvent) -> None:
        match event.event:
            case "online" | "network_restored":
                self.name = "online"
            case "network_lost":
                self.name = "offline"


@asynccontextmanager
async def bootstrap_metrics(arguments: argparse.Namespace, on_event: OnEvent) -> AsyncIterator[OnEvent]:
    """The same, of a bootstrap node; what is to get its events."""
    state = BootstrapState()

    def both(event: NodeEvent) -> None:
        state.on_event(event)
        on_event(event)

    def load() -> Callable[[], Iterable[Family]]:
        from ....client.metrics.exposition import gauge

        return lambda: [gauge("swarm_node_ready", "1 while it is in the network.", state.ready)]

    async with _served(arguments, load, lambda: (state.name, state.ready)) as url:
        if url:
            on_event(NodeEvent("metrics", details={"url": url}))
        yield both


@asynccontextmanager
async def _served(
    arguments: argparse.Namespace,
    load: Callable[[], Callable[[], Iterable[Family]]],
    state: Callable[[], tuple[str, bool]],
) -> AsyncIterator[str]:
    """Where it is served; "" where nobody asked for it."""
    if arguments.metrics is None:
        yield ""
        return
    from ....client.http.extra import require_http

    require_http("--metrics")
    from ....client.http.admission import ApiKeys
    from .server import serve_metrics

    keys = ApiKeys.read(arguments.metrics_key_file) if arguments.metrics_key_file else ApiKeys()
    async with serve_metrics(arguments.metrics_host, arguments.metrics, keys, load, state) as server:
        if not arguments.json:
            console.print(f"Figures for Prometheus: {shown(server.url)}/metrics")
            if not (server.is_local or keys.needed):
                console.print("[yellow]Others read them only with a key[/]: --metrics-key-file.")
        yield server.url
