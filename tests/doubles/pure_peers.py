"""What tests of the transport without a daemon share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from swarm_node.swarm.identity import Identity
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.pure_python.transport import PyLibp2pTransport

ECHO = "/echo/1"
STRANGER = Identity(b"s" * 32).peer_id
StartPure = Callable[..., Awaitable[PyLibp2pTransport]]


async def echo(stream: Stream) -> None:
    while data := await stream.read():
        stream.write([data])
        await stream.drain()


async def linked(start_pure: StartPure) -> tuple[PyLibp2pTransport, PyLibp2pTransport, Stream]:
    """A server that echoes, a client, and a stream between them."""
    server, client = await start_pure(), await start_pure(client_mode=True)
    await server.serve(ECHO, echo)
    return server, client, await client.open_stream(server.peer_id, ECHO, await server.maddrs())
