"""What tests of the transports share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from swarm_node.swarm.errors import ErrorCode, RemoteProtocolError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.error_frames import error_message
from swarm_node.swarm.protocol.messages import ErrorMessage
from swarm_node.swarm.transport.direct.transport import DirectTransport
from swarm_node.swarm.transport.interface import Stream, Transport

ECHO, STRICT = "/echo/1", "/strict/1"
STRANGER = Identity(b"s" * 32).peer_id
StartDirect = Callable[..., Awaitable[DirectTransport]]


async def echo(stream: Stream) -> None:
    while data := await stream.read():
        stream.write([data])
        await stream.drain()


async def strict(stream: Stream) -> None:
    """Says goodbye to a peer that sends something other than a message."""
    connection = Connection(stream)
    try:
        await connection.receive()
    except RemoteProtocolError as error:
        await connection.close_with(error_message(error))


async def gets_parting_errors(client: Transport, server: Transport) -> None:
    """What ``strict`` says arrives, even while the client floods the stream."""
    for _ in range(5):
        stream = await client.open_stream(server.peer_id, STRICT, await server.maddrs())
        stream.write([b"garbage" * 50_000])
        told = await Connection(stream).receive()
        assert isinstance(told, ErrorMessage)
        assert told.code is ErrorCode.BAD_FRAME
        stream.close()


async def linked(start_direct: StartDirect) -> tuple[DirectTransport, DirectTransport, Stream]:
    """A server that echoes, a client, and a stream between them."""
    server, client = await start_direct(), await start_direct(client_mode=True)
    await server.serve(ECHO, echo)
    return server, client, await client.open_stream(server.peer_id, ECHO, await server.maddrs())
