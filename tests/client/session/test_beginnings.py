"""Prompts that begin alike and come at once: what they share is computed once, and changes no token."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from swarm_node.client.session import beginnings
from swarm_node.client.session.beginnings import Beginnings, Feed
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
from tests.doubles.fake_swarm import BOS, FakeSwarm, expected, settle, until

SYSTEM = [BOS, *b"You are a patient captain who answers in short sentences, and never without a story. " * 2]
WHOLE = len(SYSTEM) // PAGE_TOKENS * PAGE_TOKENS
N = 4
OPTIONS: dict[str, Any] = {"max_new_tokens": N, "ignore_eos": True, "speculate": "off"}


def prompts(count: int) -> list[list[int]]:
    return [SYSTEM + [*f"{number}: why is the sea salt?".encode()] for number in range(count)]


def fed(swarm: FakeSwarm) -> dict[str, int]:
    return {peer: sum(step.tokens for step in node.steps) for peer, node in swarm.nodes.items()}


async def slow_swarm(**spans: str) -> FakeSwarm:
    """A prompt takes it several steps."""
    swarm = await FakeSwarm(**spans).start()
    for node in swarm.nodes.values():
        node.behaviour.max_step_tokens = PAGE_TOKENS
    return swarm


async def test_a_shared_beginning_is_fed_once() -> None:
    swarm = await slow_swarm(a="0-2", b="3-5")
    asked = prompts(5)
    async with swarm.client() as model:
        answers = await asyncio.gather(*(model.generate_detailed(ids, **OPTIONS) for ids in asked))
        assert [list(answer.token_ids) for answer in answers] == [expected(ids, N) for ids in asked]
        assert sorted(answer.cached_tokens for answer in answers) == [0, *[WHOLE] * 4]
        own = sum(len(ids) - WHOLE for ids in asked) + len(asked) * (N - 1)
        assert fed(swarm) == dict.fromkeys("ab", WHOLE + own)
        assert model._beginnings is not None
        assert not len(model._beginnings)


async def test_equal_prompts_are_fed_once() -> None:
    swarm = await slow_swarm(a="0-5")
    (ids,) = prompts(1)
    async with swarm.client() as model:
        answers = await asyncio.gather(*(model.generate_detailed(ids, **OPTIONS) for _ in range(4)))
    assert {answer.token_ids for answer in answers} == {tuple(expected(ids, N))}
    assert fed(swarm)["a"] == len(ids) + 3 * (len(ids) % PAGE_TOKENS) + 4 * (N - 1)


async def test_the_one_that_waits_goes_on_with_what_a_cancelled_one_has_fed() -> None:
    swarm = await slow_swarm(a="0-5")
    swarm.nodes["a"].behaviour.step_delay_s = 0.01
    first, second, third = prompts(3)
    async with swarm.client() as model:
        gone = asyncio.create_task(model.generate_detailed(first, **OPTIONS))
        await until(lambda: len(swarm.nodes["a"].steps) >= 2)
        others = [asyncio.create_task(model.generate_detailed(ids, **OPTIONS)) for ids in (second, third)]
        await settle()
        assert len(swarm.nodes["a"].opens) == 1  # they wait
        gone.cancel()
        answers = await asyncio.gather(*others)
    assert [list(answer.token_ids) for answer in answers] == [expected(ids, N) for ids in (second, third)]
    assert answers[1].cached_tokens == WHOLE  # fed by the second, who took the first one's place


async def test_a_hop_that_dies_while_others_wait() -> None:
    """The first one's route is repaired; everybody's tokens are as if nothing had happened."""
    swarm = await slow_swarm(a="0-2", b="3-5", spare="3-5")
    swarm.announce("spare", decode_ms_per_block=50.0)
    swarm.nodes["b"].behaviour.die_at_step = 3
    asked = prompts(4)
    async with swarm.client() as model:
        answers = await asyncio.gather(*(model.generate_detailed(ids, **OPTIONS) for ids in asked))
    assert [list(answer.token_ids) for answer in answers] == [expected(ids, N) for ids in asked]
    assert sum(answer.repairs for answer in answers) >= 1


async def test_without_a_prefix_cache_nobody_waits() -> None:
    swarm = await slow_swarm(a="0-5")
    asked = prompts(2)
    async with swarm.client(prefix_cache=False) as model:
        await asyncio.gather(*(model.generate_detailed(ids, **OPTIONS) for ids in asked))
    assert fed(swarm)["a"] == sum(map(len, asked)) + 2 * (N - 1)


async def test_a_feed_without_progress_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "STILL_S", 0.01)
    all_ = Beginnings()
    async with all_.feeding(SYSTEM), all_.feeding(SYSTEM):
        pass  # the second goes on by itself


async def test_who_waits_longest_takes_over_and_only_earlier_ones_are_waited_for() -> None:
    all_ = Beginnings()
    began: list[int] = []
    go_on = [asyncio.Event() for _ in range(3)]

    async def feed(number: int) -> None:
        async with all_.feeding(SYSTEM) as own:
            began.append(number)
            await go_on[number].wait()
            if number == 1:
                own.advance(len(SYSTEM))

    tasks = [asyncio.create_task(feed(number)) for number in range(3)]
    await settle()
    assert began == [0]
    go_on[0].set()  # it ends without having fed anything
    await settle()
    assert began == [0, 1]
    go_on[1].set()
    go_on[2].set()
    await asyncio.gather(*tasks)
    assert began == [0, 1, 2]
    assert not len(all_)


async def test_short_beginnings_are_not_waited_for() -> None:
    all_ = Beginnings()
    short = SYSTEM[: beginnings.LEAST_TOKENS - 1]
    async with all_.feeding(short), all_.feeding(short):
        assert not len(all_)


async def test_a_feed_that_is_ahead_is_not_waited_for() -> None:
    feed = Feed(0)
    feed.advance(64)
    assert await feed.reached(64)
    feed.end()
    assert await feed.reached(64)
    assert not await feed.reached(65)
