"""One model of every family over three chained hops, with all that happens to a session there: the tokens are
those of transformers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from swarm_node.dht.memory import MemoryStore
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span
from tests.client.session.test_with_real_nodes import ROOMY, Swarm
from tests.shards.families.cases import CASES
from tests.shards.families.models import saved

pytestmark = pytest.mark.slow

PROMPT_TOKENS, NEW_TOKENS = 38, 10
"""Together less than the context of the small models; the prompt is longer than a page."""


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """Without its cache where steps have limits: transformers 5.23 forgets these after the prompt."""
    cached = tuple(getattr(model.config, "time_step_limit", UNLIMITED)) == UNLIMITED
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=None,
            use_cache=cached,
        )
    return list(output[0, len(prompt) :].tolist())


UNLIMITED = (0.0, float("inf"))
NOT_OF_TRANSFORMERS = {"phimoe-long"}
"""transformers 5.23 keeps the short factors for texts beyond the trained length. The model's own code and
llama.cpp take the long ones, and so do we."""


@pytest.fixture(params=[case for case in CASES if case not in NOT_OF_TRANSFORMERS])
async def swarm(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Swarm]:
    """``folder`` of the case's model, and the ``tokens`` that transformers gives after ``prompt_of`` it."""
    model, folder = saved(request.param, tmp_path)
    vocab = model.config.get_text_config().vocab_size
    tokens = greedy(model, prompt_of(vocab))
    threads = torch.get_num_threads()
    async with AsyncExitStack() as exit_stack:
        yield Swarm(folder, tokens, exit_stack, MemoryNetwork(), MemoryStore(), {})
    torch.set_num_threads(threads)


def prompt_of(vocab: int) -> list[int]:
    return [token * 7 % vocab for token in range(PROMPT_TOKENS)]


async def test_a_session_through_three_hops(swarm: Swarm) -> None:
    client = await swarm.client()
    prompt = prompt_of(client._local.vocab_size)
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    cuts = client._local.head.config.cuts
    blocks, near, far = cuts[-1], cuts[1], cuts[2]
    spans = {"a": Span(0, near), "b": Span(near, far), "c": Span(far, blocks)}
    await swarm.serve(kv_tokens=ROOMY, **spans)

    first = await client.generate_detailed(prompt, **options)
    assert list(first.token_ids) == swarm.tokens
    assert (len(first.hops), len(first.chains)) == (3, 1)

    for stream in client.streams(prompt, [options, {**options, "speculate": "off"}]):
        again = await stream.finish()
        assert list(again.token_ids) == swarm.tokens
        assert again.cached_tokens == 32

    session = client.session(PROMPT_TOKENS + NEW_TOKENS, prompt_tokens=PROMPT_TOKENS)
    await session.append([*prompt, *swarm.tokens[:3], 1, 2, 3])
    twin = await session.fork()
    for each in (session, twin):
        each.rollback(PROMPT_TOKENS - 5)
        for at, expected in enumerate(swarm.tokens[:6]):
            hidden = await each.append([swarm.tokens[at - 1]] if at else prompt[-5:])
            assert int(client._local.head.logits(hidden)[0].argmax()) == expected
        each.close()

    stream = client.stream(prompt, **options)
    await anext(stream)
    await swarm.serve(kv_tokens=ROOMY, d=Span(near, blocks))
    swarm.memory.kill("b")
    repaired = await stream.finish()
    assert list(repaired.token_ids) == swarm.tokens
    assert repaired.repairs == 1
