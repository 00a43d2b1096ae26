"""A node's network as that of a broken or hostile peer: what it sends of its work is not what it computed.

The node itself is a real one: it announces itself, opens sessions, answers PINGs. Only the frames that carry
activations, RESULT to a client and STEP to the next hop, are changed on their way out.
"""

from __future__ import annotations

import asyncio
import random
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from swarm_node.dht.joining.network import Network
from swarm_node.swarm.errors import StreamClosedError
from swarm_node.swarm.protocol.messages import Message, Result, Step, decode, encode, singles
from swarm_node.swarm.protocol.wire import PROTOCOL_ID, FrameParser, encode_frame
from swarm_node.swarm.transport.interface import DIAL_TIMEOUT, READ_SIZE, Buffer, Stream, StreamHandler

KINDS = ("garbage", "size", "nan", "rows")
"""Bytes that are no frame; a payload cut short; activations that are no numbers; more rows than were asked
for."""
GARBAGE_BYTES = 200


class Faults:
    """What is wrong with a node's network now. ``kind``: "" or one of KINDS. ``crash_rate``: the probability
    that, instead of sending a step's output, the node loses all its streams at once, as if it had crashed
    and come back in the same moment."""

    def __init__(self) -> None:
        self.kind = ""
        self.crash_rate = 0.0
        self.crashes = 0
        self.spoilt = 0
        self._rng = random.Random(1)
        self._streams: weakref.WeakSet[FaultyStream] = weakref.WeakSet()

    def set_crashes(self, rate: float, seed: int) -> None:
        self.crash_rate = rate
        self._rng.seed(seed)

    def watch(self, stream: Stream) -> FaultyStream:
        faulty = FaultyStream(stream, self)
        self._streams.add(faulty)
        return faulty

    def apply(self, buffers: Iterable[Buffer]) -> list[Buffer]:
        """What goes out in place of these whole frames. Raises StreamClosedError after a crash."""
        buffers = list(buffers)
        if not self.kind and not self.crash_rate:
            return buffers
        parser = FrameParser()
        for buffer in buffers:
            parser.receive(buffer)
        sent: list[Buffer] = []
        while (frame := parser.next_frame()) is not None:
            for message in singles(decode(frame)):
                if not isinstance(message, Step | Result):
                    sent += encode_frame(frame)
                    continue
                if self._rng.random() < self.crash_rate:
                    self.crash()
                sent += self._spoil(message)
        return sent

    def crash(self) -> None:
        """Lose every stream. Raises StreamClosedError, as the streams do from now on."""
        self.crashes += 1
        for stream in list(self._streams):
            stream.close()
        raise StreamClosedError("the connection crashed, as it was told to")

    def _spoil(self, message: Message) -> list[Buffer]:
        if not self.kind or not isinstance(message, Step | Result) or not len(message.payload):
            return encode_frame(encode(message))
        self.spoilt += 1
        payload = bytes(message.payload)
        match self.kind:
            case "garbage":
                return [b"\0" + self._rng.randbytes(GARBAGE_BYTES)]
            case "size":
                changed: Message = replace(message, payload=payload[: len(payload) // 2])
            case "nan":  # in float32, fp16, bf16, and as the scale of int8
                changed = replace(message, payload=b"\xff" * len(payload))
            case _:
                row = payload[: len(payload) // max(1, message.tokens)]
                changed = replace(message, tokens=message.tokens + 1, payload=payload + row)
        return encode_frame(encode(changed))


class FaultyStream:
    """A stream whose writes pass through ``faults``."""

    def __init__(self, inner: Stream, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults

    @property
    def peer_id(self) -> str:
        return self._inner.peer_id

    @property
    def remote_maddr(self) -> str:
        return self._inner.remote_maddr

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        return await self._inner.read(max_bytes)

    def write(self, buffers: Iterable[Buffer]) -> None:
        self._inner.write(self._faults.apply(buffers))

    async def drain(self) -> None:
        await self._inner.drain()

    def close(self) -> None:
        self._inner.close()


class FaultyTransport:
    """A node's transport with ``faults``; everything but streams of our protocol is the inner one's."""

    def __init__(self, inner: Any, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        if protocol_id != PROTOCOL_ID:
            await self._inner.serve(protocol_id, handler)
            return

        async def faulty(stream: Stream) -> None:
            await handler(self._faults.watch(stream))

        await self._inner.serve(protocol_id, faulty)

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = DIAL_TIMEOUT,
        *,
        lazy: bool = False,
    ) -> Stream:
        stream = await self._inner.open_stream(peer_id, protocol_id, maddrs, timeout, lazy=lazy)
        return self._faults.watch(stream) if protocol_id == PROTOCOL_ID else stream


class FaultyNetwork:
    """A node's network over a FaultyTransport."""

    def __init__(self, inner: Network, faults: Faults) -> None:
        self._inner = inner
        self.transport: Any = FaultyTransport(inner.transport, faults)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def failed(self) -> None:
        await self._inner.failed()

    async def close(self) -> None:
        await asyncio.shield(self._inner.close())
