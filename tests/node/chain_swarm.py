"""Nodes with real engines on a network in memory, and a client that opens and steers chains by hand."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from scripts.lab.tiny_model import HIDDEN
from swarm_node.node.engine.engine import Engine, EngineSettings
from swarm_node.node.engine.memory.page_tables import pages_for
from swarm_node.node.limits.quotas import Limits
from swarm_node.node.sessions.server import DEFAULT_JOURNAL_BYTES, NodeServer
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.errors import SwarmError
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.field_types import Downstream
from swarm_node.swarm.protocol.messages import (
    Attach,
    Attached,
    Close,
    ErrorMessage,
    Hello,
    Message,
    Open,
    Opened,
    Replay,
    Replayed,
    Result,
    Step,
    Want,
    Welcome,
)
from swarm_node.swarm.protocol.wire import DEFAULT_MAX_FRAME, PROTOCOL_ID
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef, Span
from tests.swarm.codecs.codec_cases import codec_of

MODEL = ModelRef("tiny", "ab" * 32, 4)
KV_HEADS, HEAD_DIM, CONTEXT = 2, 16, 256
KV_TOKENS = 1024

M = TypeVar("M")


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - polls what has no event
            await asyncio.sleep(0)


@asynccontextmanager
async def stalled(engine: Engine) -> AsyncIterator[None]:
    """The device computes nothing meanwhile."""
    begun, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        begun.set()
        go_on.wait(30)

    stalling = asyncio.ensure_future(engine.run(stall))
    try:
        await asyncio.to_thread(begun.wait)
        yield
    finally:
        go_on.set()
        await stalling


class Control:
    """A client's stream to one node: sends anything, sorts out what comes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.messages: list[Message] = []
        self.ended: SwarmError | None = None
        self._came = asyncio.Event()
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        try:
            while True:
                self.messages.append(await self.connection.receive())
                self._came.set()
        except SwarmError as error:
            self.ended = error
            self._came.set()

    async def send(self, message: Message) -> None:
        await self.connection.send(message)

    async def take(self, kind: type[M], session: bytes | None = None, step: int | None = None) -> M:
        """The first message of this kind, for this session and step, taken out of what came."""
        async with asyncio.timeout(10):
            while True:
                for message in self.messages:
                    if (
                        isinstance(message, kind)
                        and (session is None or getattr(message, "session", None) == session)
                        and (step is None or getattr(message, "step", None) == step)
                    ):
                        self.messages.remove(message)
                        return message
                if self.ended is not None:
                    raise self.ended
                self._came.clear()
                await self._came.wait()

    def of(self, kind: type[M]) -> list[M]:
        return [message for message in self.messages if isinstance(message, kind)]

    def close(self) -> None:
        self._reader.cancel()
        self.connection.close()


@dataclass
class Hop:
    """A session of the client's on a node."""

    node: str
    control: Control
    session: bytes = field(default_factory=lambda: os.urandom(16))
    opened: Opened | None = None

    @property
    def downstream(self) -> Downstream:
        return Downstream(self.node, self.session)

    async def step(self, number: int, position: int, payload: bytes, tokens: int, **more: object) -> None:
        want = more.pop("want", Want.ALL)
        step = Step(self.session, number, position, tokens, want, payload=payload, **more)  # type: ignore[arg-type]
        await self.control.send(step)

    async def result(self, step: int) -> Result:
        return await self.control.take(Result, self.session, step)

    async def error(self, step: int | None = None) -> ErrorMessage:
        return await self.control.take(ErrorMessage, self.session, step)

    async def attach(self, upstream: str) -> Attached:
        await self.control.send(Attach(self.session, upstream))
        return await self.control.take(Attached, self.session)

    async def replay(self, start: int, stop: int, step: int, to: Hop | None) -> Replayed:
        await self.start_replay(start, stop, step, to)
        return await self.control.take(Replayed, self.session)

    async def start_replay(self, start: int, stop: int, step: int, to: Hop | None) -> None:
        await self.control.send(
            Replay(self.session, start, stop, step, None if to is None else to.downstream)
        )

    async def close(self, prefix: tuple[bytes, ...] = ()) -> None:
        await self.control.send(Close(self.session, prefix))


