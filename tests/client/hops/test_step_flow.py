"""Steps sent ahead of their results, of which some turn out to be void: the rows are those of a session that
went step by step, and hops hear of void steps no more than they need."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from swarm_node.client.hops.route_session import RouteSession
from swarm_node.client.hops.state import Condition
from swarm_node.swarm.errors import HopFailedError
from swarm_node.swarm.links.pool import LinkPool
from swarm_node.swarm.protocol.messages import Void
from swarm_node.swarm.types import Hop, Route, Span
from tests.doubles.fake_swarm import FAST, MODEL, N_BLOCKS, VOCAB, FakeSwarm, ToyHead, run_block
from tests.doubles.virtual_time import in_virtual_time, now

HOPS = {"a": "0-1", "b": "2-3", "c": "4-5"}
PROMPT = list(b"a prompt")
EMBED = ToyHead().embed


def computed_alone(ids: list[int]) -> np.ndarray:
    """(tokens, hidden) of a session that is fed nothing else."""
    x = EMBED(ids)
    for block in range(N_BLOCKS):
        x = run_block(block, x, [])
    return x


async def opened(swarm: FakeSwarm, *, chain: bool = True) -> RouteSession:
    await swarm.start()
    links = LinkPool(swarm.network.transport("client"), MODEL, patience=FAST)
    route = Route(tuple(Hop(peer, Span.parse(text)) for peer, text in HOPS.items()))
    session = await RouteSession.open(links, route, swarm.settings(chain=chain))
    await session.forward(EMBED(PROMPT), 0)
    return session


class Answer:
    """Tokens of one session, of which the first ``judged`` are certain. ``sent``: how many each step under
    way has; ``began``: where the oldest of them begins."""

    def __init__(self, session: RouteSession) -> None:
        self.session = session
        self.ids = list(PROMPT)
        self.sent: list[int] = []
        self.began = len(PROMPT)

    def send(self, ids: list[int]) -> None:
        self.session.post(EMBED(ids), len(self.ids))
        self.ids += ids
        self.sent.append(len(ids))

    async def receive(self) -> None:
        got, count = await self.session.receive(), self.sent.pop(0)
        end = self.began + count
        assert np.array_equal(got, computed_alone(self.ids[:end])[self.began :])
        self.began = end

    def go_back(self, length: int) -> None:
        """To at most what was received."""
        del self.ids[length:]
        self.sent.clear()
        self.began = length
        self.session.rollback(length)


async def random_rounds(swarm: FakeSwarm, answer: Answer, rng: Random, rounds: int) -> None:
    for _ in range(rounds):
        swarm.network.latency = rng.choice([0.0, 0.001, 0.03])
        for node in swarm.nodes.values():
            node.behaviour.step_delay_s = rng.choice([0.0, 0.002, 0.02])
        start = len(answer.ids)
        for _ in range(rng.randint(1, 9)):
            answer.send([rng.randrange(VOCAB) for _ in range(rng.randint(1, 8))])
        for _ in range(rng.randint(1, len(answer.sent))):
            await answer.receive()
        if answer.sent or rng.random() < 0.5:
            answer.go_back(rng.randint(max(len(PROMPT), start - 9), answer.began))
        if len(answer.ids) > 60:
            answer.go_back(len(PROMPT))


@pytest.mark.slow
@pytest.mark.parametrize("features", [None, ()])
@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("keeps_states", [False, True])
@in_virtual_time
async def test_rows_are_right_however_the_voids_fall(features, chain: bool, keeps_states: bool) -> None:
    for seed in range(3):
        swarm = FakeSwarm(**HOPS)
        swarm.nodes["b"].behaviour.features = features
        for node in swarm.nodes.values():
            node.behaviour.keeps_states = keeps_states
        session = await opened(swarm, chain=chain)
        answer = Answer(session)
        await random_rounds(swarm, answer, Random(seed), 12)
        assert [hop.state.condition for hop in session.hops] == [Condition.WORKING] * 3
        told = [len(node.voids) for node in swarm.nodes.values()]
        if features is None:
            assert len(set(told)) == 1
            assert told[0] > 2
        else:
            assert told == [0, 0, 0]
            assert not any(step.void for node in swarm.nodes.values() for step in node.steps)
        session.close()
        await session.links.close()


@in_virtual_time
async def test_every_hop_hears_once_of_what_is_under_way() -> None:
    swarm = FakeSwarm(latency=0.01, **HOPS)
    session = await opened(swarm)
    answer = Answer(session)
    first = swarm.nodes["a"].steps[-1].step + 1
    for _ in range(5):
        answer.send([1, 2, 3])
    await answer.receive()
    await answer.receive()
    answer.go_back(len(PROMPT) + 4)  # two rows of what came are of no use either
    assert session.void_rows == 2 + 9
    answer.send([7])
    await answer.receive()
    answer.go_back(len(PROMPT) + 2)
    answer.send([8])
    await answer.receive()
    for hop in session.hops:
        node = swarm.nodes[hop.peer_id]
        assert node.voids == [Void(hop.session, first + 2, first + 4)]
    # Hops that are fed by others hear it from them, too; the others' streams keep the order.
    voids = {peer: [step.void for step in node.steps if step.void] for peer, node in swarm.nodes.items()}
    assert voids == {"a": [first + 2], "b": [first + 2], "c": [first + 2]}
    assert session.void_rows == 2 + 9 + 3
    session.close()


@in_virtual_time
async def test_void_steps_stay_void_until_a_result_says_that_it_is_known() -> None:
    """What tells of them may itself be void before it is sent on."""
    swarm = FakeSwarm(latency=0.01, **HOPS)
    session = await opened(swarm)
    answer = Answer(session)
    first = swarm.nodes["a"].steps[-1].step + 1
    for _ in range(3):
        for _ in range(2):
            answer.send([1, 2, 3])
        answer.go_back(len(PROMPT))
    answer.send([4])
    await answer.receive()
    assert [step.void for step in swarm.nodes["a"].steps[-7:]] == [0, 0, first, 0, first, 0, first]
    assert swarm.nodes["c"].steps[-1].void == first
    answer.send([5])
    answer.send([5])
    answer.go_back(answer.began)
    answer.send([6])
    await answer.receive()
    assert swarm.nodes["c"].steps[-1].void == first + 7
    session.close()


@pytest.mark.parametrize("features", [None, ()])
@in_virtual_time
async def test_a_hop_that_works_is_not_convicted_for_void_steps(features) -> None:
    """Steps take longer than a link waits before it asks where they are."""
    swarm = FakeSwarm(latency=0.01, **HOPS)
    swarm.nodes["b"].behaviour.step_delay_s = 10 * FAST.ping_after_s
    for node in swarm.nodes.values():
        node.behaviour.features = features
    session = await opened(swarm)
    answer = Answer(session)
    for _ in range(8):
        for _ in range(6):
            answer.send([1, 2, 3])
        await answer.receive()
        answer.go_back(answer.began - 1)
        answer.send([4])
        await answer.receive()
    assert swarm.nodes["b"].pings > 10
    assert [hop.state.condition for hop in session.hops] == [Condition.WORKING] * 3
    session.close()


@pytest.mark.parametrize("peer", HOPS)
@in_virtual_time
async def test_a_hop_that_falls_silent_is_found_behind_void_steps(peer: str) -> None:
    swarm = FakeSwarm(latency=0.01, **HOPS)
    session = await opened(swarm)
    answer = Answer(session)
    for _ in range(6):
        answer.send([1, 2, 3])
    await answer.receive()
    swarm.nodes[peer].mute()
    answer.go_back(answer.began - 1)
    answer.send([4])
    with pytest.raises(HopFailedError) as failed:
        await answer.receive()
    assert failed.value.peer_id == peer
    session.close()


async def rows_for_nothing(features: tuple[str, ...] | None, slow_s: float) -> tuple[int, float]:
    """Rows that the three hops compute beyond those of the steps that were judged, and the seconds for the
    answer: 12 rounds of 8 steps, of which the third is wrong. 5 ms between any two, and 5 ms a step at the
    hops, but ``slow_s`` at the last one."""
    swarm = FakeSwarm(latency=0.005, **HOPS)
    for peer, node in swarm.nodes.items():
        node.behaviour.step_delay_s = slow_s if peer == "c" else 0.005
        node.behaviour.features = features
    session = await opened(swarm)
    answer, began, before = Answer(session), now(), swarm_rows(swarm)
    for _ in range(12):
        for _ in range(8):
            answer.send([5] * 8)
        for _ in range(3):
            await answer.receive()
        answer.go_back(answer.began - 4)
        if len(answer.ids) > 150:
            answer.go_back(len(PROMPT))
    seconds = now() - began
    session.close()
    return swarm_rows(swarm) - before - 12 * 3 * 8 * 3, seconds


def swarm_rows(swarm: FakeSwarm) -> int:
    return sum(node.engine.load().tokens for node in swarm.nodes.values())


@pytest.mark.parametrize(("slow_s", "gain"), [(0.005, 1.0), (0.02, 1.5)])
@in_virtual_time
async def test_hops_compute_less_for_nothing_where_they_hear_of_it(slow_s: float, gain: float) -> None:
    """And where a hop is slow, the next round does not wait behind what is void."""
    told, told_s = await rows_for_nothing(None, slow_s)
    untold, untold_s = await rows_for_nothing((), slow_s)
    assert told < 0.8 * untold
    assert untold_s > gain * told_s - 1e-3
