"""What a hop says late, or twice, and what it never was asked; and that no words of its node confuse it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.hops.hop import HopClient
from swarm_node.client.hops.plan import HopPlan, SessionSettings
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.errors import (
    ErrorCode,
    LocalProtocolError,
    PeerTimeoutError,
    RemoteProtocolError,
    ReplayRefusedError,
    StreamClosedError,
    SwarmError,
)
from swarm_node.swarm.links.link import NodeLink
from swarm_node.swarm.protocol.messages import Attached, ErrorMessage, Replayed
from swarm_node.swarm.types import Hop, Span

SESSION = bytes(16)


class _Link:
    """Takes what is posted; the test says what the node answers."""

    failure = None
    name = "peer h"
    round_trip_s = 0.0
    remote_maddr = ""

    def __init__(self) -> None:
        self.posted: list[Any] = []

    def post(self, message: Any) -> None:
        self.posted.append(message)

    def watch(self) -> None:
        pass


def _hop() -> HopClient:
    plan = HopPlan(Hop("h", Span(0, 3)), 0, 2, SESSION, NONE, NONE)
    return HopClient(plan, cast(NodeLink, _Link()), SessionSettings(Boundaries.alike(12, 8), 64), 1000)


def _replayed(tokens: int) -> Replayed:
    return Replayed(SESSION, tokens, 0, 0, 0)


async def _replay(hop: HopClient, step: int) -> asyncio.Task[Replayed]:
    task = asyncio.create_task(hop.replay(0, 4, step, None))
    await asyncio.sleep(0)
    return task


async def test_a_replay_that_was_taken_for_refused_may_be_done_all_the_same() -> None:
    hop = _hop()
    replay = await _replay(hop, 5)
    hop.deliver(ErrorMessage(SESSION, None, ErrorCode.DOWNSTREAM_LOST, "gone", True))
    with pytest.raises(ReplayRefusedError):
        await replay
    hop.deliver(_replayed(4))
    assert hop.failure is None
    hop.deliver(_replayed(4))
    assert isinstance(hop.failure, RemoteProtocolError), "once, not for ever"


async def test_answers_that_come_in_one_read_are_told_apart() -> None:
    hop = _hop()
    given_up = await _replay(hop, 5)
    given_up.cancel()
    await asyncio.wait([given_up])
    replay = await _replay(hop, 10)
    hop.deliver(_replayed(4))
    hop.deliver(_replayed(4))
    assert (await replay).tokens == 4
    attach = asyncio.create_task(hop.attach("g"))
    await asyncio.sleep(0)
    hop.deliver(Attached(SESSION, 4))
    assert await attach == 4
    assert hop.failure is None


async def test_an_answer_that_came_as_its_asker_was_cancelled_was_answered() -> None:
    hop = _hop()
    for upstream in ("f", "g"):
        attach = asyncio.create_task(hop.attach(upstream))
        await asyncio.sleep(0)
        hop.deliver(Attached(SESSION, 4))
        if upstream == "f":
            attach.cancel()
            await asyncio.wait([attach])
    assert await asyncio.wait_for(attach, 5) == 4
    for step in (5, 10):
        replay = await _replay(hop, step)
        hop.deliver(_replayed(4))
        if step == 5:
            replay.cancel()
            await asyncio.wait([replay])
    assert (await asyncio.wait_for(replay, 5)).tokens == 4
    hop.deliver(_replayed(4))
    assert isinstance(hop.failure, RemoteProtocolError), "once, not for ever"


async def test_an_answer_may_come_while_its_asker_is_being_cancelled() -> None:
    hop = _hop()
    attach = asyncio.create_task(hop.attach("f"))
    await asyncio.sleep(0)
    attach.cancel()  # it has not run since
    hop.deliver(Attached(SESSION, 4))
    await asyncio.wait([attach])
    assert hop.failure is None
    again = asyncio.create_task(hop.attach("g"))
    await asyncio.sleep(0)
    hop.deliver(Attached(SESSION, 4))
    assert await asyncio.wait_for(again, 5) == 4


async def test_an_answer_to_nothing_is_nonsense() -> None:
    hop = _hop()
    hop.deliver(Attached(SESSION, 4))
    assert isinstance(hop.failure, RemoteProtocolError)
    assert "ATTACHED" in hop.failure.message


class _Listener:
    """A segment of a chain, which counts how often it is told of trouble."""

    waiting_since = None
    is_chain = True
    awaited_payloads = ()

    def __init__(self) -> None:
        self.told = 0

    def take(self, hop: HopClient, result: Any) -> None:
        pass

    def question(self, hop: HopClient) -> None:
        return None

    def mark_broken(self) -> None:
        self.told += 1


told = st.one_of(
    st.builds(
        ErrorMessage,
        st.just(SESSION),
        st.one_of(st.none(), st.integers(0, 12)),
        st.sampled_from(ErrorCode),
        st.just("no"),
        st.booleans(),
    ),
    st.sampled_from([Attached(SESSION, 4), Replayed(SESSION, 4, 0, 0, 0)]),
    st.sampled_from([PeerTimeoutError("late"), StreamClosedError("gone")]),
    st.sampled_from(["attach", "replay", "clear"]),
)


@given(st.lists(told, max_size=16), st.booleans())
def test_whatever_is_heard_is_a_change_that_the_table_knows(heard: list[Any], alone: bool) -> None:
    """An event that is not possible would raise LocalProtocolError. What has ended a session stays."""

    async def run() -> None:
        hop, listener = _hop(), _Listener()
        hop.listen(None if alone else listener)
        request: asyncio.Task[Any] = asyncio.create_task(asyncio.sleep(0))
        for number, word in enumerate(heard):
            before, calls = hop.state, listener.told
            if word in ("attach", "replay"):  # one request waits at a time
                request.cancel()
                await asyncio.wait([request])
                asked = hop.attach(f"{number}") if word == "attach" else hop.replay(0, 4, number, None)
                request = asyncio.create_task(asked)
            elif word == "clear":
                hop.clear()
            elif isinstance(word, SwarmError):
                hop.fail(word)
            else:
                hop.deliver(word)
            await asyncio.sleep(0)
            if before.failure is not None:
                assert hop.failure is before.failure
            if not alone and not before.is_troubled and hop.state.is_troubled:
                assert listener.told > calls
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        assert not isinstance(hop.failure, LocalProtocolError)

    asyncio.run(run())
