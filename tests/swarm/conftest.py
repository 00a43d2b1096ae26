"""Fixtures of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.pure_python.transport import PyLibp2pTransport
from tests.doubles.pure_peers import StartPure


@pytest.fixture
async def start_pure() -> AsyncIterator[StartPure]:
    """Starts pure-Python transports, as ``PyLibp2pTransport.create`` does, and closes them."""
    started: list[PyLibp2pTransport] = []

    async def begin(identity: Identity | None = None, **options: object) -> PyLibp2pTransport:
        transport = await PyLibp2pTransport.create(identity, **options)  # type: ignore[arg-type]
        started.append(transport)
        return transport

    yield begin
    for transport in started:
        await transport.close()
