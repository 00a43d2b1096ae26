"""Answers with guesses of the model's own block are those without, over real nodes: where that guesses at
random, and where it is always right."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from swarm_node.client.drafting.drafting_thread import DraftingThread
from swarm_node.client.drafting.next_guesses import NextModel
from swarm_node.client.generation import Generation
from swarm_node.dht.memory import MemoryStore
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span
from tests.client.session.test_with_real_nodes import ROOMY, Swarm
from tests.doubles.oracle import send_all
from tests.shards.behind import following, gguf_with_behind, with_behind

pytestmark = pytest.mark.slow

CASES = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "deepseek_v3", "glm4_moe", "glm4_moe_lite")
GGUF_CASES = ("qwen3_5_text", "qwen3_5_moe_text", "glm4_moe")
PROMPT, VOCAB, NEW_TOKENS = [11], 61, 24
"""One token, so that the text of a model that is always right has nothing to guess from."""


@pytest.fixture(autouse=True)
def drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is drafted is sent, and is there at once: what is drafted must never matter."""

    async def run(self: DraftingThread, work: Callable[[], object]) -> object:
        return work()

    send_all(monkeypatch)
    monkeypatch.setattr(DraftingThread, "run", run)


@pytest.fixture
async def exit_stack() -> AsyncIterator[AsyncExitStack]:
    threads = torch.get_num_threads()
    async with AsyncExitStack() as exit_stack:
        yield exit_stack
    torch.set_num_threads(threads)


async def both(path: Path, exit_stack: AsyncExitStack, **sampling: Any) -> tuple[Generation, Generation]:
    """An answer over two hops with guesses, and without."""
    swarm = Swarm(path, [], exit_stack, MemoryNetwork(), MemoryStore(), {})
    client = await swarm.client()
    assert isinstance(client._local.draft, NextModel)
    cuts = client._local.head.config.cuts
    await swarm.serve(kv_tokens=ROOMY, a=Span(0, cuts[1]), b=Span(cuts[1], cuts[-1]))
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True, **sampling}
    with_guesses = await client.generate_detailed(PROMPT, **options)
    return with_guesses, await client.generate_detailed(PROMPT, **options, speculate="off")


@pytest.mark.parametrize("case", CASES)
async def test_wrong_guesses_change_nothing(case: str, tmp_path: Path, exit_stack: AsyncExitStack) -> None:
    with_behind(case, tmp_path)
    for sampling in ({}, {"temperature": 0.8, "seed": 3}):
        drafted, plain = await both(tmp_path, exit_stack, **sampling)
        assert drafted.token_ids == plain.token_ids
        assert drafted.speculated.drafted > drafted.speculated.accepted


def assert_right(drafted: Generation, plain: Generation) -> None:
    tokens = [PROMPT[-1]]
    while len(tokens) <= NEW_TOKENS:
        tokens.append(following(tokens[-1], VOCAB))
    assert list(drafted.token_ids) == list(plain.token_ids) == tokens[1:]
    assert len({*tokens}) == len(tokens)  # so nothing is found in the text
    told = drafted.speculated
    assert told.accepted > NEW_TOKENS / 2
    assert all(each.judged == each.right for each in told.kinds)
    assert drafted.speculated.passes < NEW_TOKENS / 4


@pytest.mark.parametrize("case", CASES)
async def test_a_block_that_is_right_saves_passes(
    case: str, tmp_path: Path, exit_stack: AsyncExitStack
) -> None:
    with_behind(case, tmp_path, right=True)
    assert_right(*await both(tmp_path, exit_stack))


@pytest.mark.parametrize("case", GGUF_CASES)
async def test_a_block_of_a_gguf_file_that_is_right_saves_passes(
    case: str, tmp_path: Path, exit_stack: AsyncExitStack
) -> None:
    path = gguf_with_behind(case, tmp_path, right=True)[1]
    assert_right(*await both(path, exit_stack))
