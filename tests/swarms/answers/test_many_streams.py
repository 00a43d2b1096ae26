"""Many answers at once, in float32 through real processes: each has the tokens it has alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.local_swarm import LocalSwarm
from scripts.lab.processes.fork_server import ForkServer
from swarm_node.client import AsyncSwarmModel
from tests.swarms.harness import EXACT, ONE_THREAD, Cli, exact_client

pytestmark = [pytest.mark.swarm, pytest.mark.model]

PROMPTS = [
    "What is the capital of France?",
    "Count from 1 to 20.",
    "def fibonacci(n):",
    "Summarize this: " + "The ship sailed on through the night while the crew kept watch. " * 14,
    "Ünïcödé, emoji 🎉 and   spaces:",
    "Who wrote Moby Dick, and when?",
    "Repeat after me: " + "one two three four five six seven eight nine ten. " * 8,
    "Hi",
]
NEW_TOKENS = 12


async def _ask(model: AsyncSwarmModel, prompt: Any, new_tokens: int = NEW_TOKENS) -> Any:
    return await model.generate_detailed(prompt, max_new_tokens=new_tokens, ignore_eos=True)


async def _one_by_one(swarm: LocalSwarm, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    async with exact_client(swarm, prefix_cache=False) as model:
        return [(await _ask(model, prompt)).token_ids for prompt in prompts]


@pytest.fixture(scope="module")
def alone(exact_swarm: LocalSwarm) -> list[tuple[int, ...]]:
    """Each prompt's answer while nobody else asks, without a prefix cache."""
    return asyncio.run(_one_by_one(exact_swarm, PROMPTS))


async def test_side_by_side_and_one_by_one_give_the_same_tokens(
    exact_swarm: LocalSwarm, alone: list[tuple[int, ...]]
) -> None:
    async with exact_client(exact_swarm) as model:
        for _ in range(2):  # the second time every prompt is in the prefix cache, too
            answers = await asyncio.gather(*(_ask(model, prompt) for prompt in PROMPTS))
            assert [answer.token_ids for answer in answers] == alone
            assert [answer.repairs for answer in answers] == [0] * len(PROMPTS)


async def test_a_second_turn_is_fed_only_what_is_new_and_answers_the_same(exact_swarm: LocalSwarm) -> None:
    first = [{"role": "user", "content": PROMPTS[3]}]

    async def turns(model: AsyncSwarmModel) -> tuple[Any, Any]:
        opened = await _ask(model, first)
        answer = {"role": "assistant", "content": opened.text}
        return opened, await _ask(model, [*first, answer, {"role": "user", "content": "And then?"}])

    async with exact_client(exact_swarm, prefix_cache=False) as model:
        expected = await turns(model)
    async with exact_client(exact_swarm) as model:
        found = await turns(model)
    assert [turn.token_ids for turn in found] == [turn.token_ids for turn in expected]
    prompt = len(found[1].prompt_token_ids)
    for hop in expected[1].hops:
        assert hop.prefill.tokens == prompt
    for hop in found[1].hops:  # on all hops, whole pages of the first turn's prompt at least
        assert hop.prefill.tokens <= prompt - (len(found[0].prompt_token_ids) // 32) * 32


async def test_another_client_finds_nothing_of_it(exact_swarm: LocalSwarm) -> None:
    async with exact_client(exact_swarm) as model:
        await _ask(model, PROMPTS[6])
        again = await _ask(model, PROMPTS[6])
    async with exact_client(exact_swarm) as stranger:
        theirs = await _ask(stranger, PROMPTS[6])
    assert again.hops[0].prefill.tokens < len(again.prompt_token_ids)
    assert [hop.prefill.tokens for hop in theirs.hops] == [len(theirs.prompt_token_ids)] * 3
    assert theirs.token_ids == again.token_ids


async def test_native_and_torch_kernels_give_the_same_tokens(
    smollm2_path: Path, fork_server: ForkServer, alone: list[tuple[int, ...]]
) -> None:
    options = [*ONE_THREAD, *EXACT]
    with LocalSwarm(
        smollm2_path,
        ["0-29"],
        serve_options=options,
        environment={"SWARM_NODE_NATIVE": "0"},
        launch=fork_server.launch,
    ) as plain:
        assert await _one_by_one(plain, PROMPTS[:5]) == alone[:5]


def test_smaller_keys_and_values_still_know_the_capital(
    smollm2_path: Path, fork_server: ForkServer, cli: Cli
) -> None:
    with LocalSwarm(smollm2_path, [], serve_options=ONE_THREAD, launch=fork_server.launch) as swarm:
        kv_dtypes = {"0-9": "float16", "10-19": "bfloat16", "20-29": "int8"}
        nodes = [
            swarm.start_node(blocks, "--kv-dtype", kv_dtype, wait=False)
            for blocks, kv_dtype in kv_dtypes.items()
        ]
        online = [swarm.wait_online(node) for node in nodes]
        assert [event["kv_dtype"] for event in online] == list(kv_dtypes.values())
        done = cli("generate", "--model", swarm.model, "--initial-peers", swarm.initial_peers[0], PROMPTS[0])
    assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n"), done.stderr
