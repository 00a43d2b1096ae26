"""Fixtures of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.direct.transport import DirectTransport
from tests.doubles.direct_peers import StartDirect


@pytest.fixture
async def start_direct() -> AsyncIterator[StartDirect]:
    """Starts pure-Python transports, as ``DirectTransport.create`` does, and closes them."""
    started: list[DirectTransport] = []

    async def begin(identity: Identity | None = None, **options: object) -> DirectTransport:
        transport = await DirectTransport.create(identity, **options)  # type: ignore[arg-type]
        started.append(transport)
        return transport

    yield begin
    for transport in started:
        await transport.close()
