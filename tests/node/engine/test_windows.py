"""Sessions over blocks with a window, on real nodes that hold no more of a session than its blocks see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.dht.memory import MemoryStore
from swarm_node.node.engine import step_plan
from swarm_node.node.node import Node
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span
from tests.doubles.real_node import real_client, start_node

pytestmark = pytest.mark.slow

WINDOW, CONTEXT, BATCH, HELD = 20, 1024, 64, 7
"""A session holds HELD pages: for a window, a batch, and what a client may take back."""
PROMPT = [3 + number * 7 % 290 for number in range(400)]


class Swarm:
    def __init__(self, folder: Path, exit: AsyncExitStack) -> None:
        self.folder, self.exit = folder, exit
        self.memory, self.store = MemoryNetwork(), MemoryStore()
        self.nodes: dict[str, Node] = {}

    async def serve(self, peer: str, span: Span) -> None:
        self.nodes[peer] = await start_node(
            self.folder,
            peer,
            span,
            kv_tokens=4 * CONTEXT,
            memory=self.memory,
            store=self.store,
            exit=self.exit,
            batch_tokens=BATCH,
        )

    def used(self, peer: str) -> int:
        statistics = self.nodes[peer].statistics()
        assert statistics is not None
        return statistics.engine.used_slots

    async def client(self) -> AsyncSwarmModel:
        return await self.exit.enter_async_context(real_client(self.folder, self.memory, self.store))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose four blocks see WINDOW tokens."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=CONTEXT,
        sliding_window=WINDOW,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("windowed")
    MistralForCausalLM(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture
async def swarm(windowed: Path) -> AsyncIterator[Swarm]:
    async with AsyncExitStack() as exit_stack:
        swarm = Swarm(windowed, exit_stack)
        await swarm.serve("a", Span(0, 2))
        await swarm.serve("b", Span(2, 4))
        yield swarm


async def fresh(model: AsyncSwarmModel, ids: list[int]) -> np.ndarray:
    """The last row of a session that was fed ``ids`` and nothing else."""
    session = model.session(CONTEXT)
    try:
        return await session.append(ids)
    finally:
        session.close()


async def test_a_session_holds_what_its_blocks_see_and_is_fed_anew_behind_that(swarm: Swarm) -> None:
    model, other = await swarm.client(), await swarm.client()
    session = model.session(CONTEXT)
    await session.append(PROMPT)
    assert (swarm.used("a"), swarm.used("b")) == (2 * HELD, 2 * HELD)
    session.rollback(len(PROMPT) - 60)  # a draft, or the end of an answer that is edited
    row = await session.append([5, 6])
    assert not session.repaired
    np.testing.assert_array_equal(row, await fresh(other, [*PROMPT[:-60], 5, 6]))
    session.rollback(100)  # behind the window and what may be taken back
    row = await session.append([7, 8])
    assert len(session.repaired) == 1
    np.testing.assert_array_equal(row, await fresh(other, [*PROMPT[:100], 7, 8]))
    row = await session.append(PROMPT[102:300])
    assert len(session.repaired) == 1
    np.testing.assert_array_equal(row, await fresh(other, [*PROMPT[:100], 7, 8, *PROMPT[102:300]]))
    session.close()


@pytest.mark.parametrize("pages_are_there", [True, False])
async def test_a_hop_begins_where_another_knows_less(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, pages_are_there: bool
) -> None:
    """It finds the pages that the lower place sees, or is fed anew."""
    if not pages_are_there:
        monkeypatch.setattr(step_plan, "begin_lower", lambda *_: False)
    model, other = await swarm.client(), await swarm.client()
    options = {"max_new_tokens": 4, "ignore_eos": True}
    begun = await model.generate_detailed(PROMPT, **options)
    assert begun.cached_tokens == 0
    again = await model.generate_detailed(PROMPT, **options)
    assert again.cached_tokens == len(PROMPT) // PAGE_TOKENS * PAGE_TOKENS
    await swarm.nodes["b"].stop()
    await swarm.serve("c", Span(2, 4))
    short, plain = [
        await each.generate_detailed(PROMPT[: 5 * PAGE_TOKENS], **options) for each in (model, other)
    ]
    assert short.token_ids == plain.token_ids
    assert short.repairs <= (not pages_are_there)  # by chance a's prompt ran ahead of its names
    answer = await model.generate_detailed(PROMPT, **options)
    assert answer.repairs == (0 if pages_are_there else 1)
    assert answer.cached_tokens == (
        0 if short.repairs else 5 * PAGE_TOKENS
    )  # what c computed has no names then
    assert answer.token_ids == again.token_ids == begun.token_ids
