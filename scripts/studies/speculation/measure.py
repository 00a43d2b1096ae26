"""Plain and speculative decoding in turns, over nodes in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from statistics import median
from typing import Any

import torch
import uvloop

from swarm_node.client import AsyncSwarmModel
from swarm_node.client.generation import Generation
from swarm_node.client.local_model import LocalModel, load_local_model
from swarm_node.client.network import ClientNetwork
from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.config import NodeConfig
from swarm_node.node.node import Node
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span

from ...lab.wan_lab.spec.stand_in import KnownAnswer, StandIn
from .prompts import PROMPTS

WAYS = 3
"""From the client to the first hop, to the second, and back."""
STAND_IN = StandIn((0.8,))
"""In a draft model's place: the answer itself, wrong one time in five, and free."""


def measure(**options: Any) -> list[dict[str, Any]]:
    return uvloop.run(_measure(**options))


async def _measure(
    *,
    which: int,
    model: str,
    draft: str | None,
    round_trip_ms: float,
    new_tokens: int,
    repeat: int,
    threads: int,
    wire_codec: str,
) -> list[dict[str, Any]]:
    """The prompt number ``which``: by itself, with a draft model's stand-in, and with a draft model."""
    torch.set_num_threads(threads)
    memory, store = MemoryNetwork(round_trip_ms / 1000 / WAYS), MemoryStore()
    local = await asyncio.to_thread(load_local_model, model, threads=threads, draft=draft)
    real_draft, local = local.draft, replace(local, draft=None)
    answers: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        middle = local.ref.n_blocks // 2
        for name, span in (("first", Span(0, middle)), ("second", Span(middle, local.ref.n_blocks))):
            node = Node(
                NodeConfig(model=model, blocks=span, threads=threads, kv_cache_tokens=8192),
                lambda _: None,
                network=GivenNetwork(memory.transport(name), MemoryDirectory(store)),
            )
            stack.push_async_callback(node.stop)
            await node.start()

        async def client(local: LocalModel, name: str) -> AsyncSwarmModel:
            network = ClientNetwork(GivenNetwork(memory.transport(name), MemoryDirectory(store)))
            return await stack.enter_async_context(
                AsyncSwarmModel(local, network, wire_codec=wire_codec, prefix_cache=False)
            )

        kept = replace(local, close=lambda: None)
        usual = await client(local, "client")
        usual_options: dict[str, Any] = {"max_new_tokens": new_tokens, "ignore_eos": True}
        await usual.generate("Warm up, please.", **usual_options)
        group, name, prompt, own = PROMPTS[which]
        options = {**usual_options, **own}
        plain, answer = await _in_turns(usual, usual, prompt, options, repeat)
        answers.append({"group": group, "name": name, **_compared(plain, answer)})
        known = await client(replace(kept, draft=KnownAnswer(plain[0].token_ids, STAND_IN)), "known")
        plain, answer = await _in_turns(usual, known, prompt, options, repeat)
        answers.append({"group": "draft", "name": f"{name}, 80 % right", **_compared(plain, answer)})
        if real_draft is not None:
            drafting = await client(replace(kept, draft=real_draft), "drafting")
            plain, answer = await _in_turns(usual, drafting, prompt, options, repeat)
            answers.append({"group": "draft model", "name": name, **_compared(plain, answer)})
    return answers


async def _in_turns(
    plain: AsyncSwarmModel, other: AsyncSwarmModel, prompt: Any, options: dict[str, Any], repeat: int
) -> tuple[list[Generation], list[Generation]]:
    without, with_ = [], []
    for _ in range(repeat):
        without.append(await plain.generate_detailed(prompt, speculate="off", **options))
        with_.append(await other.generate_detailed(prompt, **options))
    return without, with_


def _compared(plain: Sequence[Generation], answers: Sequence[Generation]) -> dict[str, Any]:
    """Medians, and the ratio of each pair that ran one after the other."""
    speeds = [[answer.timings.tokens_per_s for answer in side] for side in (plain, answers)]
    ratios = [with_ / without for without, with_ in zip(*speeds, strict=True)]
    counts = [answer.speculated for answer in answers]
    return {
        "plain_tokens_per_s": median(speeds[0]),
        "tokens_per_s": median(speeds[1]),
        "times": median(ratios),
        "ratios": ratios,
        "passes": median(told.passes for told in counts),
        "drafted": median(told.drafted for told in counts),
        "accepted": median(told.accepted for told in counts),
        "draft_s": median(told.draft_s for told in counts),
        "identical": len({answer.token_ids for answer in (*plain, *answers)}) == 1,
    }
