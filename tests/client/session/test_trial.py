"""Peers that never worked for a client are tried beside what it does."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from swarm_node.client.session.scout import Scout
from swarm_node.client.session.trial import TRIAL_STEPS, _row_at, try_peer
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.errors import HopFailedError
from swarm_node.swarm.links.link import Patience
from swarm_node.swarm.links.pool import LinkPool
from swarm_node.swarm.types import Span
from tests.doubles.fake_swarm import BOS, BOUNDARIES, MODEL, FakeSwarm, ToyHead, until

X = ToyHead().embed([0])


@pytest.fixture(autouse=True)
def trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_node.client.session.scout.TRIAL_PAUSE_S", 0.0)


async def test_a_trial_measures_work_and_way() -> None:
    swarm = await FakeSwarm(0.005, a="0-5").start()
    swarm.nodes["a"].behaviour.step_delay_s = 0.03
    links = LinkPool(swarm.network.transport("client"), MODEL)
    tried = await try_peer(links, swarm.info("a"), X, "none", BOUNDARIES)
    assert 0.025 / 6 <= tried.block_s < 0.08 / 6
    assert 0.01 <= tried.round_trip_s < 0.04
    assert len(swarm.nodes["a"].steps) == TRIAL_STEPS
    await links.close()
    await until(lambda: not swarm.open_sessions)


def test_what_a_peer_in_the_middle_is_tried_with() -> None:
    boundaries = Boundaries((10, 8, 6, 4))
    x = np.arange(10, dtype=np.float32)[None]
    rows = [_row_at(boundaries, boundary, x)[0].tolist() for boundary in range(4)]
    assert rows == [[*range(10)], [0, 1, 2, 3, 6, 7, 8, 9], [0, 1, 2, 3, 8, 9], [0, 1, 2, 3]]


async def test_a_peer_is_tried_between_cuts() -> None:
    swarm = await FakeSwarm(a="1-4").start()
    swarm.nodes["a"].behaviour.step_delay_s = 0.03
    links = LinkPool(swarm.network.transport("client"), MODEL)
    cut = replace(BOUNDARIES, cuts=(0, 2, 4, 6))
    tried = await try_peer(links, swarm.info("a"), X, "none", cut)
    assert tried.block_s >= 0.025 / 2
    assert [request.span for request in swarm.nodes["a"].opens] == [Span(2, 4)]
    with pytest.raises(HopFailedError, match="no cut is in them"):
        await try_peer(links, swarm.info("a"), X, "none", replace(BOUNDARIES, cuts=(0, 3, 6)))
    await links.close()


@pytest.mark.parametrize(
    "wrong", [{"nan_at_step": 2}, {"die_at_step": 3}, {"busy_times": 1}, {"mute_at_step": 1}]
)
async def test_a_trial_that_is_not_passed(wrong: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_node.client.session.trial.TRIAL_S", 0.2)
    swarm = await FakeSwarm(a="0-5").start()
    for name, value in wrong.items():
        setattr(swarm.nodes["a"].behaviour, name, value)
    links = LinkPool(swarm.network.transport("client"), MODEL, patience=Patience(dial_s=1.0))
    with pytest.raises(HopFailedError):
        await try_peer(links, swarm.info("a"), X, "none", BOUNDARIES)
    await links.close()


async def test_reserves_are_found_while_an_answer_is_made() -> None:
    swarm = await FakeSwarm(a="0-5", b="0-5", c="0-5", d="0-5").start()
    for peer in "bcd":
        swarm.announce(peer, decode_ms_per_block=9.0)
    async with swarm.client() as model:
        router = model._router
        await model.generate([BOS, 3], max_new_tokens=3)
        await until(lambda: sum(map(router.is_proven, "abcd")) == 3)
        await asyncio.sleep(0.01)
        assert sum(map(router.is_proven, "abcd")) == 3, "that is enough"
        # newcomers wait for their trial, whatever they claim
        swarm.nodes["e"] = swarm.nodes["d"]
        swarm.announce("e", decode_ms_per_block=1e-3)
        await router._announcements.refresh()
        for _ in range(5):
            answer = await model.generate_detailed([BOS, 3], max_new_tokens=2)
            assert router.is_proven(answer.route.hops[0].peer_id)
        assert answer.route.hops[0].peer_id == "a"


async def test_trials_end_with_the_work_and_with_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_node.client.session.scout.TRIALS_S", 0.0)
    swarm = await FakeSwarm(a="0-5", b="0-5", c="0-5").start()
    async with swarm.client() as model:
        await model.generate([BOS, 3], max_new_tokens=1)
        scout: Scout = model._scout
        task = scout._trials
        assert task is not None
        await asyncio.wait_for(task, 1)
    assert sum(len(node.opens) for node in swarm.nodes.values()) <= 2
