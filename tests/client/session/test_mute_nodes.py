"""A node that answers PING and leaves a request lie costs at most three seconds, once a client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.swarm.links.timers import IDLE_S
from swarm_node.swarm.protocol.messages import Attach, Hello, Open, Ping, Replay, Step, encode
from swarm_node.swarm.protocol.wire import PROTOCOL_ID, encode_frame
from swarm_node.swarm.timeouts import COLD_LEAST_S, Patience
from swarm_node.swarm.transport.interface import Stream
from tests.doubles.chain_case import CHUNK, GREEDY, PROMPT, ChainCase
from tests.doubles.fake_node import Behaviour, Claims, FakeNode
from tests.doubles.virtual_time import VirtualLoop, run

MOST_S = 3.0
PLACES = [(1, 0, True), (3, 0, True), (3, 1, True), (3, 2, True), (3, 1, False), (3, 2, False)]
"""(hops, which of them, whether they are chained)."""
N = 8


class Case(ChainCase):
    """With patient defaults and a virtual clock."""

    def __init__(self, hops: int, loop: VirtualLoop, **options: Any) -> None:
        super().__init__(hops, **options)
        self.loop = loop
        self.router = self.swarm.router(clock=loop.time)

    def client(self, **options: Any) -> AsyncSwarmModel:
        return super().client(**{"patience": Patience(), **options})

    async def seconds(self, model: AsyncSwarmModel) -> float:
        """That an answer took; it is right."""
        began = self.loop.time()
        answer = await model.generate_detailed(PROMPT, max_new_tokens=N, ignore_eos=True)
        assert list(answer.token_ids) == GREEDY[:N]
        return self.loop.time() - began


def play(
    monkeypatch: pytest.MonkeyPatch,
    hops: int,
    number: int,
    change: Callable[[Behaviour], None],
    *,
    chain: bool = True,
    latency: float = 0.001,
) -> tuple[float, float]:
    """Seconds of the first answer, and of the next of the same client, with one hop changed."""
    loop = VirtualLoop()

    async def work() -> tuple[float, float]:
        case = await Case(hops, loop, latency=latency).start()
        change(case.swarm.nodes[case.names[number]].behaviour)
        async with case.client(chain=chain) as model:
            first = await case.seconds(model)
            for node in case.swarm.nodes.values():
                node.opens.clear()
            second = await case.seconds(model)
            assert not case.swarm.nodes[case.names[number]].opens
            return first, second

    return run(monkeypatch, work(), loop)


@pytest.mark.parametrize(("hops", "number", "chain"), PLACES)
@pytest.mark.parametrize(
    ("swallows", "claims"),
    [
        (Hello, Claims.NOTHING),
        (Open, Claims.NOTHING),
        (Step, Claims.NOTHING),
        (Step, Claims.NEVER_CAME),
        (Step, Claims.ANSWERED),
    ],
)
def test_it_costs_three_seconds_once(
    monkeypatch: pytest.MonkeyPatch, swallows: type, claims: Claims, hops: int, number: int, chain: bool
) -> None:
    def change(behaviour: Behaviour) -> None:
        behaviour.swallows, behaviour.claims = frozenset({swallows}), claims

    first, second = play(monkeypatch, hops, number, change, chain=chain)
    assert 0.2 < first <= MOST_S
    assert second < 0.3


@pytest.mark.parametrize("latency", [0.001, 0.03])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_that_falls_mute_in_mid_answer(
    monkeypatch: pytest.MonkeyPatch, number: int, latency: float
) -> None:
    loop = VirtualLoop()

    async def work() -> None:
        case = await Case(3, loop, latency=latency).start()
        behaviour = case.swarm.nodes[case.names[number]].behaviour

        async def fall_mute() -> None:
            behaviour.swallows, behaviour.claims = frozenset({Step}), Claims.NOTHING

        began = loop.time()
        answer = await case.disturbed((6, fall_mute))
        assert case.blamed == {case.names[number]}
        (repair,) = answer.repaired
        assert repair.seconds < MOST_S
        assert loop.time() - began < 40 * 8 * latency + MOST_S

    run(monkeypatch, work(), loop)


@pytest.mark.parametrize(("number", "swallows"), [(0, Replay), (2, Attach)])
def test_one_that_is_mute_when_the_route_is_mended(
    monkeypatch: pytest.MonkeyPatch, number: int, swallows: type
) -> None:
    loop = VirtualLoop()

    async def work() -> None:
        case = await Case(3, loop, latency=0.001).start()

        async def lose_one() -> None:
            case.swarm.nodes[case.names[number]].behaviour.swallows = frozenset({swallows})
            case.kill("hb")

        began = loop.time()
        await case.disturbed((6, lose_one))
        assert case.blamed == {"hb", case.names[number]}
        assert loop.time() - began < MOST_S

    run(monkeypatch, work(), loop)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_honest_node_may_be_slow(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A first step of many seconds, as where kernels are compiled, and steps that take some. Nobody else is
    there."""
    loop = VirtualLoop()

    async def work() -> None:
        case = await Case(3, loop, latency=0.001, spares=False).start()
        behaviour = case.swarm.nodes[case.names[number]].behaviour
        behaviour.step_delay_s = 20.0
        loop.call_later(19.0, setattr, behaviour, "step_delay_s", 5.0)
        async with case.client() as model:
            assert await case.seconds(model) > 20 + 5 * N
        assert not case.blamed

    run(monkeypatch, work(), loop)


