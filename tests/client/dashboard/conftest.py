"""A dashboard over announcements that a test changes, served and looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx2
import pytest
import pytest_asyncio

from swarm_node.client.dashboard import dashboard as module
from swarm_node.client.dashboard.dashboard import Dashboard
from swarm_node.client.dashboard.server import DashboardServer
from swarm_node.client.http.admission import ApiKeys
from swarm_node.client.http.listening import listen
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from tests.client.dashboard.simulated import SimulatedSource
from tests.client.pages.conftest import browser as browser
from tests.client.pages.conftest import chromium as chromium
from tests.client.pages.conftest import drafting as drafting
from tests.client.pages.conftest import serve as serve
from tests.client.pages.conftest import trials as trials


@dataclass
class Shown:
    """A swarm's announcements, the figures of who shows it, and where."""

    store: MemoryStore
    source: SimulatedSource
    dashboard: Dashboard
    server: DashboardServer
    http: httpx2.AsyncClient

    @property
    def url(self) -> str:
        return f"{self.server.url}/swarm"


Show = Callable[..., Awaitable[Shown]]


@pytest_asyncio.fixture(loop_scope="module")
async def show(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Show]:
    """``await show(nodes)``: it looks ten times as often as users have it."""
    monkeypatch.setattr(module, "TICK_S", 0.1)
    monkeypatch.setattr(module, "WATCHED_S", 0.1)
    async with AsyncExitStack() as stack:

        async def show(nodes: object = (), *, keys: tuple[str, ...] = (), host: str = "127.0.0.1") -> Shown:
            store, source = MemoryStore(), SimulatedSource()
            for node in nodes:  # type: ignore[attr-defined]
                store.put(node)
            dashboard = Dashboard(
                MemoryDirectory(store),
                source,
                complete=lambda command: f"{command} --initial-peers ADDR",
                name="home",
            )
            await stack.enter_async_context(dashboard)
            server = DashboardServer(dashboard, listen(host, 0), ApiKeys(keys))
            await stack.enter_async_context(server)
            http = httpx2.AsyncClient(base_url=server.url, timeout=30, verify=False)
            await stack.enter_async_context(http)
            return Shown(store, source, dashboard, server, http)

        yield show
