"""``--metrics`` of the commands that run a node."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from ...config import NodeEvent, OnEvent
from ..shared.output import console, shown

if TYPE_CHECKING:
    from ....client.metrics.exposition import Family
    from ...node import Node
    from ...weights.sharing import WeightService


@asynccontextmanager
async def node_metrics(
    arguments: argparse.Namespace, node: Node, weights: WeightService
) -> AsyncIterator[None]:
    """Serve what the options ask for, of a node. Raises UsageError and ListenError."""

    def load() -> Callable[[], Iterable[Family]]:
        from .families import families

        return partial(families, node, weights)

    def state() -> tuple[str, bool]:
        return node.state.value, node.figures().ready

    async with _served(arguments, load, state) as url:
        if url:
            node.emit("metrics", url=url)
        yield


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
