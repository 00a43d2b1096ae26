"""A gateway that really listens, over an in-memory swarm of the toy model, and clients for it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Literal

import httpx2
import pytest
from openai import AsyncOpenAI

from swarm_node.client.dashboard.dashboard import Dashboard
from swarm_node.client.gateway.gateway import Gateway, GatewayLimits
from swarm_node.client.gateway.models import Offers
from swarm_node.client.gateway.server import GatewayServer
from swarm_node.client.http.admission import ApiKeys
from swarm_node.client.http.listening import listen
from tests.client.gateway.gateway_case import Serve, Served
from tests.doubles.fake_swarm import FakeSwarm, ScriptedHead


@asynccontextmanager
async def serving() -> AsyncIterator[Serve]:
    """``await serve(a="0-5")``: spans by peer id, everything else by name."""
    async with AsyncExitStack() as stack:

        async def serve(
            *,
            limits: Mapping[str, Any] | None = None,
            keys: Sequence[str] = (),
            metrics_keys: Sequence[str] = (),
            cors_origins: Sequence[str] = (),
            head: Any = None,
            tokenizer: Any = None,
            latency: float = 0.0,
            speculate: Literal["auto", "off"] = "auto",
            max_connections: int = 4096,
            send_buffer: int | None = None,
            wait: float = 0.0,
            **spans: str,
        ) -> Served:
            swarm = await FakeSwarm(latency, **(spans or {"a": "0-2", "b": "3-5"})).start()
            local = swarm.local(head)
            if tokenizer is not None:
                local = replace(local, tokenizer=tokenizer)
            model = await stack.enter_async_context(swarm.client(local=local, wait=wait))
            offers = Offers([model], swarm.client_network().directory, initial_peers="/ip4/192.0.2.1/tcp/1")
            # A script knows nothing of drafted rows that are dropped.
            if isinstance(head, ScriptedHead):
                speculate = "off"
            # A busy machine would begin streams before their failure.
            given = GatewayLimits(**{"beat_s": 60.0, **(limits or {})})
            figures_for = ApiKeys(metrics_keys) if metrics_keys else None
            gateway = Gateway(offers, given, ApiKeys(keys), metrics_keys=figures_for, speculate=speculate)
            listener = listen("127.0.0.1", 0)
            if send_buffer is not None:  # connections inherit it
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            directory = swarm.client_network().directory
            dashboard = Dashboard(directory, gateway.figures, complete=str, has_chat=True)
            await stack.enter_async_context(dashboard)
            server = GatewayServer(
                gateway, dashboard, listener, cors_origins=cors_origins, max_connections=max_connections
            )
            await stack.enter_async_context(server)
            # Nothing is encrypted here, and reading certificates takes 20 ms.
            http = httpx2.AsyncClient(base_url=server.url, timeout=30, verify=False)
            await stack.enter_async_context(http)
            client = AsyncOpenAI(
                base_url=f"{server.url}/v1",
                api_key=keys[0] if keys else "none",
                max_retries=0,
                http_client=http,
            )
            return Served(swarm, model, gateway, server, client, http)

        yield serve


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with serving() as serve:
        yield serve


@pytest.fixture(autouse=True)
def drafting() -> None:
    """Drafts are sent as users have them."""


@pytest.fixture(autouse=True)
def trials() -> None:
    """Peers are put on trial as users have it."""