class ChainSwarm:
    """Nodes named ``a``, ``b``, ... on one MemoryNetwork."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.servers: dict[str, NodeServer] = {}
        self.controls: list[Control] = []

    def add(
        self,
        name: str,
        model: SpanBackend[Any],
        *,
        limits: Limits | None = None,
        journal_bytes: int = DEFAULT_JOURNAL_BYTES,
        dials: bool = True,
        ref: ModelRef = MODEL,
    ) -> NodeServer:
        slots = pages_for(KV_TOKENS) * len(model.span)
        pool = model.new_pool(slots, "float32")
        engine = Engine(model, pool, threads=1, settings=EngineSettings(max_batch_tokens=64))
        engine.start()
        server = self.servers[name] = NodeServer(
            engine,
            ref,
            context_tokens=CONTEXT,
            agent="test",
            limits=limits,
            transport=self.network.transport(name) if dials else None,
            journal_bytes=journal_bytes,
        )
        return server

    async def serve(self) -> None:
        for name, server in self.servers.items():
            await self.network.transport(name).serve(PROTOCOL_ID, server.handle)

    async def connect(self, node: str, peer: str = "client") -> Control:
        stream = await self.network.transport(peer).open_stream(node, PROTOCOL_ID)
        control = Control(Connection(stream))
        self.controls.append(control)
        await control.send(Hello((1,), "", KINDS, DEFAULT_MAX_FRAME, "test"))
        await control.take(Welcome)
        return control

    async def hop(self, node: str, peer: str = "client") -> Hop:
        return Hop(node, await self.connect(node, peer))

    async def open(self, at: Hop, span: Span, max_tokens: int = 128, **more: object) -> Message:
        """The answer to OPEN."""
        codec = codec_of(str(more.pop("codec", "none")), HIDDEN)
        names, scales = (codec.name, codec.name), (codec.exponents,) if codec.exponents else ()
        opening = Open(at.session, span, max_tokens, *names, scales=scales, **more)  # type: ignore[arg-type]
        await at.control.send(opening)
        while True:
            async with asyncio.timeout(10):
                answer = await at.control.take(object, at.session)
            if isinstance(answer, Opened):
                at.opened = answer
            return answer  # type: ignore[return-value]

    async def chain(
        self, places: Sequence[tuple[str, Span]], peer: str = "client", **more: object
    ) -> list[Hop]:
        """A chained route, all hops of which are opened at the same time; the last keeps no journal."""
        hops = [await self.hop(node, peer) for node, _ in places]
        openings = []
        for index, (hop, (_, span)) in enumerate(zip(hops, places, strict=True)):
            last = index + 1 == len(hops)
            openings.append(
                self.open(
                    hop,
                    span,
                    hop=index,
                    hops=len(hops),
                    upstream=hops[index - 1].node if index else "",
                    downstream=None if last else hops[index + 1].downstream,
                    journal=not last,
                    **more,
                )
            )
        for answer in await asyncio.gather(*openings):
            assert isinstance(answer, Opened), answer
        return hops

    @property
    def left_behind(self) -> dict[str, object]:
        """What sessions still hold on any node; empty once all is given back."""
        left: dict[str, object] = {}
        for name, server in self.servers.items():
            statistics = server.statistics()
            found = {
                "sessions": (len(server.sessions), statistics.sessions),
                "queued": server.engine.queued,
                "journals": statistics.journal.sessions,
                "kv": KV_TOKENS - server.engine.free_tokens,
                "tasks": len(server.sessions._tasks),
                "accounts": [
                    (account.peer_id, account.queued_tokens, account.queued_bytes)
                    for account in server.ledger._accounts.values()
                    if account.queued_tokens or account.queued_bytes or account.sessions
                ],
                "fed": sum(len(connection._fed) for connection in server._connections),
                "on links": sum(len(hop.sessions) for hop in server.next_hops._hops.values()),
                "users": sum(len(hop.link._users) for hop in server.next_hops._hops.values()),
            }
            left |= {f"{name} {key}": value for key, value in found.items() if value not in (0, [], (0, 0))}
        return left

    async def close(self) -> None:
        for control in self.controls:
            control.close()
        for name, server in self.servers.items():
            await server.aclose()
            await self.network.transport(name).close()
            await server.engine.stop()


@asynccontextmanager
async def swarm_of(
    load: Callable[..., SpanBackend[Any]], spans: dict[str, Span], **options: object
) -> AsyncIterator[ChainSwarm]:
    """Nodes by name with their spans; ``options`` as for ``add``, for all of them."""
    swarm = ChainSwarm(MemoryNetwork())
    for name, span in spans.items():
        swarm.add(name, load(span), **options)  # type: ignore[arg-type]
    await swarm.serve()
    try:
        yield swarm
    finally:
        await swarm.close()


def rows(x: np.ndarray, codec: str = "none") -> bytes:
    return bytes(codec_of(codec, x.shape[1]).encode(x))
