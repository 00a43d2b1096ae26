"""The client and the real node, joined in one process over the in-memory network, on a tiny random model."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.generation import Generation
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.node import Node
from swarm_node.swarm.errors import BusyError, ErrorCode, ModelMismatchError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from swarm_node.swarm.protocol.messages import ErrorMessage
from swarm_node.swarm.routing.best_route import NoRouteError
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span
from tests.doubles.real_node import real_client, start_node
from tests.swarm.codecs.codec_cases import table_of

pytestmark = pytest.mark.slow

BLOCKS, CONTEXT, KV_TOKENS = 4, 256, 7 * PAGE_TOKENS
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

    async def serve(self, *, kv_tokens: int = KV_TOKENS, device: str = "cpu", **spans: Span) -> None:
        for peer, span in spans.items():
            self.nodes[peer] = await start_node(
                self.folder,
                peer,
                span,
                kv_tokens=kv_tokens,
                device=device,
                memory=self.memory,
                store=self.store,
                exit=self.exit,
            )

    async def client(self, **options: Any) -> AsyncSwarmModel:
        return await self.exit.enter_async_context(
            real_client(self.folder, self.memory, self.store, **options)
        )

    def prefilled(self, answer: Generation) -> set[int]:
        """How many tokens of the prompt each hop was fed."""
        return {hop.prefill.tokens for hop in answer.hops}

    async def no_sessions(self, peer: str) -> bool:
        """Whether the node gets to hold no session and no page of one, very soon."""
        for _ in range(200):
            statistics = self.nodes[peer].statistics()
            if statistics is not None and not statistics.server.sessions:
                return statistics.engine.used_slots == statistics.engine.reserved_slots == 0
            await asyncio.sleep(0.005)
        return False

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


@pytest.mark.parametrize("kind", ["f8", "int8s"])
async def test_a_kill_costs_no_token_when_rows_are_rounded(swarm: Swarm, kind: str) -> None:
    await swarm.serve(a=Span(0, 2), b=Span(2, 4), c=Span(2, 4))
    table = table_of(48) if kind == "int8s" else None
    for node in swarm.nodes.values():
        node.loaded.server.sessions.offer_scales(lambda group: table)
    model = await swarm.client(wire_codec="auto", prefix_cache=False)
    for peer in "abc":
        await (await model._links.get(peer)).welcome  # so the first session has its scales
    undisturbed = await model.generate_detailed(PROMPT, **OPTIONS)
    stream = model.stream(PROMPT, **OPTIONS)
    await anext(stream)
    victim = next(peer for peer in "bc" if swarm.nodes[peer].statistics().server.sessions)
    swarm.memory.kill(victim)
    answer = await stream.finish()
    assert answer.repairs == 1
    assert list(answer.token_ids) == list(undisturbed.token_ids)
    assert {hop.codec for hop in (*undisturbed.hops, *answer.hops)} == {kind}


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
    assert await swarm.free_kv("a", KV_TOKENS - 5 * PAGE_TOKENS)  # for 100 + 30 tokens
    await stream.aclose()
    assert await swarm.free_kv("a", KV_TOKENS)


async def test_a_full_node_is_waited_for(swarm: Swarm) -> None:
    await swarm.serve(a=Span(0, 4))
    model = await swarm.client(prefix_cache=False)  # or both would share what fits twice
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
    with pytest.raises((NoRouteError, BusyError), match=str(KV_TOKENS)):
        await model.generate(PROMPT, max_new_tokens=140)


ROOMY = 2000
"""Tokens of KV cache that hold every session of the tests below, and their pages."""


async def test_the_second_turn_of_a_chat_is_fed_only_what_is_new(swarm: Swarm) -> None:
    await swarm.serve(kv_tokens=ROOMY, a=Span(0, 2), b=Span(2, 4))
    model, forgetful = await swarm.client(), await swarm.client(prefix_cache=False)
    first = await model.generate_detailed(PROMPT, **OPTIONS)
    assert (first.cached_tokens, swarm.prefilled(first)) == (0, {len(PROMPT)})
    prompt = [*PROMPT, *first.token_ids, 7, 8, 9]
    second = await model.generate_detailed(prompt, **OPTIONS)
    assert second.cached_tokens == 128  # four pages of the 129 tokens that were fed
    assert swarm.prefilled(second) == {len(prompt) - 128}
    plain = await forgetful.generate_detailed(prompt, **OPTIONS)
    assert (plain.cached_tokens, swarm.prefilled(plain)) == (0, {len(prompt)})
    assert second.token_ids == plain.token_ids
    again = await model.generate_detailed(prompt[:96], **OPTIONS)  # whole pages: all but one token is there
    assert (again.cached_tokens, swarm.prefilled(again)) == (95, {1})
    assert again.token_ids == (await forgetful.generate_detailed(prompt[:96], **OPTIONS)).token_ids


async def test_one_salt_is_worth_nothing_to_another(swarm: Swarm) -> None:
    await swarm.serve(kv_tokens=ROOMY, a=Span(0, 4))
    for _ in range(2):
        answer = await (await swarm.client()).generate_detailed(PROMPT, **OPTIONS)
        assert answer.cached_tokens == 0


async def test_prompts_that_run_at_the_same_time_share_their_beginning(swarm: Swarm) -> None:
    await swarm.serve(kv_tokens=ROOMY, a=Span(0, 2), b=Span(2, 4))
    model = await swarm.client()
    leading = model.stream(PROMPT, **OPTIONS)
    await anext(leading)
    following = await model.generate_detailed([*PROMPT, 5], **OPTIONS)
    assert following.cached_tokens == 96
    assert list((await leading.finish()).token_ids) == swarm.tokens


async def test_a_survivor_of_a_repair_need_not_be_fed_again(swarm: Swarm) -> None:
    await swarm.serve(kv_tokens=ROOMY, a=Span(0, 4))
    model = await swarm.client()
    stream = model.stream(PROMPT, **OPTIONS)
    await anext(stream)
    for hop in stream._run._session._session.hops:  # as if the node had given the session up
        hop.deliver(ErrorMessage(hop.session, None, ErrorCode.SESSION_EXPIRED, "idle", True))
    answer = await stream.finish()
    assert list(answer.token_ids) == swarm.tokens
    assert answer.repairs == 1
    assert swarm.prefilled(answer) == {len(PROMPT) - 96}  # the token behind it is a step of its own


async def test_answers_side_by_side_are_those_made_alone(swarm: Swarm) -> None:
    await swarm.serve(kv_tokens=ROOMY, a=Span(0, 2), b=Span(2, 4))
    prompts = [PROMPT[number : number + 40 + number] for number in range(6)]
    alone = await swarm.client(prefix_cache=False)
    tokens = [(await alone.generate_detailed(prompt, **OPTIONS)).token_ids for prompt in prompts]
    for client in (alone, await swarm.client()):
        answers = await asyncio.gather(*(client.generate_detailed(prompt, **OPTIONS) for prompt in prompts))
        assert [answer.token_ids for answer in answers] == tokens
    assert client._heads.calls < client._heads.rows


async def test_cancelling_some_leaves_the_others_right(swarm: Swarm) -> None:
    await swarm.serve(kv_tokens=ROOMY, a=Span(0, 2), b=Span(2, 4))
    model = await swarm.client()
    tasks = [asyncio.create_task(model.generate_detailed(PROMPT, **OPTIONS)) for _ in range(6)]
    streams = [model.stream(PROMPT, **OPTIONS) for _ in range(2)]
    for stream in streams:
        await anext(stream)
    for task in tasks[::2]:
        task.cancel()
    await streams[0].aclose()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
    for answer in (*outcomes[1::2], await streams[1].finish()):
        assert list(answer.token_ids) == swarm.tokens  # type: ignore[union-attr]
    for peer in "ab":
        assert await swarm.no_sessions(peer)


async def test_a_link_that_dies_under_many_answers(swarm: Swarm) -> None:
    await swarm.serve(kv_tokens=ROOMY, a=Span(0, 2), b=Span(2, 4), c=Span(2, 4))
    model = await swarm.client()
    streams = [model.stream(PROMPT, **OPTIONS) for _ in range(5)]
    for stream in streams:
        await anext(stream)
    (victim,) = (peer for peer in "bc" if swarm.nodes[peer].statistics().server.sessions)
    swarm.memory.kill(victim)
    for answer in await asyncio.gather(*(stream.finish() for stream in streams)):
        assert list(answer.token_ids) == swarm.tokens
        assert answer.repairs == 1
    assert await swarm.no_sessions("a")


ROUTES = {
    1: {"a": Span(0, 4)},
    2: {"a": Span(0, 2), "b": Span(2, 4)},
    3: {"a": Span(0, 1), "b": Span(1, 3), "c": Span(3, 4)},
    4: {"a": Span(0, 1), "b": Span(1, 2), "c": Span(2, 3), "d": Span(3, 4)},
}
SPARES = {"a": "e", "b": "f", "c": "g", "d": "h"}


async def _chain(swarm: Swarm, hops: int, *, spares: bool = True) -> AsyncSwarmModel:
    """The route is the first that the client finds; the spares stand in."""
    spans = ROUTES[hops]
    await swarm.serve(kv_tokens=ROOMY, **spans)
    if spares:
        await swarm.serve(kv_tokens=ROOMY, **{SPARES[name]: span for name, span in spans.items()})
    return await swarm.client(prefix_cache=False)


@pytest.mark.parametrize("hops", [2, 4])
async def test_chained_equals_relayed(swarm: Swarm, hops: int) -> None:
    chained = await _chain(swarm, hops, spares=False)
    relayed = await swarm.client(prefix_cache=False, chain=False)
    for model, chains in ((chained, 1), (relayed, hops)):
        answer = await model.generate_detailed(PROMPT, **OPTIONS)
        assert list(answer.token_ids) == swarm.tokens
        assert len(answer.chains) == chains
        assert all(hop.decode.compute_s > 0 for hop in answer.hops)


@pytest.mark.parametrize(("hops", "victim"), [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
async def test_each_hop_of_a_chain_killed(swarm: Swarm, hops: int, victim: int) -> None:
    model = await _chain(swarm, hops)
    stream = model.stream(PROMPT, **OPTIONS)
    for _ in range(4):
        await anext(stream)
    route = stream._run._session.route
    swarm.memory.kill(route.hops[victim].peer_id)
    answer = await stream.finish()
    assert list(answer.token_ids) == swarm.tokens
    (repair,) = answer.repaired
    assert repair.kind == ("reopen" if hops == 1 else "replay")
    assert repair.lost == (route.hops[victim].peer_id,)
    if hops > 1:
        assert (repair.replayed_bytes_client > 0) == (victim == 0)
        kept = [hop for number, hop in enumerate(route.hops) if number != victim]
        assert kept == [hop for number, hop in enumerate(answer.route.hops) if number != victim]


async def test_two_neighbours_of_a_chain_killed_in_a_prefill(swarm: Swarm) -> None:
    model = await _chain(swarm, 3)
    task = asyncio.create_task(model.generate_detailed(PROMPT, **OPTIONS))
    victims: list[str] = []
    for _ in range(2000):
        victims = [name for name in swarm.nodes if swarm.nodes[name].statistics().server.sessions]
        if len(victims) == 3:
            break
        await asyncio.sleep(0.001)
    for name in sorted(victims)[:2]:
        swarm.memory.kill(name)
    answer = await task
    assert list(answer.token_ids) == swarm.tokens


async def test_a_frozen_hop_of_a_chain(swarm: Swarm) -> None:
    model = await _chain(swarm, 2)
    stream = model.stream(PROMPT, **OPTIONS)
    await anext(stream)
    frozen = stream._run._session.route.hops[1].peer_id
    for other in ("client", *swarm.nodes):
        if other != frozen:
            swarm.memory.partition(frozen, other)
    answer = await stream.finish()
    swarm.memory.heal()
    assert list(answer.token_ids) == swarm.tokens
    assert [repair.lost for repair in answer.repaired] == [(frozen,)]
    assert answer.repaired[0].seconds < 3


async def test_two_hops_of_a_chain_that_lose_each_other(swarm: Swarm) -> None:
    model = await _chain(swarm, 2, spares=False)
    stream = model.stream(PROMPT, **OPTIONS)
    await anext(stream)
    swarm.memory.partition("a", "b")  # silence between them, while both answer the client
    answer = await stream.finish()
    swarm.memory.heal()
    assert list(answer.token_ids) == swarm.tokens
    assert [repair.kind for repair in answer.repaired] == ["relay"]
    assert not model._router.health.statistics()


async def test_answers_to_one_prompt_share_its_pages(swarm: Swarm) -> None:
    """Also one that begins in the middle of another; and all pages are free in the end."""
    await swarm.serve(kv_tokens=16 * PAGE_TOKENS, a=Span(0, 2), b=Span(2, 4))
    model = await swarm.client()
    first, *others = model.streams(PROMPT, [OPTIONS] * 3)  # type: ignore[list-item]
    events = first.events()
    for _ in range(10):
        await anext(events)
    answers = [*await asyncio.gather(*(stream.finish() for stream in others)), await first.finish()]
    assert [list(answer.token_ids) for answer in answers] == [swarm.tokens] * 3
    assert [answer.cached_tokens for answer in answers] == [len(PROMPT)] * 2 + [0]
    for peer in "ab":
        assert await swarm.no_sessions(peer)


async def test_prompts_that_begin_alike_are_fed_once(swarm: Swarm) -> None:
    await swarm.serve(kv_tokens=40 * PAGE_TOKENS, a=Span(0, 2), b=Span(2, 4))
    model = await swarm.client()
    system = [3 + number * 7 % 290 for number in range(5 * PAGE_TOKENS)]
    asked = [[*system, *range(first, first + 10)] for first in (20, 40, 60)]
    options = {"max_new_tokens": 5, "ignore_eos": True}
    together = await asyncio.gather(*(model.generate_detailed(ids, **options) for ids in asked))
    assert [answer.cached_tokens for answer in together] == [0, len(system), len(system)]
    alone = [
        await (await swarm.client(prefix_cache=False)).generate_detailed(ids, **options) for ids in asked
    ]
    assert [one.token_ids for one in together] == [other.token_ids for other in alone]


async def test_a_fine_tune_serves_no_route_of_its_base(swarm: Swarm, tmp_path: Path) -> None:
    """It differs in one tensor of one block, and its node announces it as what it is."""
    await swarm.serve(a=Span(0, 2))
    base, swarm.folder = swarm.folder, fine_tuned(swarm.folder, tmp_path / swarm.folder.name)
    await swarm.serve(b=Span(2, 4))
    swarm.folder = base
    model = await swarm.client()
    with pytest.raises(NoRouteError, match="blocks 2-3"):
        await model.generate(PROMPT, **OPTIONS)


async def test_one_that_announces_itself_as_the_base_is_refused(swarm: Swarm, tmp_path: Path) -> None:
    await swarm.serve(a=Span(0, 2))
    base, swarm.folder = swarm.folder, fine_tuned(swarm.folder, tmp_path / swarm.folder.name)
    await swarm.serve(b=Span(2, 4))
    swarm.folder = base
    model = await swarm.client()
    lie = replace(swarm.nodes["b"].info(), model=model.model)
    await MemoryDirectory(swarm.store, "b").announce(lie)
    with pytest.raises(ModelMismatchError, match="digest") as raised:
        await model.generate(PROMPT, **OPTIONS)
    assert raised.value.hint


async def test_where_only_a_fine_tune_is_served_the_base_is_told_what_differs(
    swarm: Swarm, tmp_path: Path
) -> None:
    base, swarm.folder = swarm.folder, fine_tuned(swarm.folder, tmp_path / swarm.folder.name)
    await swarm.serve(a=Span(0, 4))
    swarm.folder = base
    model = await swarm.client()
    with pytest.raises(
        ModelMismatchError, match=r"another model is announced: .*; they differ in the weights"
    ):
        await model.generate(PROMPT, **OPTIONS)


def fine_tuned(folder: Path, copy: Path) -> Path:
    """Its value projection in the last block differs; what was sampled once did not."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.3.self_attn.v_proj.weight"] *= 1.5
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy
