"""Sessions of 131,072 tokens over blocks with states and windows: their memory is what the arithmetic says,
and a machine that dies in the middle of such a prompt costs no more than its own blocks' tokens."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scripts.lab.tiny_model import write_tiny_hybrid
from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.dht.memory import MemoryStore
from swarm_node.node.engine.engine import Engine, EngineSettings
from swarm_node.node.engine.memory.kv_layout import KvLayout
from swarm_node.node.node import Node
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.protocol.messages import Want
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span
from tests.doubles.real_node import real_client, start_node
from tests.node.engine.driver import Driver
from tests.shards.models.block_cases import HIDDEN, attention, block, checkpoint_of
from tests.shards.models.state_cases import delta, kept, mamba

pytestmark = pytest.mark.slow

LENGTH = 131_072
BATCH, STEP, WINDOW = 512, 4096, 64
WINDOW_PAGES = 21
"""(64 tokens that are seen + 512 of a batch + 64 of a rollback) / 32 tokens a page, and one more."""
STATES = 4


@pytest.fixture(scope="module")
def model() -> SpanBackend:
    windowed = block(attention(window=WINDOW))
    checkpoint = checkpoint_of((kept(delta()), windowed, kept(mamba()), windowed))
    checkpoint.config = replace(checkpoint.config, max_position_embeddings=LENGTH)
    return load_backend(checkpoint, Span(0, 4), LoadOptions(dtype="float32"), threads=1)


def _engine(model: SpanBackend) -> Engine:
    """With memory for one session of LENGTH tokens, and nothing else."""
    layout = KvLayout.of(model.config.blocks, BATCH)
    pool = model.new_pool(layout.slots_of(LENGTH), "float32", layout.states_of(LENGTH))
    return Engine(model, pool, threads=1, settings=EngineSettings(max_batch_tokens=BATCH))


async def test_memory_is_that_of_the_arithmetic(model: SpanBackend) -> None:
    """Two blocks with a window of 64 tokens, and two that keep a state."""
    engine = _engine(model)
    engine.start()
    driver = Driver(engine)
    load = engine.load()
    assert (load.total_slots, load.total_states) == (2 * WINDOW_PAGES, 2 * STATES)
    assert engine.total_tokens == LENGTH
    sequence = engine.open_sequence("a", Span(0, 4), LENGTH, NONE, NONE)
    assert sequence is not None
    assert engine.open_sequence("b", Span(0, 4), 1, NONE, NONE) is None
    rows = np.random.default_rng(0).standard_normal((STEP, HIDDEN), np.float32)
    last = np.empty((0, HIDDEN))
    for start in range(0, LENGTH, STEP):
        last = await driver.rows(sequence, rows, start, want=Want.LAST)
        load = engine.load()
        assert load.used_slots <= 2 * WINDOW_PAGES
        assert load.used_states <= 2 * STATES
    assert np.isfinite(last).all()
    again = await driver.rows(sequence, rows[-33:], LENGTH - 33, want=Want.LAST)  # a draft was wrong
    np.testing.assert_array_equal(again, last)
    kv = 2 * WINDOW_PAGES * 2 * 32 * (16 + 16) * 4  # blocks, pages, heads, tokens, keys and values, bytes
    matrices, window = 4 * 16 * 24, 3 * (2 * 2 * 16 + 4 * 24)  # of the larger state; 3 inputs of each channel
    states = 2 * STATES * (matrices + window) * 4
    assert engine.pool.data.nbytes + engine.pool.states.data.nbytes == kv + states
    engine.close_sequence(sequence)
    await asyncio.sleep(0)
    assert (engine.load().used_states, engine.load().reserved_states) == (0, 0)
    await engine.stop()


class _Swarm:
    def __init__(self, folder: Path, exit: AsyncExitStack) -> None:
        self.folder, self.exit = folder, exit
        self.memory, self.store = MemoryNetwork(), MemoryStore()
        self.nodes: dict[str, Node] = {}

    async def serve(self, **spans: Span) -> None:
        for peer, span in spans.items():
            self.nodes[peer] = await start_node(
                self.folder,
                peer,
                span,
                kv_tokens=LENGTH,
                memory=self.memory,
                store=self.store,
                exit=self.exit,
                step_tokens=2048,
            )

    async def client(self) -> AsyncSwarmModel:
        client = real_client(self.folder, self.memory, self.store, wire_codec="int8")
        return await self.exit.enter_async_context(client)

    async def half_computed(self, peers: str) -> None:
        """Of a session of LENGTH tokens."""
        async with asyncio.timeout(120):
            while max(map(self.computed, peers)) < LENGTH // 2:  # noqa: ASYNC110  nodes tell nobody
                await asyncio.sleep(0.01)

    def computed(self, peer: str) -> int:
        """Tokens, in all batches so far."""
        statistics = self.nodes[peer].statistics()
        return 0 if statistics is None else statistics.engine.tokens


async def test_a_death_in_the_middle_of_a_long_prompt(tmp_path: Path) -> None:
    folder = write_tiny_hybrid(tmp_path, attends=0, max_position_embeddings=LENGTH)
    prompt = [1 + n * n % 400 for n in range(LENGTH - 40)]
    options = {"max_new_tokens": 8, "ignore_eos": True}
    async with AsyncExitStack() as exit_:
        swarm = _Swarm(folder, exit_)
        await swarm.serve(a=Span(0, 2), b=Span(2, 4), c=Span(2, 4))
        model = await swarm.client()
        answer = asyncio.create_task(model.generate_detailed(prompt, **options))
        await swarm.half_computed("bc")
        victim = max("bc", key=swarm.computed)
        before = swarm.computed("a")
        swarm.memory.kill(victim)
        disturbed = await answer
        (repair,) = disturbed.repaired
        assert (repair.kind, repair.lost) == ("replay", (victim,))
        assert repair.replayed_bytes_client == 0  # the hop before had all that it needed, and kept its own
        fed_again = swarm.computed("a") - len(prompt)
        assert fed_again <= 8 * 2048 + 8  # what was under way, from a state 512 tokens before, and the answer
        assert before > LENGTH // 2
        statistics = swarm.nodes["a"].statistics()
        assert statistics is not None
        assert (statistics.engine.total_slots, statistics.engine.used_slots) == (0, 0)
        assert statistics.engine.used_states == statistics.engine.reserved_states == 0
        undisturbed = await model.generate_detailed(prompt, **options)
    assert undisturbed.token_ids == disturbed.token_ids
