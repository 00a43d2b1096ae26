"""A dashboard beside a serving node, with what that node has done."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from ....client.dashboard.dashboard import Dashboard
from ....client.dashboard.server import DashboardServer
from ....client.dashboard.source import NoFigures, OwnWork
from ....client.http.listening import listen
from ...node import Node, Service
from ..shared.arguments import entry_of
from ..shared.pasting import completed


class NodeSource(NoFigures):
    """The figures of a node, which makes no answers."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def own(self) -> OwnWork:
        figures = self._node.figures()
        work, load = figures.work, figures.load
        traffic = work.traffic.values()
        return OwnWork(
            peer_id=self._node.peer_id,
            uptime_s=figures.uptime_s,
            prompt_tokens=work.prefill_tokens,
            tokens=work.tokens,
            peers=work.peers_served,
            sessions=0 if load is None else load.server.sessions,
            bytes_in=sum(each.received for each in traffic),
            bytes_out=sum(each.sent for each in traffic),
            repairs=work.replays + work.attaches,
        )


def dashboard_service(arguments: argparse.Namespace) -> Service:
    """Listens at once, and serves while the node is in its network. Raises ListenError."""
    listener = listen("127.0.0.1", arguments.dashboard)

    @asynccontextmanager
    async def serve(node: Node) -> AsyncIterator[None]:
        complete = partial(completed, arguments=arguments)
        name = entry_of(arguments).name
        dashboard = Dashboard(node.directory, NodeSource(node), complete=complete, name=name)
        async with dashboard, DashboardServer(dashboard, listener) as server:
            node.emit("dashboard", url=f"{server.url}/swarm")
            yield

    return serve
