"""Clients of real nodes whose model keeps states: they go back, fork, and share beginnings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

from scripts.lab.tiny_model import write_tiny_hybrid
from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.dht.memory import MemoryStore
from swarm_node.node.config import NodeConfig
from swarm_node.node.loaded_span import LoadedSpan
from swarm_node.node.node import Node
from swarm_node.node.resources import MemoryShortError
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span
from tests.doubles.real_node import real_client, start_node

pytestmark = pytest.mark.slow

CONTEXT = 1024
PROMPT = [3 + number * 7 % 90 for number in range(300)]


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_hybrid(tmp_path_factory.mktemp("hybrid"))


@pytest.fixture
async def nodes(hybrid: Path) -> AsyncIterator[tuple[dict[str, Node], AsyncSwarmModel, AsyncSwarmModel]]:
    """Two nodes, and two clients that share nothing."""
    async with AsyncExitStack() as stack:
        memory, store = MemoryNetwork(), MemoryStore()
        shared = {"kv_tokens": 4 * CONTEXT, "memory": memory, "store": store, "exit": stack}
        nodes = {
            "a": await start_node(hybrid, "a", Span(0, 2), **shared),
            "b": await start_node(hybrid, "b", Span(2, 4), **shared),
        }
        clients = [await stack.enter_async_context(real_client(hybrid, memory, store)) for _ in range(2)]
        yield nodes, *clients
        for node in nodes.values():
            load = node.statistics().engine
            assert (load.sequences, load.used_states, load.reserved_states) == (0, 0, 0)


async def fresh(model: AsyncSwarmModel, ids: list[int]) -> np.ndarray:
    """The last row of a session that was fed ``ids`` and nothing else."""
    session = model.session(512)
    try:
        return await session.append(ids)
    finally:
        session.close()


async def test_a_session_goes_back_within_what_is_held_and_is_fed_anew_behind_that(nodes) -> None:
    served, model, other = nodes
    session = model.session(512)
    await session.append(PROMPT)
    assert served["a"].statistics().engine.used_states == 4  # one block of two keeps states, of four pages
    session.rollback(len(PROMPT) - 33)
    row = await session.append([5, 6])
    assert not session.repaired
    np.testing.assert_allclose(row, await fresh(other, [*PROMPT[:-33], 5, 6]), atol=1e-5)
    session.rollback(100)
    row = await session.append([7, 8])
    np.testing.assert_allclose(row, await fresh(other, [*PROMPT[:100], 7, 8]), atol=1e-5)
    session.close()


async def test_an_answer_goes_on_from_a_prompt_that_is_known(nodes) -> None:
    _, model, other = nodes
    options = {"max_new_tokens": 40, "ignore_eos": True}
    begun = await model.generate_detailed(PROMPT, **options)
    again = await model.generate_detailed(PROMPT, **options)
    assert (begun.cached_tokens, again.cached_tokens) == (0, 288)
    chat = [*PROMPT, *again.token_ids, 9, 9, 9]
    more = await model.generate_detailed(chat, **options)
    assert more.cached_tokens == 320
    plain = await other.generate_detailed(chat, **options)
    assert more.token_ids == plain.token_ids
    assert not more.repairs


async def test_a_node_without_memory_for_states_says_what_to_do(hybrid, monkeypatch) -> None:
    monkeypatch.setattr("swarm_node.node.loaded_span.available_memory", lambda _: 10_000)
    config = NodeConfig(str(hybrid), kv_cache_tokens=64, dtype="float32", quantize="none")
    with open_checkpoint(str(hybrid)) as checkpoint, pytest.raises(MemoryShortError) as short:
        await LoadedSpan.load(config, checkpoint, Span(0, 2), threads=1)
    assert "states" in short.value.message
    assert "--kv-cache-tokens" in short.value.hint
