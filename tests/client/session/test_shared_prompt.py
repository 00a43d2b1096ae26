"""Several answers to one prompt: it is fed once, and each answer is the one that it would be alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.background import BackgroundLoop
from swarm_node.client.generation import Generation
from swarm_node.client.guided.guide import Guide
from swarm_node.client.routing.route_wait import Waiting
from swarm_node.client.swarm_model import SwarmModel
from swarm_node.swarm.errors import ErrorCode, UsageError
from swarm_node.swarm.protocol.messages import Refused
from tests.doubles.fake_swarm import BOS, FakeSwarm, expected, settle, until
from tests.doubles.virtual_time import in_virtual_time, now

PROMPT = [BOS, *b"A prompt of more than one page of tokens, which several answers are asked for."]
N = 8
GREEDY: dict[str, Any] = {"max_new_tokens": N, "ignore_eos": True, "speculate": "off"}
SAMPLED: list[dict[str, Any]] = [
    {**GREEDY, "temperature": 1.0, "seed": seed, "logprobs": 2, "repetition_penalty": 1.1}
    for seed in range(4)
]


async def alone(model: AsyncSwarmModel, answers: list[dict[str, Any]]) -> list[Generation]:
    return [await model.generate_detailed(PROMPT, **options) for options in answers]


async def together(model: AsyncSwarmModel, answers: list[dict[str, Any]]) -> list[Generation]:
    streams = model.streams(PROMPT, answers)  # type: ignore[arg-type]
    return list(await asyncio.gather(*(stream.finish() for stream in streams)))


def same(some: list[Generation], others: list[Generation]) -> bool:
    """The very same tokens. The toy head's rows depend on their neighbours in the last bit."""
    pairs = list(zip(some, others, strict=True))
    return all((one.token_ids, one.text) == (other.token_ids, other.text) for one, other in pairs) and all(
        choice.logprob == pytest.approx(twin.logprob, abs=1e-4)
        for one, other in pairs
        for choice, twin in zip(one.logprobs or (), other.logprobs or (), strict=True)
    )


def forks(swarm: FakeSwarm) -> dict[str, int]:
    return {peer: sum(open_.parent is not None for open_ in node.opens) for peer, node in swarm.nodes.items()}


@pytest.mark.parametrize("prefix_cache", [True, False])
async def test_the_prompt_is_fed_once(prefix_cache: bool) -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    async with swarm.client(prefix_cache=prefix_cache) as model:
        answers = await together(model, [GREEDY] * 4)
        await settle()
        assert not swarm.open_sessions
    assert [list(answer.token_ids) for answer in answers] == [expected(PROMPT, N)] * 4
    assert [answer.cached_tokens for answer in answers] == [0, *[len(PROMPT)] * 3]
    assert forks(swarm) == {"a": 3, "b": 3}
    for node in swarm.nodes.values():
        assert sum(step.tokens for step in node.steps) == len(PROMPT) + 4 * (N - 1)


@pytest.mark.parametrize("speculate", ["auto", "off"])
async def test_answers_are_those_of_one_alone(speculate: str) -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    options = [{**each, "speculate": speculate} for each in SAMPLED]
    async with swarm.client() as model:
        one_by_one = await alone(model, options)
        assert len({answer.token_ids for answer in one_by_one}) == 4
        assert same(await together(model, options), one_by_one)


async def test_guided_answers_are_those_of_one_alone() -> None:
    pytest.importorskip("llguidance")
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    guide = Guide("regex", "[a-c]{3,8}")
    options = [{**each, "guide": guide} for each in SAMPLED]
    async with swarm.client() as model:
        assert same(await together(model, options), await alone(model, options))


@pytest.mark.parametrize("peer", "ab")
@pytest.mark.parametrize("fault", ["refuses", "dies"])
async def test_a_hop_that_fails_at_the_fork_costs_no_token(peer: str, fault: str) -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5", c="0-2", d="3-5").start()
    for spare in "cd":
        swarm.announce(spare, decode_ms_per_block=50.0)
    behaviour = swarm.nodes[peer].behaviour
    async with swarm.client() as model:
        one_by_one = await alone(model, SAMPLED)
        streams = model.streams(PROMPT, SAMPLED)  # type: ignore[arg-type]
        first = streams[0].events()
        await anext(first)
        if fault == "refuses":
            behaviour.refuse = Refused(b"", ErrorCode.UNSUPPORTED, "no forks here")
        else:
            behaviour.die_at_open = True
        others = [asyncio.create_task(stream.finish()) for stream in streams[1:]]
        results = [await streams[0].finish(), *await asyncio.gather(*others)]
    assert same(results, one_by_one)


