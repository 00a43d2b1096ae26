"""A client that fills a node's KV cache on order, and gives it back after a while.

Orders have the fields ``peer``, ``maddrs``, ``blocks`` ("0-14") and ``seconds``.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import uvloop

from swarm_node.swarm.errors import SwarmError
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.messages import Busy, Open, Opened, Welcome
from swarm_node.swarm.protocol.wire import DEFAULT_MAX_FRAME, PROTOCOL_ID
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from swarm_node.swarm.types import Span

from ..hostile_bytes import HELLO
from ..processes.parent import next_order, tell

TOKENS = 256
"""Of one session. When no more of these fit, smaller ones are tried."""
SMALLEST = 32


async def fill(transport: P2pdTransport, order: dict[str, Any]) -> None:
    """Open sessions until the node says BUSY; hold them for ``seconds``."""
    stream = await transport.open_stream(order["peer"], PROTOCOL_ID, order["maddrs"])
    connection = Connection(stream, DEFAULT_MAX_FRAME)
    try:
        await connection.send(HELLO)
        if not isinstance(await connection.receive(), Welcome):
            return
        opened, tokens = 0, TOKENS
        while tokens >= SMALLEST:
            await connection.send(
                Open(
                    session=secrets.token_bytes(16),
                    span=Span.parse(order["blocks"]),
                    max_tokens=tokens,
                    codec="none",
                    reply_codec="none",
                )
            )
            answer = await connection.receive()
            opened += isinstance(answer, Opened)
            if isinstance(answer, Busy):
                tokens //= 2
        tell("filled", peer=order["peer"], sessions=opened)
        await asyncio.sleep(order["seconds"])
    finally:
        connection.close()


async def run(initial_peers: list[str]) -> None:
    transport = await P2pdTransport.create(initial_peers=initial_peers, client_mode=True)
    try:
        tell("ready")
        async with asyncio.TaskGroup() as group:
            while (order := await next_order()) is not None and "peer" in order:
                group.create_task(_try(transport, order))
    finally:
        await transport.close()


async def _try(transport: P2pdTransport, order: dict[str, Any]) -> None:
    try:
        await fill(transport, order)
    except (SwarmError, OSError) as error:
        tell("refused", peer=order["peer"], error=str(error)[:200])


def fill_on_order(*, initial_peers: list[str]) -> None:
    uvloop.run(run(initial_peers))
