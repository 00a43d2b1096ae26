"""``serve --deterministic``: what a replacement computes from a replay is what was computed before, bit for
bit; and a replay stands back behind other sessions' tokens."""

from __future__ import annotations

import asyncio
import random
import threading
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

import pytest
import torch

from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node import loaded_span
from swarm_node.node.config import NodeConfig, NodeEvent
from swarm_node.node.engine.engine import Engine, EngineSettings
from swarm_node.node.engine.jobs import StepDone, StepDropped, StepJob, TokenSequence
from swarm_node.node.engine.memory.page_tables import pages_for
from swarm_node.node.node import Node
from swarm_node.shards.layers.kv_pool import KV_DTYPES
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.torch.span import TorchSpan
from swarm_node.swarm.codecs.kinds import INT8 as CODEC
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.protocol.messages import Want
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span

pytestmark = pytest.mark.slow

FIRST, SECOND = Span(0, 2), Span(2, 4)
WAYS = {
    "native float32": {"kernels": "native"},
    "native int8": {"kernels": "native", "quantize": "int8", "dtype": "auto"},
    "native int4": {"kernels": "native", "quantize": "int4", "dtype": "auto"},
    "fast int4": {"kernels": "fast", "quantize": "int4", "dtype": "auto"},
    "torch float32": {"kernels": "torch"},
    "torch bfloat16": {"dtype": "bfloat16"},
    "torch int8": {"kernels": "torch", "quantize": "int8", "dtype": "auto"},
    "torch int4": {"kernels": "torch", "quantize": "int4", "dtype": "auto"},
}


class Hop:
    """One engine; ``feed`` gives the wire bytes of all rows of a step."""

    def __init__(self, model: SpanBackend[Any], kv_dtype: str = "float32", **settings: float) -> None:
        slots = pages_for(4096) * len(model.span)
        pool = model.new_pool(slots, kv_dtype)
        self.engine = Engine(model, pool, threads=1, settings=EngineSettings(**settings))
        self.engine.start()
        self.steps = 0

    def open(self, tokens: int, owner: str = "client") -> TokenSequence:
        sequence = self.engine.open_sequence(owner, self.engine.model.span, tokens, CODEC, CODEC)
        assert sequence is not None
        return sequence

    def submit(
        self, sequence: TokenSequence, payload: bytes, position: int, want: Want = Want.ALL
    ) -> asyncio.Future:
        future = asyncio.get_running_loop().create_future()
        self.steps += 1
        self.engine.submit(
            StepJob(
                sequence=sequence,
                step=self.steps,
                position=position,
                tokens=len(payload) // CODEC.row_bytes(64),
                want=want,
                payload=payload,
                arrived_ns=perf_counter_ns(),
                done=lambda _, outcome: future.set_result(outcome),
            )
        )
        return future

    async def feed(
        self, sequence: TokenSequence, payload: bytes, position: int, want: Want = Want.ALL
    ) -> bytes:
        outcome = await self.submit(sequence, payload, position, want)
        assert isinstance(outcome, StepDone), outcome
        return bytes(outcome.payload)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("way", WAYS)
async def test_a_replayed_session_goes_on_with_the_same_bytes(tiny_span, hidden_states, way, kv_dtype):
    """The second of two hops is lost in mid-answer. What the first one had sent is fed to another engine, in
    other chunks; there the answer goes on, among other sessions than before, as it would have gone on."""
    options = {**WAYS[way], "deterministic": True}
    first = Hop(tiny_span(FIRST, **options), kv_dtype)
    lost, replacement = (Hop(tiny_span(SECOND, **options), kv_dtype, max_batch_tokens=n) for n in (512, 48))
    rng = random.Random(f"{way} {kv_dtype}")
    prompt, total = 70, 90
    rows = CODEC.encode(hidden_states(total))
    size = len(rows) // total
    sequence, lost_sequence = first.open(total), lost.open(total)
    others = [hop.open(total, "other") for hop in (lost, replacement)]
    noise = CODEC.encode(hidden_states(total, 5))

    journal, answers, at = b"", b"", 0
    while at < total:  # a prompt in chunks, then tokens
        count = min(rng.randint(10, 40), prompt - at) if at < prompt else 1
        sent = await first.feed(sequence, rows[at * size : (at + count) * size], at)
        beside = lost.submit(others[0], noise[at * size : (at + count) * size], at)
        answers += await lost.feed(lost_sequence, sent, at)
        await beside
        journal += sent
        at += count

    lost_at = 83
    new_sequence, at = replacement.open(total), 0
    replayed = []
    while at < lost_at:
        count = min(rng.randint(1, 60), lost_at - at)
        replayed.append(
            replacement.submit(new_sequence, journal[at * size : (at + count) * size], at, Want.NOTHING)
        )
        at += count
    filler = replacement.submit(others[1], noise[: 50 * size], 0)
    for at in range(lost_at, total):
        got = await replacement.feed(new_sequence, journal[at * size : (at + 1) * size], at)
        assert got == answers[at * size : (at + 1) * size], at
    assert all(isinstance(outcome, StepDone) for outcome in await asyncio.gather(*replayed, filler))
    for hop in (first, lost, replacement):
        await hop.engine.stop()


ROW_S, TOKEN_S, TARGET_MS = 2e-4, 2e-3, 10.0