async def test_answers_may_begin_when_others_are_over() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    async with swarm.client() as model:
        one_by_one = await alone(model, SAMPLED)
        streams = model.streams(PROMPT, SAMPLED)  # type: ignore[arg-type]
        async with streams[0] as first:
            await anext(first.events())
            results = [await streams[1].finish()]  # from one that is in the middle of its answer
        results += [await streams[2].finish(), await streams[3].finish()]
    assert same(results, one_by_one[1:])


async def test_the_next_feeds_the_prompt_where_the_first_was_given_up() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    swarm.nodes["a"].behaviour.step_delay_s = 0.01
    async with swarm.client() as model:
        streams = model.streams(PROMPT, [GREEDY] * 3)  # type: ignore[list-item]
        tasks = [asyncio.create_task(stream.finish()) for stream in streams]
        await until(lambda: bool(swarm.nodes["a"].steps))
        tasks[0].cancel()
        answers = await asyncio.gather(*tasks[1:])
    assert [list(answer.token_ids) for answer in answers] == [expected(PROMPT, N)] * 2


async def test_answers_of_one_token_tell_their_route() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as model:
        streams = model.streams(PROMPT, [{**GREEDY, "max_new_tokens": 1}] * 2)  # type: ignore[list-item]
        answers = [await stream.finish() for stream in streams]  # the second's parent is closed by then
    assert [answer.route.hops[0].peer_id for answer in answers] == ["a", "a"]
    assert len({answer.token_ids for answer in answers}) == 1


async def test_raw_is_for_all_answers_or_none() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as model:
        with pytest.raises(UsageError, match="raw"):
            model.streams("hi", [{"raw": True}, {}])


async def test_a_chat_is_read_once() -> None:
    swarm = await FakeSwarm(a="0-5").start()
    async with swarm.client() as model:
        read = model.tokenizer.apply_chat_template
        times: list[int] = []

        def count(*args: Any, **options: Any) -> list[int]:
            times.append(1)
            return read(*args, **options)

        model.tokenizer.apply_chat_template = count  # type: ignore[method-assign]
        streams = model.streams("hi", [GREEDY] * 3)  # type: ignore[list-item]
        answers = await asyncio.gather(*(stream.finish() for stream in streams))
    assert len({answer.text for answer in answers}) == len(times) == 1


def test_the_client_without_an_event_loop_has_it_too() -> None:
    loop = BackgroundLoop()

    async def connect() -> tuple[FakeSwarm, AsyncSwarmModel]:
        swarm = await FakeSwarm(a="0-5").start()
        return swarm, swarm.client()

    swarm, core = loop.run(connect())
    with SwarmModel(loop, core) as model:
        streams = model.streams(PROMPT, [GREEDY] * 3)  # type: ignore[list-item]
        texts = ["".join(stream) for stream in streams]
    assert len(set(texts)) == 1
    assert sum(step.tokens for step in swarm.nodes["a"].steps) == len(PROMPT) + 3 * (N - 1)


@in_virtual_time
async def test_all_are_told_what_the_one_that_feeds_the_prompt_waits_for() -> None:
    """Also by another once the first was given up; and one that comes late."""
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    swarm.store.remove("b")
    told: dict[str, list[Waiting | None]] = {name: [] for name in ("first", "second", "late")}
    async with swarm.client(wait=60, router=swarm.router(clock=now)) as model:
        streams = model.streams(PROMPT, [{**GREEDY, "on_wait": told[name].append} for name in told])
        tasks = [asyncio.create_task(stream.finish()) for stream in streams[:2]]
        await until(lambda: all(told[name] for name in ("first", "second")))
        tasks.append(asyncio.create_task(streams[2].finish()))
        await until(lambda: bool(told["late"]))
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        count = len(told["late"])
        await until(lambda: len(told["late"]) > count)
        assert [stream.waiting is not None for stream in streams] == [False, True, True]
        swarm.announce("b")
        answers = await asyncio.gather(*tasks[1:])
        assert [stream.waiting for stream in streams] == [None] * 3
    assert [list(answer.token_ids) for answer in answers] == [expected(PROMPT, N)] * 2
    assert told["second"][-1] is None
    assert told["late"].count(None) == 1, "each is told once that it goes on"
    assert {str(waiting.missing[0]) for waiting in told["late"] if waiting is not None} == {"3-5"}
