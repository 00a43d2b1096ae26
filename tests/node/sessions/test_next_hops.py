"""Links to next hops: who pays for what they have not taken, and what a step on its way may cost."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace

import pytest

from swarm_node.node.limits.quotas import Ledger, Limits
from swarm_node.node.sessions.next_hops import NOT_REACHED, UNCOUNTED_BYTES, NextHop, NextHops
from swarm_node.swarm.errors import ErrorCode, PeerError, PeerUnreachableError, StreamClosedError
from swarm_node.swarm.fairness.shares import Holder
from swarm_node.swarm.links.guarded_dials import HiddenDialError
from swarm_node.swarm.links.link import NodeLink
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.field_types import Downstream
from swarm_node.swarm.protocol.messages import ErrorMessage, Hello, Open, Opened, Result, Step, Want, Welcome
from swarm_node.swarm.protocol.wire import DEFAULT_MAX_FRAME, PROTOCOL_ID
from swarm_node.swarm.types import SignedRecord, Span
from tests.node.chain_swarm import MODEL, rows, swarm_of, until

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
    one, other = ledger.connect(Holder("one")), ledger.connect(Holder("other"))
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


WRONG, RIGHT = ("/ip4/1.1.1.1/tcp/1",), ("/ip4/1.1.1.1/tcp/2",)


def record(maddrs):
    return SignedRecord(0.0, " ".join(maddrs).encode())


class Dials:
    """A pool whose dials to peer "p" end when they are told to, and fail at addresses that are none."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, ...]] = []
        self.go_on = asyncio.Event()
        self.failure: Exception = PeerUnreachableError("nobody is there")

    async def get(self, peer_id, maddrs):
        self.begun.append(maddrs)
        await self.go_on.wait()
        if maddrs == WRONG:
            raise self.failure
        link = SlowLink()
        link.failure, link.round_trip_s = None, 0.001
        link.welcome = asyncio.get_running_loop().create_future()
        link.welcome.set_result(SimpleNamespace(max_step_tokens=512, features=()))
        return link

    async def close(self) -> None:
        pass


def dialling(**limits):
    ledger = Ledger(Limits(**limits))
    records = SimpleNamespace(maddrs=lambda peer_id, record: tuple(record.value.decode().split()))
    hops = NextHops(None, MODEL, "test", Limits(**limits), ledger, lambda: 0.0, records)
    hops.dialler = Dials()
    return hops, ledger


async def test_one_dial_serves_all_who_want_it_and_wrong_addresses_cost_nobody_else():
    hops, ledger = dialling(dials_per_peer=1)
    mean, good = ledger.connect(Holder("mean")), ledger.connect(Holder("good"))
    wrong = asyncio.ensure_future(hops.reach(Downstream("p", b"w" * 16, record(WRONG)), mean))
    await until(lambda: bool(hops.dialler.begun))
    right = [
        asyncio.ensure_future(hops.reach(Downstream("p", b"r" * 16, record(RIGHT)), good)) for _ in range(8)
    ]
    await asyncio.sleep(0)
    hops.dialler.go_on.set()
    with pytest.raises(PeerUnreachableError):
        await wrong
    assert len(set(await asyncio.gather(*right))) == 1
    assert hops.dialler.begun == [WRONG, RIGHT]
    await hops.close()


async def test_a_dial_that_failed_is_not_made_again_by_all_who_waited():
    hops, ledger = dialling()
    client = ledger.connect(Holder("client"))
    waiting = [
        asyncio.ensure_future(hops.reach(Downstream("p", bytes([n]) * 16, record(WRONG)), client))
        for n in range(8)
    ]
    await until(lambda: bool(hops.dialler.begun))
    hops.dialler.go_on.set()
    failures = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(failure) for failure in failures} == {PeerUnreachableError}
    assert len(hops.dialler.begun) == 1
    await hops.close()


async def test_a_dial_that_nobody_waits_for_counts_until_it_is_over():
    hops, ledger = dialling(dials_per_peer=1)
    client = ledger.connect(Holder("client"))
    first = asyncio.ensure_future(hops.reach(Downstream("p", b"1" * 16), client))
    await until(lambda: bool(hops.dialler.begun))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    with pytest.raises(PeerError, match="1 dials of yours are under way"):
        await hops.reach(Downstream("q", b"2" * 16), client)
    hops.dialler.go_on.set()
    await until(lambda: len(hops) == 1 and not hops._dials)
    await hops.reach(Downstream("q", b"2" * 16), client)
    await hops.close()


async def test_all_failed_dials_look_alike_and_into_a_private_network_take_as_long():
    hops, ledger = dialling(link_seconds=0.05)
    hops.dialler.go_on.set()
    client = ledger.connect(Holder("client"))
    loop, took = asyncio.get_running_loop(), []
    for failure in (PeerUnreachableError("refused by 8.8.8.8"), HiddenDialError("refused by 10.0.0.1")):
        hops.dialler.failure = failure
        began = loop.time()
        with pytest.raises(PeerUnreachableError, match=NOT_REACHED):
            await hops.reach(Downstream("p", b"w" * 16, record(WRONG)), client)
        took.append(loop.time() - began)
    assert took[1] >= 0.05 > took[0]
    await hops.close()


async def test_dials_under_way_end_with_the_node():
    hops, ledger = dialling()
    reaching = asyncio.ensure_future(hops.reach(Downstream("p", b"1" * 16), ledger.connect(Holder("client"))))
    await until(lambda: bool(hops.dialler.begun))
    await hops.close()
    with pytest.raises(asyncio.CancelledError):
        await reaching


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
            flushed = not server.engine.queued and not connection._outbox
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