async def test_a_replay_stands_back_behind_other_sessions_tokens(tiny_span, hidden_states, monkeypatch):
    """2,048 tokens are replayed in chunks of 256, two under way, while another session decodes. A row takes
    0.2 ms and a batch 2 ms more; slices may add 10 ms. So no slice beside decode is longer than 50 rows, but
    for the first ones, before anything was measured, and a token waits for one slice."""
    batches: list[tuple[int, ...]] = []

    def slow(_, x, pieces, pool, span=None):
        batches.append(tuple(piece.count for piece in pieces))
        threading.Event().wait(TOKEN_S + len(x) * ROW_S)
        return x

    monkeypatch.setattr(TorchSpan, "forward", slow)
    hop = Hop(tiny_span(kernels="torch"), prefill_target_ms=TARGET_MS)
    size = CODEC.row_bytes(64)
    journal = CODEC.encode(hidden_states(2048))
    chat, replayed = hop.open(600, "chat"), hop.open(2100, "client")
    token = CODEC.encode(hidden_states(1))
    for position in range(3):
        await hop.feed(chat, token, position)
    batches.clear()

    async def replay() -> None:
        under_way: list[asyncio.Future] = []
        for at in range(0, 2048, 256):
            if len(under_way) == 2:
                await under_way.pop(0)
            chunk = journal[at * size : (at + 256) * size]
            under_way.append(hop.submit(replayed, chunk, at, Want.NOTHING))
        await asyncio.gather(*under_way)

    replaying = asyncio.ensure_future(replay())
    position, gaps = 3, []
    while not replaying.done():
        began = perf_counter_ns()
        await hop.feed(chat, token, position)
        gaps.append((perf_counter_ns() - began) / 1e6)
        position += 1
    await replaying
    assert sum(map(sum, batches)) == 2048 + position - 3  # a slice may be as short as a token of the chat
    slices = [count for batch in batches for count in batch if count > 1]
    assert max(slices) <= 64
    assert sorted(slices)[len(slices) // 2] <= TARGET_MS / 1000 / ROW_S
    assert len(gaps) >= 2048 // 64  # it went on decoding all the time
    # Between two tokens of the chat lies one slice, unless this test was late with its next token.
    beside = batches[: len(batches) - batches[::-1].index(next(b for b in reversed(batches) if 1 in b))]
    assert sum(1 not in a and 1 not in b for a, b in pairwise(beside)) <= len(beside) // 4
    await hop.engine.stop()


async def test_a_prompt_that_nobody_waits_for_any_more_is_not_computed(tiny_span, hidden_states, monkeypatch):
    """The client goes while the second slice of its prompt is computed: the others never are."""
    computed, second = [], threading.Event()
    go_on = threading.Event()

    def slow(_, x, pieces, pool, span=None):
        computed.append(len(x))
        if len(computed) == 2:
            second.set()
            go_on.wait(10)
        return x

    monkeypatch.setattr(TorchSpan, "forward", slow)
    hop = Hop(tiny_span(kernels="torch"), max_batch_tokens=32)
    sequence = hop.open(600)
    rows = CODEC.encode(hidden_states(256))
    steps = [hop.submit(sequence, rows, 0, Want.NOTHING), hop.submit(sequence, rows, 256, Want.LAST)]
    await asyncio.to_thread(second.wait, 10)
    hop.engine.close_sequence(sequence)
    go_on.set()
    assert all(isinstance(outcome, StepDropped) for outcome in await asyncio.gather(*steps))
    assert computed == [32, 32]
    assert hop.engine.load().used_slots == 0
    await hop.engine.stop()


class Fixture:
    def __init__(self, model: str) -> None:
        self.model, self.events = model, list[NodeEvent]()

    def node(self, **options: object) -> Node:
        config = NodeConfig(model=self.model, threads=1, kv_cache_tokens=300, deterministic=True, **options)
        network = GivenNetwork(MemoryNetwork().transport("node"), MemoryDirectory(MemoryStore()))
        return Node(config, self.events.append, network=network)


@pytest.fixture
def started(tiny_dir):
    threads = torch.get_num_threads()
    yield Fixture(str(tiny_dir))
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ({"kernels": "native"}, "native close"),
        ({"kernels": "torch"}, "torch rowwise"),
        ({"dtype": "bfloat16", "kv_dtype": "int8"}, "torch rowwise"),
    ],
    ids=str,
)
async def test_the_node_says_that_it_is_deterministic(started, options, kernels):
    digests = set()
    for _ in range(2):
        node = started.node(**options)
        await node.start()
        announced = node.info().row_check
        await node.stop()
        online = next(event for event in started.events if event.event == "online").as_dict()
        started.events.clear()
        assert online["deterministic"] is True
        assert online["kernels"] == kernels
        assert online["row_check"] == announced
        digests.add(announced)
    assert len(digests) == 1
    assert len(digests.pop()) == 12


async def test_a_node_that_cannot_be_deterministic_does_not_start(started, monkeypatch):
    """Kernels whose results depend on the batch: torch's, used as they are."""

    def load(checkpoint, span, options, *args, **more):
        return load_backend(checkpoint, span, LoadOptions(kernels="torch"), *args, **more)

    monkeypatch.setattr(loaded_span, "load_backend", load)
    node = started.node()
    with pytest.raises(UsageError, match="--deterministic does not hold here with torch kernels"):
        await node.run()
    assert [event.event for event in started.events][-2:] == ["error", "stopped"]
    assert "online" not in [event.event for event in started.events]
