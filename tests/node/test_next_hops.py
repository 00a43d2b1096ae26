"""Links to next hops: who pays for what they have not taken, and what a step on its way may cost."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from chain_swarm import rows, swarm_of, until

from swarm_node.node.next_hops import UNCOUNTED_BYTES, NextHop
from swarm_node.node.quotas import Ledger, Limits
from swarm_node.swarm.connection import Connection
from swarm_node.swarm.errors import ErrorCode, PeerError, StreamClosedError
from swarm_node.swarm.link import NodeLink
from swarm_node.swarm.messages import (
    ErrorMessage,
    Hello,
    Open,
    Opened,
    Result,
    Step,
    Want,
    Welcome,
)
from swarm_node.swarm.types import Span
from swarm_node.swarm.wire import DEFAULT_MAX_FRAME, PROTOCOL_ID

PLACES = [("a", Span(0, 2)), ("b", Span(2, 4))]
SPANS = {"a": Span(0, 4), "b": Span(0, 4)}


class SlowLink:
    """A stream that takes nothing until it is told to."""

    name = "peer slow"

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.broken = False
        self.posted: list[Step] = []

    def post(self, step: Step) -> None:
        self.posted.append(step)

    async def drain(self) -> None:
        await self.room.wait()
        if self.broken:
            raise StreamClosedError("gone")

    def join(self, session, user) -> None:
        pass

    leave = join


def step(size: int) -> Step:
    return Step(b"s" * 16, 1, 0, 1, Want.ALL, payload=bytes(size))


@pytest.mark.parametrize("broken", [False, True])
async def test_what_a_slow_hop_does_not_take_is_charged_until_it_does(broken):
    ledger = Ledger(Limits(queued_bytes_per_peer=1000))
    one, other = ledger.connect("one"), ledger.connect("other")
    link = SlowLink()
    link.broken = broken
    hop = NextHop(link, 512, ledger)
    hop.post(step(UNCOUNTED_BYTES), one)
    hop.post(step(600), one)
    assert (one.queued_bytes, one.room.is_set()) == (0, True)  # some seconds of decode steps cost nothing
    hop.post(step(800), one)
    hop.post(step(800), one)
    hop.post(step(300), other)
    assert (one.queued_bytes, other.queued_bytes) == (1600, 300)
    assert (one.room.is_set(), other.room.is_set()) == (False, True)
    link.room.set()
    await until(lambda: one.room.is_set())
    assert (one.queued_bytes, other.queued_bytes) == (0, 0)
    hop.post(step(600), one)
    assert one.queued_bytes == 0


def test_a_session_over_there_is_fed_by_one():
    hop = NextHop(SlowLink(), 512, Ledger(Limits()))
    hop.join(b"s" * 16, None)
    with pytest.raises(PeerError, match="fed by another"):
        hop.join(b"s" * 16, None)
    hop.leave(b"s" * 16)
    hop.leave(b"s" * 16)
    hop.join(b"s" * 16, None)


async def test_a_decode_step_starts_no_task_and_sets_no_timer(tiny_span, hidden_states, monkeypatch):
    async with swarm_of(tiny_span, SPANS) as swarm:
        hops = await swarm.chain(PLACES)
        x = hidden_states(60)
        counts = {"tasks": 0, "timers": 0}

        def counted(what, function):
            def call(*args, **more):
                counts[what] += 1
                return function(*args, **more)

            return call

        for number in range(60):
            if number == 20:
                loop = asyncio.get_running_loop()
                monkeypatch.setattr(loop, "create_task", counted("tasks", loop.create_task))
                monkeypatch.setattr(NodeLink, "_wake_in", counted("timers", NodeLink._wake_in))
            await hops[0].step(number, number, rows(x[number : number + 1]), 1)
            await hops[1].result(number)
        assert counts["tasks"] == 0
        assert counts["timers"] < 10  # the link looks up now and then, however many steps pass


async def test_a_client_that_reads_no_results_is_fed_no_further(tiny_span, hidden_states):
    """Its results wait at the last hop, while others bring the steps: that must have an end."""
    limits = Limits(queued_bytes_per_peer=200_000)
    async with swarm_of(tiny_span, SPANS, limits=limits) as swarm:
        server = swarm.servers["b"]
        owner = Connection(await swarm.network.transport("deaf").open_stream("b", PROTOCOL_ID))
        await owner.send(Hello((1,), "", ("none",), DEFAULT_MAX_FRAME, "test"))
        assert isinstance(await owner.receive(), Welcome)
        session = b"s" * 16
        await owner.send(Open(session, Span(0, 4), 200, "none", "none", upstream="feeder"))
        assert isinstance(await owner.receive(), Opened)
        feeder = await swarm.connect("b", "feeder")
        payload, steps = rows(hidden_states(200)), 0
        (connection,) = [each for each in server._connections if each.peer_id == "deaf"]

        def settled(number: int) -> bool:
            flushed = not server.engine.queued and not connection._outgoing
            return flushed and server.sessions[session].hop.last_step == number

        while connection.takes_answers:
            steps += 1
            await feeder.send(Step(session, steps, 0, 200, Want.ALL, payload=payload))
            await until(partial(settled, steps))
            for _ in range(5):  # what the stream still has room for is taken meanwhile
                await asyncio.sleep(0)
        computed = server.engine.load().tokens
        for _ in range(3):
            steps += 1
            await feeder.send(Step(session, steps, 0, 200, Want.ALL, payload=payload))
        got = []
        while len(got) < steps:
            got.append(await owner.receive())
        assert all(isinstance(message, Result) for message in got[:-3])
        assert all(
            isinstance(message, ErrorMessage) and message.code is ErrorCode.OVERLOADED for message in got[-3:]
        )
        assert server.engine.load().tokens == computed
        assert steps < 60
        await until(lambda: connection.takes_answers)
        await feeder.send(Step(session, steps + 1, 0, 200, Want.LAST, payload=payload))
        assert (await owner.receive()).tokens == 1
        owner.close()
