"""Where a session's results go, from one state to another, without a link or a clock."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from swarm_node.node.limits.quotas import Ledger, Limits
from swarm_node.node.sessions.journal import JournalBook
from swarm_node.node.sessions.output import Output
from swarm_node.node.sessions.step_result import StepResult
from swarm_node.swarm.errors import ErrorCode, NetworkError
from swarm_node.swarm.fairness.shares import Holder
from swarm_node.swarm.protocol.messages import Downstream, Opened, Replay, Replayed, Result, Want

SESSION = b"s" * 16


class Client:
    max_step_tokens = 64

    def __init__(self) -> None:
        self.posted: list[Any] = []

    def post(self, message: Any) -> None:
        self.posted.append(message)

    async def drain(self) -> None: ...


class Hop:
    """A next hop that takes what it gets."""

    max_step_tokens = 64

    def __init__(self) -> None:
        self.link = SimpleNamespace(
            failure=None,
            round_trip_s=0.002,
            name="b",
            peer_id="b",
            remote_maddr="/ip4/8.8.8.8/tcp/1/direct",
            watch=lambda: None,
        )
        self.steps: list[Any] = []
        self.joined: list[bytes] = []

    def join(self, session: bytes, user: Output) -> None:
        self.joined.append(session)

    def leave(self, session: bytes) -> None:
        self.joined.remove(session)

    def post(self, step: Any, account: object) -> None:
        self.steps.append(step)


class Hops:
    """``arrived``: the hop that is reached, or why none is."""

    def __init__(self) -> None:
        self.arrived: asyncio.Future[Hop] = asyncio.get_running_loop().create_future()

    async def reach(self, target: Downstream, account: object) -> Hop:
        return await self.arrived


class Bench:
    def __init__(self, *, chained: bool = True) -> None:
        self.client, self.hops = Client(), Hops()
        ledger = Ledger(Limits())
        self.account = ledger.connect(Holder("peer"))
        self.journal = JournalBook(1000).open(4, 0)
        self.output = Output(SESSION, self.account, ledger, self.client, chained=chained)

    def send(self, step: int) -> None:
        row = bytes([step]) * 4
        self.journal.write(step - 1, row)
        self.output.send(StepResult(step, step - 1, 1, Want.ALL, 0, row, (), 0, 0, 0, 1))
        self.output.journal_grown()

    def open(self) -> asyncio.Task[None]:
        return self.output.open(Opened(SESSION, 0, 64), downstream("b"), self.hops)

    def replay(self, until: int, step: int, to: Downstream | None) -> asyncio.Task[None]:
        request = Replay(SESSION, 0, until, step, to)
        return self.output.replay(request, self.journal, self.hops, lambda: None)


def downstream(peer: str) -> Downstream:
    return Downstream(peer, (peer * 16).encode())


async def test_what_is_held_leaves_first_once_the_next_hop_is_there() -> None:
    bench, hop = Bench(), Hop()
    opening = bench.open()
    bench.send(1)
    assert (bench.output.is_busy, bench.account.queued_bytes, hop.steps) == (True, 4, [])
    bench.hops.arrived.set_result(hop)
    await opening
    bench.send(2)
    assert [step.step for step in hop.steps] == [1, 2]
    assert (bench.output.is_busy, bench.account.queued_bytes, hop.joined) == (False, 0, [b"b" * 16])
    (opened,) = bench.client.posted
    assert (opened.chained, opened.link_us) == (True, 2000)


async def test_without_its_next_hop_the_client_gets_what_was_held() -> None:
    bench = Bench()
    opening = bench.open()
    bench.send(1)
    bench.hops.arrived.set_exception(NetworkError("nobody is there"))
    await opening
    bench.send(2)
    opened, *results = bench.client.posted
    assert (opened.chained, opened.reason) == (False, "nobody is there")
    assert [result.step for result in results] == [1, 2]
    assert bench.output.is_client


async def test_a_lost_next_hop_is_told_once_and_gets_nothing_more() -> None:
    bench, hop = Bench(), Hop()
    bench.hops.arrived.set_result(hop)
    await bench.open()
    for _ in range(2):
        bench.output.fail(NetworkError("gone"))
    bench.send(1)
    (told,) = bench.client.posted[1:]
    assert (told.code, hop.steps, hop.joined) == (ErrorCode.DOWNSTREAM_LOST, [], [])


@pytest.mark.parametrize("lost", [False, True])
async def test_a_replay_to_the_client_ends_with_results_for_it(lost: bool) -> None:
    bench, hop = Bench(), Hop()
    bench.hops.arrived.set_result(hop)
    await bench.open()
    bench.send(1)
    if lost:
        bench.output.fail(NetworkError("gone"))
    replaying = bench.replay(2, 10, None)
    bench.send(2)  # sent before the replay, with a number below its first one
    await replaying
    bench.send(3)
    posted = bench.client.posted[2 if lost else 1 :]
    assert [(each.step, each.position) for each in posted if isinstance(each, Result)] == [(10, 0), (3, 2)]
    assert [each.tokens for each in posted if isinstance(each, Replayed)] == [2]
    assert (bench.output.is_client, hop.joined) == (True, [])


async def test_a_replay_answers_an_open_that_still_waits() -> None:
    bench = Bench()
    opening = bench.open()
    await asyncio.sleep(0)
    replaying = bench.replay(0, 5, downstream("c"))
    hop = Hop()
    bench.hops.arrived = asyncio.get_running_loop().create_future()
    bench.hops.arrived.set_result(hop)
    await replaying
    assert opening.cancelled()
    opened, replayed = bench.client.posted
    assert (opened.chained, isinstance(replayed, Replayed), hop.joined) == (False, True, [b"c" * 16])


async def test_a_closed_output_waits_for_nobody_and_sends_nothing() -> None:
    bench = Bench()
    opening = bench.open()
    bench.send(1)
    bench.output.close()
    bench.output.close()
    await asyncio.wait([opening])
    bench.send(2)
    assert (opening.cancelled(), bench.client.posted, bench.account.queued_bytes) == (True, [], 0)
