"""The client and the real node, joined in one process over the in-memory network, on a tiny random model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fake_swarm import ToyTokenizer

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.local_model import LocalModel
from swarm_node.client.network import ClientNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.network import GivenNetwork
from swarm_node.node.serve import Node, NodeConfig
from swarm_node.shards.autoselect import LoadOptions
from swarm_node.shards.checkpoint import open_checkpoint
from swarm_node.shards.client_model import load_client_model
from swarm_node.swarm.errors import BusyError
from swarm_node.swarm.memory import MemoryNetwork
from swarm_node.swarm.routing import NoRouteError
from swarm_node.swarm.types import Span

BLOCKS, CONTEXT, KV_TOKENS = 4, 256, 200
PROMPT = list(range(3, 103))
OPTIONS = {"max_new_tokens": 30, "ignore_eos": True}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A folder with the model, and transformers' greedy continuation of PROMPT."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=30, min_new_tokens=30, do_sample=False, eos_token_id=None
        )
    return folder, output[0, len(PROMPT) :].tolist()


@dataclass
class Swarm:
    folder: Path
    tokens: list[int]
    exit: AsyncExitStack
    memory: MemoryNetwork
    store: MemoryStore
    nodes: dict[str, Node]

    async def serve(self, **spans: Span) -> None:
        for peer, span in spans.items():
            config = NodeConfig(
                model=str(self.folder),
                blocks=span,
                dtype="float32",
                quantize="none",
                threads=1,
                kv_cache_tokens=KV_TOKENS,
                max_step_tokens=16,
            )
            network = GivenNetwork(self.memory.transport(peer), MemoryDirectory(self.store))
            node = Node(config, lambda _: None, network=network)
            self.exit.push_async_callback(node.stop)
            await node.start()
            self.nodes[peer] = node

    async def client(self) -> AsyncSwarmModel:
        checkpoint = open_checkpoint(str(self.folder))
        config = checkpoint.config
        head = load_client_model(checkpoint, LoadOptions(dtype="float32", quantize="none"))
        local = LocalModel(
            checkpoint.ref,
            config.hidden_size,
            config.vocab_size,
            config.max_position_embeddings,
            head,
            ToyTokenizer(),
            checkpoint.close,
        )
        network = ClientNetwork(self.memory.transport("client"), MemoryDirectory(self.store))
        return await self.exit.enter_async_context(AsyncSwarmModel(local, network, wire_codec="none"))

    async def free_kv(self, peer: str, tokens: int) -> bool:
        """Whether the node gets to have so many tokens of KV cache free, very soon."""
        for _ in range(200):
            statistics = self.nodes[peer].statistics()
            if statistics is not None and statistics.server.free_kv_tokens == tokens:
                return True
            await asyncio.sleep(0.005)
        return False


@pytest.fixture
async def swarm(tiny: tuple[Path, list[int]]) -> AsyncIterator[Swarm]:
    threads = torch.get_num_threads()
    async with AsyncExitStack() as exit_stack:
        yield Swarm(*tiny, exit_stack, MemoryNetwork(), MemoryStore(), {})
    torch.set_num_threads(threads)


async def test_tokens_are_those_of_transformers(swarm: Swarm) -> None:
    await swarm.serve(a=Span(0, 2), b=Span(1, 4))
    model = await swarm.client()
    answer = await model.generate_detailed(PROMPT, **OPTIONS)
    assert list(answer.token_ids) == swarm.tokens
    assert len(answer.hops) == 2
    for hop in answer.hops:
        assert (hop.decode.steps, hop.prefill.tokens) == (29, len(PROMPT))
        assert hop.decode.compute_s > 0
    assert await swarm.free_kv("a", KV_TOKENS)


async def test_a_hop_killed_mid_stream_costs_no_token(swarm: Swarm) -> None:
    await swarm.serve(a=Span(0, 2), b=Span(2, 4), c=Span(2, 4))
    model = await swarm.client()
    stream = model.stream(PROMPT, **OPTIONS)
    await anext(stream)
    victim = next(peer for peer in "bc" if swarm.nodes[peer].statistics().server.sessions)
    swarm.memory.kill(victim)
    answer = await stream.finish()
    assert list(answer.token_ids) == swarm.tokens
    assert answer.repairs == 1
    assert await swarm.free_kv("a", KV_TOKENS)


async def test_a_node_that_leaves_hands_over(swarm: Swarm) -> None:
    await swarm.serve(a=Span(0, 4), b=Span(0, 4))
    model = await swarm.client()
    stream = model.stream(PROMPT, **OPTIONS)
    await anext(stream)
    leaving = next(peer for peer in "ab" if swarm.nodes[peer].statistics().server.sessions)
    await swarm.nodes[leaving].stop()
    answer = await stream.finish()
    assert list(answer.token_ids) == swarm.tokens
    assert answer.repairs == 1


async def test_closing_frees_the_kv_cache_at_once(swarm: Swarm) -> None:
    await swarm.serve(a=Span(0, 4))
    model = await swarm.client()
    stream = model.stream(PROMPT, **OPTIONS)
    await anext(stream)
    assert await swarm.free_kv("a", KV_TOKENS - len(PROMPT) - 30)
    await stream.aclose()
    assert await swarm.free_kv("a", KV_TOKENS)


async def test_a_full_node_is_waited_for(swarm: Swarm) -> None:
    await swarm.serve(a=Span(0, 4))
    model = await swarm.client()
    first = model.stream(PROMPT, **OPTIONS)
    await anext(first)
    second = asyncio.create_task(model.generate_detailed(PROMPT, **OPTIONS))
    await asyncio.sleep(0.05)
    assert not second.done()
    await first.aclose()
    assert list((await second).token_ids) == swarm.tokens


async def test_more_than_the_swarm_can_ever_hold(swarm: Swarm) -> None:
    await swarm.serve(a=Span(0, 4))
    model = await swarm.client()
    with pytest.raises((NoRouteError, BusyError), match="200"):
        await model.generate(PROMPT, max_new_tokens=140)
