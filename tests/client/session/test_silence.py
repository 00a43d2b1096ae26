"""When a silent peer counts as gone: soon, whatever the distance, and not for what was this side's fault."""

from __future__ import annotations

import asyncio

import pytest

from swarm_node.client.hops.route_session import RouteSession
from swarm_node.swarm.errors import HopFailedError, PeerTimeoutError
from swarm_node.swarm.links import link as link_module
from swarm_node.swarm.links.pool import LinkPool
from swarm_node.swarm.links.timers import SLOW_LINE_BYTES, RoundTrips
from swarm_node.swarm.timeouts import Patience
from swarm_node.swarm.types import Hop, Route, Span
from tests.doubles.fake_swarm import FAST, HIDDEN, MODEL, FakeSwarm, ToyHead
from tests.doubles.virtual_time import in_virtual_time, now

X = ToyHead().embed(list(b"some tokens"))
TWO = Route((Hop("a", Span(0, 3)), Hop("b", Span(3, 6))))


async def _open(swarm: FakeSwarm, patience: Patience) -> tuple[RouteSession, LinkPool]:
    links = LinkPool(swarm.network.transport("client"), MODEL, patience=patience)
    return await RouteSession.open(links, TWO, swarm.settings()), links


@pytest.mark.parametrize("latency", [0.0, 0.1])
@pytest.mark.parametrize("frozen", ["a", "b"])
@in_virtual_time
async def test_a_frozen_hop_is_noticed_within_two_seconds(latency: float, frozen: str) -> None:
    swarm = await FakeSwarm(latency, a="0-2", b="3-5").start()
    session, links = await _open(swarm, Patience())
    await session.forward(X, 0)
    swarm.freeze(frozen)
    began = now()
    with pytest.raises(HopFailedError) as caught:
        await session.forward(X[:1], len(X))
    assert 1.0 < now() - began < 2.0
    assert caught.value.peer_id == frozen
    assert isinstance(caught.value.cause, PeerTimeoutError)
    await links.close()


@in_virtual_time
async def test_round_trips_are_measured_and_smoothed() -> None:
    swarm = await FakeSwarm(0.01, a="0-2", b="3-5").start()
    session, links = await _open(swarm, Patience())
    link = session.hops[0].link
    for _ in range(10):
        assert await link.ping() == pytest.approx(0.02, rel=0.01)
    assert link.round_trip_s == pytest.approx(0.02, rel=0.01)
    await links.close()


def test_patience_grows_with_round_trips_and_their_jitter() -> None:
    near, far, unsteady, busy = RoundTrips(), RoundTrips(), RoundTrips(), RoundTrips()
    for number in range(50):
        near.measured(0.0002)
        far.measured(0.7)
        unsteady.measured(0.1 if number % 2 else 0.7)
        busy.measured(0.02)
    assert near.answer_within(0.9, 0) == 0.9
    assert 1.4 <= far.answer_within(0.9, 0) < 1.5
    assert unsteady.answer_within(0.9, 0) > 2 * 0.4 + 0.9
    assert 0.9 < busy.answer_within(0.9, 500_000) < busy.answer_within(0.9, SLOW_LINE_BYTES) < 2
    assert busy.answer_within(0.9, 100 * SLOW_LINE_BYTES) < 2


@in_virtual_time
async def test_one_that_speaks_shows_that_the_network_is_there() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    session, links = await _open(swarm, FAST)
    await session.forward(X, 0)
    swarm.freeze("b")
    with pytest.raises(HopFailedError) as caught:
        await session.forward(X[:1], len(X))
    assert caught.value.peer_id == "b"
    assert session.hops[0].link.failure is None
    await links.close()


@in_virtual_time
async def test_all_silent_together_are_waited_for_and_go_on() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    patience = Patience(dial_s=0.5, ping_after_s=0.05, pong_within_s=0.1, own_loss_s=10.0)
    session, links = await _open(swarm, patience)
    await session.forward(X, 0)
    for name in "ab":
        swarm.network.partition("client", name)
    asyncio.get_running_loop().call_later(0.8, swarm.network.heal)
    hidden = await session.forward(X[:1], len(X))
    assert hidden.shape == (1, HIDDEN)
    assert {len(node.opens) for node in swarm.nodes.values()} == {1}
    await session.forward(X[:1], len(X) + 1)
    # The outage was no round trip: the next silent peer is noticed as soon as before.
    for hop in session.hops:
        await hop.link.ping()
        hop.link._look()
        assert hop.link._timers.answer_within_s() < 0.3
    await links.close()


@in_virtual_time
async def test_after_the_limit_all_are_given_up() -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    patience = Patience(dial_s=0.5, ping_after_s=0.05, pong_within_s=0.1, own_loss_s=0.5)
    session, links = await _open(swarm, patience)
    for name in "ab":
        swarm.network.partition("client", name)
    began = now()
    with pytest.raises(HopFailedError):
        await session.forward(X, 0)
    assert 0.5 <= now() - began < 2
    await links.close()


@in_virtual_time
async def test_a_computer_that_slept_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    session, links = await _open(swarm, FAST)
    link = session.hops[0].link
    link._timers._pinged_at = now() - 10  # before it fell asleep; and an hour later by the clock on the wall
    link._connection.heard_at = now() - 20
    monkeypatch.setattr(link_module, "wall_clock", lambda: now() + 3600)
    link._due = now()
    link._look()
    assert link.failure is None
    assert now() - link._timers._pinged_at < 1
    await session.forward(X, 0)
    await links.close()