def test_a_swarm_that_is_slow_to_begin_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node needs 12 s for whatever it is sent in its first half minute: others are tried, and none is
    given up for ever."""
    loop = VirtualLoop()

    async def work() -> None:
        case = await Case(2, loop, latency=0.001).start()
        for node in case.swarm.nodes.values():
            node.behaviour.step_delay_s = 12.0
            loop.call_later(30.0, setattr, node.behaviour, "step_delay_s", 0.0)
        async with case.client() as model:
            assert 12 < await case.seconds(model) < 90
            assert await case.seconds(model) < 0.3

    run(monkeypatch, work(), loop)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_that_pretends_to_work_is_left_where_others_are_there(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def change(behaviour: Behaviour) -> None:
        behaviour.swallows = frozenset({Step})

    first, second = play(monkeypatch, 3, number, change)
    assert first <= MOST_S
    assert second < 0.3


def test_one_that_pretends_to_work_is_given_up_where_nobody_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = VirtualLoop()

    async def work() -> None:
        case = await Case(3, loop, latency=0.001, spares=False).start()
        behaviour = case.swarm.nodes["hb"].behaviour
        behaviour.swallows = frozenset({Step})
        loop.call_later(COLD_LEAST_S, setattr, behaviour, "swallows", frozenset())
        async with case.client() as model:
            assert COLD_LEAST_S < await case.seconds(model) < COLD_LEAST_S + 5
        assert case.blamed == set()  # it has answered since

    run(monkeypatch, work(), loop)


@pytest.mark.parametrize("cut_off", [("hb",), ("ha", "hc")])
def test_nodes_that_were_there_and_cannot_be_dialled_any_more(
    monkeypatch: pytest.MonkeyPatch, cut_off: tuple[str, ...]
) -> None:
    """As computers that were switched off: nobody says that nobody is there."""
    loop = VirtualLoop()

    async def work() -> None:
        case = await Case(3, loop, latency=0.001).start()
        async with case.client() as model:
            await case.seconds(model)
            await asyncio.sleep(IDLE_S + 1)  # its links end
            for name in cut_off:
                case.swarm.network.partition("client", name)
            assert await case.seconds(model) <= MOST_S
            assert await case.seconds(model) < 0.3

    run(monkeypatch, work(), loop)


def test_a_replacement_that_cannot_be_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = VirtualLoop()

    async def work() -> None:
        case = await Case(3, loop, latency=0.001).start()
        swarm = case.swarm
        node = swarm.nodes["tb"] = FakeNode("tb", swarm.nodes["sb"].span, swarm.network)
        node.behaviour.max_step_tokens = CHUNK
        await swarm.network.transport("tb").serve(PROTOCOL_ID, node.handle)
        swarm.announce("tb", decode_ms_per_block=900.0)
        swarm.network.partition("client", "sb")

        async def lose_one() -> None:
            case.kill("hb")

        began = loop.time()
        answer = await case.disturbed((6, lose_one))
        assert [repair.lost for repair in answer.repaired] == [("hb",)]
        assert loop.time() - began <= MOST_S
        assert node.steps

    run(monkeypatch, work(), loop)


def test_a_trickle_of_bytes_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node sends the first bytes of a frame, one a second, and its client goes elsewhere."""
    loop = VirtualLoop()

    async def work() -> None:
        case = await Case(1, loop, latency=0.001).start()

        async def drip(stream: Stream) -> None:
            for byte in encode_frame(encode(Ping(1)))[0]:
                stream.write([bytes([byte])])
                await asyncio.sleep(1.0)

        await case.swarm.network.transport("ha").serve(PROTOCOL_ID, drip)
        async with case.client() as model:
            assert await case.seconds(model) <= MOST_S
        assert case.blamed == {"ha"}

    run(monkeypatch, work(), loop)
