"""Routes over nodes that compute with torch and nodes that compute with MLX: the tokens are the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from swarm_node.swarm.types import Span
from tests.client.session.test_with_real_nodes import CONTEXT, OPTIONS, PROMPT, ROOMY, Swarm, swarm, tiny
from tests.shards.families.models import small_model

pytestmark = pytest.mark.slow

__all__ = ["swarm", "tiny"]  # fixtures


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """As ``tiny``, of three blocks with Gated DeltaNet and one with attention."""
    folder = tmp_path_factory.mktemp("hybrid")
    model = small_model("qwen3_5_text", num_hidden_layers=4, vocab_size=300, max_position_embeddings=CONTEXT)
    model.save_pretrained(folder)
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([PROMPT]),
            max_new_tokens=OPTIONS["max_new_tokens"],
            min_new_tokens=OPTIONS["max_new_tokens"],
            do_sample=False,
            eos_token_id=None,
        )
    return folder, output[0, len(PROMPT) :].tolist()


@pytest.fixture(params=["tiny", "hybrid"])
def swarm_of(request: pytest.FixtureRequest, swarm: Swarm) -> Swarm:
    swarm.folder, swarm.tokens = request.getfixturevalue(request.param)
    return swarm


async def test_torch_mlx_torch(swarm: Swarm) -> None:
    await swarm.serve(a=Span(0, 1), c=Span(3, 4))
    await swarm.serve(device="mlx", b=Span(1, 3))
    model = await swarm.client()
    answer = await model.generate_detailed(PROMPT, **OPTIONS)
    assert list(answer.token_ids) == swarm.tokens
    assert [hop.peer_id for hop in answer.hops] == ["a", "b", "c"]
    serving = swarm.nodes["b"].loaded
    assert serving is not None
    assert (serving.kernels, serving.weights, serving.kv_dtype) == ("mlx cpu", "float32", "float32")
    assert serving.measured.decode_ms_per_block > 0
    assert serving.measured.prefill_tokens_per_s > 0
    assert await swarm.no_sessions("b")


async def test_one_device_takes_over_from_the_other(swarm_of: Swarm) -> None:
    swarm = swarm_of
    await swarm.serve(kv_tokens=ROOMY, a=Span(0, 2))
    await swarm.serve(kv_tokens=ROOMY, device="mlx", b=Span(2, 4))
    model = await swarm.client(prefix_cache=False)
    stream = model.stream(PROMPT, **OPTIONS)
    for lost, spare, device in (("b", "c", "cpu"), ("c", "d", "mlx")):
        for _ in range(5):
            await anext(stream)
        await swarm.serve(kv_tokens=ROOMY, device=device, **{spare: Span(2, 4)})
        swarm.memory.kill(lost)
    answer = await stream.finish()
    assert list(answer.token_ids) == swarm.tokens
    assert answer.repairs == 2


async def test_many_answers_through_two_mlx_nodes_of_one_process(swarm: Swarm) -> None:
    """Two compute threads, batches of several sessions, and pages of prompts seen before."""
    await swarm.serve(kv_tokens=ROOMY, device="mlx", a=Span(0, 2), b=Span(2, 4))
    prompts = [PROMPT, PROMPT[:40], PROMPT, [*PROMPT, 5]]
    model = await swarm.client()
    answers = await asyncio.gather(*(model.generate_detailed(prompt, **OPTIONS) for prompt in prompts))
    assert [list(answer.token_ids) for answer in answers[::2]] == [swarm.tokens] * 2
    again = await model.generate_detailed([*PROMPT, 5], **OPTIONS)
    assert again.cached_tokens == 96
    assert again.token_ids == answers[3].token_ids
