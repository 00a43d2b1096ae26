"""Nodes that take far longer than they say are left, and honest ones are not."""

from __future__ import annotations

from typing import Any

import pytest

from swarm_node.client.generation import Generation
from tests.doubles.fake_swarm import BOS, FakeSwarm, expected
from tests.doubles.virtual_time import in_virtual_time

PROMPT = [BOS, 3, 5]
LIE_S = 0.04
HONEST_S = 0.003
TOKENS = 50


@pytest.fixture(autouse=True)
def trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time runs faster in here."""
    monkeypatch.setattr("swarm_node.client.session.scout.TRIAL_PAUSE_S", 0.0)
    monkeypatch.setattr("swarm_node.client.hops.step_times.LOOK_S", 0.05)
    monkeypatch.setattr("swarm_node.client.routing.slow_search.LOOK_PAUSE_S", 0.0)
    monkeypatch.setattr("swarm_node.swarm.routing.slow_hop.FIXED_COST_S", 0.05)


async def _swarm(**spans: str) -> FakeSwarm:
    """Honest nodes that take HONEST_S a step, and say so; ``xa``, ``xb`` say that they take none."""
    swarm = await FakeSwarm(**spans).start()
    for name, node in swarm.nodes.items():
        node.behaviour.step_delay_s = LIE_S if name[0] == "x" else HONEST_S
        node.behaviour.told_us = 5 if name[0] == "x" else int(HONEST_S * 1e6)
        ms = HONEST_S * 1000 / len(node.span)
        swarm.announce(name, decode_ms_per_block=0.001 if name[0] == "x" else ms, prefill_tokens_per_s=1e4)
    return swarm


async def _answer(swarm: FakeSwarm, tokens: int = TOKENS) -> tuple[Generation, Generation]:
    """An answer, and the next of the same client."""
    async with swarm.client() as model:
        asked: dict[str, Any] = {"max_new_tokens": tokens, "ignore_eos": True}
        first = await model.generate_detailed(PROMPT, **asked)
        second = await model.generate_detailed(PROMPT, **asked)
    assert list(first.token_ids) == list(second.token_ids) == expected(PROMPT, tokens)
    return first, second


def _route(answer: Generation) -> list[str]:
    return [hop.peer_id for hop in answer.route.hops]


@in_virtual_time
async def test_one_that_says_microseconds_and_takes_long_is_left_within_an_answer() -> None:
    swarm = await _swarm(x="0-5", a="0-5")
    first, second = await _answer(swarm)
    assert [(repair.kind, repair.lost) for repair in first.repaired] == [("planned", ("x",))]
    assert _route(first) == _route(second) == ["a"]
    assert not second.repaired
    assert len(swarm.nodes["x"].steps) < TOKENS


@in_virtual_time
async def test_nobody_is_left_for_what_another_says_of_it() -> None:
    """The last hop of a chain could write into the times of those before it: no more than a step took."""
    swarm = await _swarm(a="0-2", b="0-2", c="3-5")
    swarm.announce("b", decode_ms_per_block=3.0, prefill_tokens_per_s=1e4)
    swarm.nodes["a"].behaviour.told_us = 300_000
    first, _ = await _answer(swarm)
    assert not first.repaired


@in_virtual_time
async def test_a_slow_one_stays_where_nobody_is_faster() -> None:
    for spans in ({"x": "0-5", "xx": "0-5"}, {"x": "0-2", "a": "3-5"}):
        async with (await _swarm(**spans)).client() as model:
            answer = await model.generate_detailed(PROMPT, max_new_tokens=20, ignore_eos=True)
        assert not answer.repaired


@in_virtual_time
async def test_honest_hops_are_neither_left_nor_taken_apart() -> None:
    swarm = await _swarm(a="0-2", b="3-5", c="0-2", d="3-5")
    assert not [answer.repaired for answer in await _answer(swarm) if answer.repaired]
    assert sum(len(node.replays) for node in swarm.nodes.values()) == 0


@in_virtual_time
async def test_in_a_chain_the_one_that_takes_long_is_found_and_the_others_are_chained_again() -> None:
    swarm = await _swarm(x="0-1", a="0-1", b="2-3", c="4-5")
    swarm.announce("a", decode_ms_per_block=3.0, prefill_tokens_per_s=1e4)
    async with swarm.client() as model:
        answer = await model.generate_detailed(PROMPT, max_new_tokens=150, ignore_eos=True)
    assert list(answer.token_ids) == expected(PROMPT, 150)
    assert _route(answer) == ["a", "b", "c"]
    assert [(repair.kind, repair.lost) for repair in answer.repaired] == [("planned", ("x",))]
    assert len(swarm.nodes["c"].steps[-1].spent) == 2, "it came through the other two"
