"""Hops are told which rows are guesses, and tell what a row takes there."""

from __future__ import annotations

import asyncio

import pytest

from swarm_node.client.drafting.price import price_on
from swarm_node.node.engine.engine import Engine
from tests.doubles.chain_case import ChainCase
from tests.doubles.fake_swarm import BOS
from tests.doubles.virtual_time import in_virtual_time

PROMPT = [BOS, *b"Tell me."]


@pytest.mark.parametrize("chain", [True, False])
@in_virtual_time
async def test_only_the_first_row_of_a_round_is_certain(chain: bool) -> None:
    case = await ChainCase(3, spares=False, latency=0.01).start()
    async with case.client(chain=chain) as model:
        session = model.session(100, prompt_tokens=len(PROMPT))
        await session.append(PROMPT)
        fed = [len(node.steps) for node in case.swarm.nodes.values()]
        for ids in (b"abc", b"de", b"f"):
            session.send(list(ids))
        await session.receive()
        session.rollback(len(PROMPT) + 2)
        for ids in (b"v", b"wxy"):
            session.send(list(ids))
        await session.receive()
        await session.receive()
        session.send(list(b"z"))
        await session.receive()
        session.close()
    for before, node in zip(fed, case.swarm.nodes.values(), strict=True):
        told = [(step.position - len(PROMPT), step.tokens, step.guess) for step in node.steps[before:]]
        void = {(3, 2, 2), (5, 1, 1)}
        assert [each for each in told if each not in void] == [(0, 3, 2), (2, 1, 0), (3, 3, 3), (6, 1, 0)]


@in_virtual_time
async def test_what_a_row_takes_is_asked_where_guesses_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "row_us", property(lambda self: 400))
    case = await ChainCase(3, spares=False, latency=0.01).start()
    async with case.client() as model:
        session = model.session(400, prompt_tokens=len(PROMPT))
        await session.append(PROMPT)
        for token in b"plain":
            await session.append([token])
        assert sum(node.pings for node in case.swarm.nodes.values()) == 0
        for _ in range(100):
            session.send(list(b"ab"))
            await session.receive()
        await asyncio.sleep(1)
        session.send(list(b"ab"))
        await session.receive()
        hops = session.hops
        assert [hop.load.row_s for hop in hops] == pytest.approx([0.0004] * 3)
        assert [hop.load.sessions for hop in hops] == [1.0] * 3
        assert price_on(hops, 0.06) == pytest.approx(3 * 0.0004 / 0.06)
        assert 1 <= case.swarm.nodes["ha"].pings <= 3  # in 5 seconds
        session.close()
