"""A tiny random model on disk, its spans, and a client that speaks raw messages to a node in memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models

from scripts.lab.tiny_model import BLOCKS, HIDDEN, write_llama
from swarm_node.node.engine.engine import Engine, EngineSettings
from swarm_node.node.engine.memory.page_tables import pages_for
from swarm_node.node.limits.quotas import Limits
from swarm_node.node.sessions.server import NodeServer
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.fidelity.row_sampler import RowSampler
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.messages import Hello, Message, Open, Opened, Result, Step, Want, Welcome
from swarm_node.swarm.protocol.wire import DEFAULT_MAX_FRAME, PROTOCOL_ID
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef, Span
from tests.node.chain_swarm import stalled
from tests.shards.models.block_reference import reference
from tests.swarm.codecs.codec_cases import codec_of

VOCAB, CONTEXT = 128, 256
MODEL = ModelRef("tiny", "ab" * 32, BLOCKS)
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama model with a tokenizer that knows no token."""
    folder = tmp_path_factory.mktemp("tiny")
    settings = {"max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2}
    write_llama(folder, vocab=VOCAB, spread=1, tied=True, **settings)
    Backend(models.BPE()).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tiny_span(tiny_dir: Path) -> Callable[..., SpanBackend[Any]]:
    def load(span: Span | None = None, **options: str) -> SpanBackend[Any]:
        wanted = LoadOptions(**({"dtype": "float32", "quantize": "none"} | options))
        with open_checkpoint(str(tiny_dir)) as checkpoint:
            return load_backend(checkpoint, span or Span(0, BLOCKS), wanted)

    return load


@pytest.fixture
def plain(tiny_dir: Path) -> Callable[..., np.ndarray]:
    """``plain(model, rows, span=None)``: what ``model``, of tiny_span's weights, should compute of a whole
    sequence."""

    def forward(model: SpanBackend[Any], rows: np.ndarray, span: Span | None = None) -> np.ndarray:
        with open_checkpoint(str(tiny_dir)) as checkpoint:
            return reference(checkpoint, rows, span=span or model.span).astype(np.float32)

    return forward


@pytest.fixture
def hidden_states() -> Callable[[int, int], np.ndarray]:
    """``hidden_states(tokens, seed)`` → (tokens, hidden) float32."""
    return lambda tokens, seed=0: np.random.default_rng(seed).standard_normal((tokens, HIDDEN), np.float32)


class RawClient:
    """A client that sends exactly what a test tells it to."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.welcome: Welcome | None = None
        self.step_number = 0
        self.opened_length = 0

    async def hello(self, digest: str = "", versions: tuple[int, ...] = (1,)) -> Message:
        await self.send(Hello(versions, digest, KINDS, DEFAULT_MAX_FRAME, "test"))
        answer = await self.receive()
        if isinstance(answer, Welcome):
            self.welcome = answer
        return answer

    async def send(self, message: Message) -> None:
        await self.connection.send(message)

    async def receive(self) -> Message:
        return await self.connection.receive()

    async def ask(self, message: Message) -> Message:
        await self.send(message)
        return await self.receive()

    async def open(
        self, max_tokens: int = 64, span: Span | None = None, codec: str = "none", **more: object
    ) -> bytes:
        answer = await self.try_open(max_tokens, span, codec, **more)
        if not isinstance(answer, Opened):
            raise TypeError(f"not opened: {answer}")
        self.opened_length = answer.length
        return answer.session

    async def try_open(
        self, max_tokens: int = 64, span: Span | None = None, codec: str = "none", **more: object
    ) -> Message:
        made = codec_of(codec, HIDDEN)
        scales = (made.exponents,) if made.exponents else ()
        span = span or Span(0, BLOCKS)
        opening = Open(os.urandom(16), span, max_tokens, made.name, made.name, scales=scales)
        return await self.ask(replace(opening, **more))  # type: ignore[arg-type]

    def step(
        self,
        session: bytes,
        x: np.ndarray,
        position: int,
        want: Want = Want.ALL,
        codec: str = "none",
        **more: int,
    ) -> Step:
        self.step_number += 1
        payload = codec_of(codec, x.shape[1]).encode(x)
        return Step(session, self.step_number, position, len(x), want, payload=payload)

    async def forward(
        self, session: bytes, x: np.ndarray, position: int, want: Want = Want.ALL, codec: str = "none"
    ) -> np.ndarray:
        answer = await self.ask(self.step(session, x, position, want, codec))
        return self.rows(answer, codec)

    def rows(self, answer: Message, codec: str = "none") -> np.ndarray:
        if not isinstance(answer, Result):
            raise TypeError(f"no result: {answer}")
        return codec_of(codec, HIDDEN).decode(answer.payload, answer.tokens, HIDDEN)


class Harness:
    """One node's server on a network in memory."""

    def __init__(self, server: NodeServer, network: MemoryNetwork) -> None:
        self.server = server
        self.engine = server.engine
        self.network = network

    @property
    def free_tokens(self) -> int:
        return self.engine.free_tokens

    def stalled(self) -> AbstractAsyncContextManager[None]:
        """The device computes nothing meanwhile; steps wait."""
        return stalled(self.engine)

    async def connect(self, peer: str = "client", *, greet: bool = True) -> RawClient:
        stream = await self.network.transport(peer).open_stream("node", PROTOCOL_ID)
        client = RawClient(Connection(stream))
        if greet:
            await client.hello()
        return client


@pytest.fixture
def serving(tiny_span: Callable[..., SpanBackend[Any]]) -> Callable[..., object]:
    """``async with serving(...) as harness``."""

    @asynccontextmanager
    async def serve(
        *,
        span: Span | None = None,
        kv_tokens: int = 1024,
        limits: Limits | None = None,
        clock: Callable[[], float] | None = None,
        max_frame: int = DEFAULT_MAX_FRAME,
        model: SpanBackend[Any] | None = None,
        batch_tokens: int = 64,
        prefix_cache: bool = True,
        sampler: RowSampler | None = None,
    ) -> AsyncIterator[Harness]:
        span_model = model or tiny_span(span)
        slots = pages_for(kv_tokens) * len(span_model.span)
        pool = span_model.new_pool(slots, "float32")
        settings = EngineSettings(max_batch_tokens=batch_tokens, prefix_cache=prefix_cache)
        engine = Engine(span_model, pool, threads=1, settings=settings, sampler=sampler)
        engine.start()
        network = MemoryNetwork()
        transport = network.transport("node")
        more = {} if clock is None else {"clock": clock}
        server = NodeServer(
            engine,
            MODEL,
            context_tokens=CONTEXT,
            agent="test",
            limits=limits,
            max_frame=max_frame,
            transport=transport,
            **more,
        )
        await transport.serve(PROTOCOL_ID, server.handle)
        try:
            yield Harness(server, network)
        finally:
            await server.aclose()
            await transport.close()
            await engine.stop()

    return serve
