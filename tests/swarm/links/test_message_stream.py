from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from swarm_node.swarm.errors import ErrorCode, LocalProtocolError, RemoteProtocolError, StreamClosedError
from swarm_node.swarm.links import message_stream as connection_module
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.messages import ErrorMessage, Ping, Pong, Step, Want, encode
from swarm_node.swarm.protocol.wire import PROTOCOL_ID, Frame, encode_frame
from swarm_node.swarm.transport.interface import READ_SIZE, Buffer, Stream
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import NodeState
from tests.swarm.runtime.complaints import Complaints

SESSION = bytes(16)


class ScriptedStream:
    """Gives the pieces it was told to, then the end; keeps what is written, piece by piece."""

    peer_id = "scripted"

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.written: list[bytes] = []
        self.room = asyncio.Event()
        self.room.set()
        self.closed = False

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def write(self, buffers: Iterable[Buffer]) -> None:
        self.written.append(b"".join(buffers))

    async def drain(self) -> None:
        await self.room.wait()

    def close(self) -> None:
        self.closed = True


def frame_bytes(message: Ping | Step) -> bytes:
    return b"".join(encode_frame(encode(message)))


async def pair() -> tuple[Connection, Connection]:
    network = MemoryNetwork()
    accepted: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def handler(stream: Stream) -> None:
        accepted.set_result(stream)
        await over.wait()

    await network.transport("server").serve(PROTOCOL_ID, handler)
    stream = await network.transport("client").open_stream("server", PROTOCOL_ID)
    return Connection(stream), Connection(await accepted)


async def test_messages_cross_and_bytes_are_counted() -> None:
    client, server = await pair()
    step = Step(SESSION, 1, 0, 1, Want.LAST, payload=b"x" * 100_000)
    await client.send(Ping(5))
    await client.send(step)
    assert await server.receive() == Ping(5)
    assert await server.receive() == step
    await server.send(Pong(5, 0, 0, 0, NodeState.ONLINE))
    assert await client.receive() == Pong(5, 0, 0, 0, NodeState.ONLINE)
    assert client.bytes_sent == server.bytes_received == len(frame_bytes(Ping(5)) + frame_bytes(step))
    assert client.bytes_received == server.bytes_sent > 0
    assert (client.peer_id, server.peer_id) == ("server", "client")


async def test_a_closed_stream_keeps_nothing_of_a_frame_that_had_begun() -> None:
    stream = ScriptedStream(frame_bytes(Step(SESSION, 1, 0, 1, Want.LAST, payload=bytes(10_000)))[:-1])
    connection = Connection(stream)
    reading = asyncio.ensure_future(connection.receive())
    with pytest.raises(RemoteProtocolError):
        await reading
    connection.close()
    assert connection._parser.held == 0
    assert stream.closed


async def test_a_clean_end_and_an_end_in_mid_frame_differ() -> None:
    data = frame_bytes(Ping(1))
    clean = Connection(ScriptedStream(data))
    assert await clean.receive() == Ping(1)
    with pytest.raises(StreamClosedError, match="peer scripted closed the stream"):
        await clean.receive()
    cut = Connection(ScriptedStream(data, data[:-1]))
    assert await cut.receive() == Ping(1)
    with pytest.raises(RemoteProtocolError, match="middle of a frame"):
        await cut.receive()


async def test_frames_of_any_fragmentation_are_put_together() -> None:
    data = frame_bytes(Ping(1)) + frame_bytes(Ping(2))
    connection = Connection(ScriptedStream(*(bytes([byte]) for byte in data)))
    assert [await connection.receive(), await connection.receive()] == [Ping(1), Ping(2)]


async def test_an_unknown_kind_leaves_the_stream_in_step() -> None:
    unknown = b"".join(encode_frame(Frame(99, {"new": True}, b"payload")))
    connection = Connection(ScriptedStream(unknown + frame_bytes(Ping(3))))
    with pytest.raises(RemoteProtocolError) as caught:
        await connection.receive()
    assert caught.value.code is ErrorCode.UNKNOWN_KIND
    assert await connection.receive() == Ping(3)


async def test_garbage_is_a_remote_protocol_error_for_ever() -> None:
    connection = Connection(ScriptedStream(b"\x00\x01\x02", frame_bytes(Ping(1))))
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="not a frame"):
            await connection.receive()


async def test_frame_limits_hold_in_both_directions() -> None:
    big = Step(SESSION, 1, 0, 1, Want.LAST, payload=bytes(5000))
    with pytest.raises(RemoteProtocolError, match="at most 4096 are accepted"):
        await Connection(ScriptedStream(frame_bytes(big)), max_frame=4096).receive()
    stream = ScriptedStream()
    sender = Connection(stream)
    sender.peer_max_frame = 4096
    with pytest.raises(LocalProtocolError, match="the peer accepts 4096"):
        await sender.send(big)
    assert stream.written == []
    assert sender.bytes_sent == 0


async def test_many_senders_write_whole_frames_and_wait_for_room() -> None:
    stream = ScriptedStream()
    stream.room.clear()
    connection = Connection(stream)
    tasks = [asyncio.create_task(connection.send(Ping(nonce))) for nonce in range(5)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(stream.written) == 1  # the others wait instead of piling up frames
    stream.room.set()
    await asyncio.gather(*tasks)
    assert stream.written == [frame_bytes(Ping(nonce)) for nonce in range(5)]


async def test_a_cancelled_sender_has_sent_a_whole_frame_or_nothing() -> None:
    stream = ScriptedStream()
    stream.room.clear()
    connection = Connection(stream)
    first, second = (asyncio.create_task(connection.send(Ping(nonce))) for nonce in (1, 2))
    for _ in range(3):
        await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    await asyncio.wait([first, second])
    stream.room.set()
    await connection.send(Ping(3))
    assert stream.written in (
        [frame_bytes(Ping(1)), frame_bytes(Ping(3))],
        [frame_bytes(Ping(1)), frame_bytes(Ping(2)), frame_bytes(Ping(3))],
    )


async def test_a_parting_message_waits_until_the_peer_has_closed() -> None:
    client, server = await pair()
    await client.send(Ping(1))
    told = ErrorMessage(None, None, ErrorCode.BAD_FRAME, "no", False)
    parting = asyncio.create_task(server.close_with(told))
    assert await client.receive() == told
    assert not parting.done()
    client.close()
    await parting
    with pytest.raises(StreamClosedError):
        await server.send(Ping(2))


async def test_a_parting_message_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "PARTING_S", 0.001)
    _, server = await pair()
    await server.close_with(ErrorMessage(None, None, ErrorCode.BAD_FRAME, "no", False))
    with pytest.raises(StreamClosedError):
        await server.send(Ping(2))


async def test_close_closes_the_stream() -> None:
    stream = ScriptedStream()
    Connection(stream).close()
    assert stream.closed


async def test_a_stream_that_ends_while_its_reader_is_cancelled_is_not_reported_as_forgotten() -> None:
    complaints = Complaints()
    reading = asyncio.create_task(Connection(ScriptedStream()).receive_within(1.0))
    await asyncio.sleep(0)  # it waits
    await asyncio.sleep(0)  # the stream has ended, and it does not know yet
    reading.cancel()
    await asyncio.wait([reading])
    del reading
    assert complaints.heard() == []
