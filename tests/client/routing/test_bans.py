from __future__ import annotations

import itertools
import random

import pytest

from swarm_node.client.routing.bans import BUSY_JITTER, Bans, is_loss
from swarm_node.client.routing.route_wait import SNAPSHOT_S, Waiting, WaitLimits
from swarm_node.swarm.errors import (
    BusyError,
    ErrorCode,
    LocalNetworkError,
    ModelMismatchError,
    PeerError,
    PeerLateError,
    PeerMuteError,
    PeerTimeoutError,
    PeerUnreachableError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
)
from swarm_node.swarm.links.link import NotAsAnnouncedError
from swarm_node.swarm.peer_health import MAX_PEERS, PeerHealth
from swarm_node.swarm.routing.best_route import NoRouteError
from swarm_node.swarm.types import Hop, NodeState, Span
from tests.doubles.router_case import NEED, clocked_swarm, failure, hops


async def test_a_peer_that_is_always_busy_is_asked_less_and_less() -> None:
    _, router, clock = await clocked_swarm(a="0-5")
    asked = []
    for _ in range(5):
        router.failed(failure("a", BusyError("a is busy", retry_after=0)))
        asked.append(clock.time)
        await router.plan(NEED)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.4), strict=True):
        assert least <= pause < least * (1 + BUSY_JITTER) + 0.02


async def test_sessions_that_are_turned_away_together_are_one_row_of_busy() -> None:
    _, router, clock = await clocked_swarm(a="0-5")
    for _ in range(20):
        router.failed(failure("a", BusyError("a is busy", retry_after=0)))
    await router.plan(NEED)
    assert clock.time < 1000.1


async def test_sessions_that_lose_one_link_count_once() -> None:
    _, router, clock = await clocked_swarm(a="0-5")
    lost = StreamClosedError("a closed the stream")
    for _ in range(20):
        router.failed(failure("a", lost))
    assert not router.health.is_banned("a", clock.time + 2.1)
    clock.time += 3
    router.failed(failure("a", StreamClosedError("again")))
    assert router.health.is_banned("a", clock.time + 3.9)


async def test_a_peer_that_gave_up_an_idle_session_is_not_avoided() -> None:
    _, router, clock = await clocked_swarm(a="0-5")
    router.failed(failure("a", PeerError("idle", code=ErrorCode.SESSION_EXPIRED, retriable=True)))
    assert not router.health.is_banned("a", clock.time)


@pytest.mark.parametrize(
    ("cause", "seconds"),
    [
        (RemoteProtocolError("nonsense"), 300),
        (ModelMismatchError("other"), 300),
        (PeerError("leaving", code=ErrorCode.DRAINING, retriable=True), 5),
        (PeerError("moved", code=ErrorCode.SPAN_NOT_SERVED, retriable=False), 60),
        (PeerError("late", code=ErrorCode.DEADLINE, retriable=True), 2),
        (StreamClosedError("gone"), 2),
        (BusyError("full", retry_after=500), 10),
    ],
)
async def test_how_long_a_peer_is_avoided(cause: SwarmError, seconds: float) -> None:
    _, router, clock = await clocked_swarm(a="0-5")
    router.failed(failure("a", cause))
    assert router.health.is_banned("a", clock.time + seconds - 0.1)
    assert not router.health.is_banned("a", clock.time + seconds * (1 + BUSY_JITTER) + 0.1)


async def test_a_healthy_peer_is_never_avoided_for_anothers_fault() -> None:
    _, router, clock = await clocked_swarm(a="0-5")
    for cause in (
        PeerError("gone", code=ErrorCode.DOWNSTREAM_LOST, retriable=True),
        PeerError("gone", code=ErrorCode.UPSTREAM_LOST, retriable=True),
        PeerError("gone", code=ErrorCode.JOURNAL_LOST, retriable=True),
        LocalNetworkError("our p2pd died"),
    ):
        router.failed(failure("a", cause))
    router.edge_failed("a", "b")
    assert not router.health.is_banned("a", clock.time)
    assert not router.health.is_banned("b", clock.time)


async def test_one_that_failed_and_was_started_anew_is_tried_at_once() -> None:
    swarm, router, clock = await clocked_swarm(a="0-5")
    await router.plan(NEED)
    router.failed(failure("a"))
    swarm.announce("a", maddrs=("/ip4/127.0.0.1/tcp/4242",))
    assert hops(await router.plan(NEED)) == [("a", "0-5")]
    assert clock.time == 1000.0
    # what it did before is not forgotten: a next failure costs more
    router.failed(failure("a"))
    assert router.health.is_banned("a", clock.time + 3.9)


async def test_one_that_was_away_since_it_failed_is_tried_at_once() -> None:
    swarm, router, clock = await clocked_swarm(a="0-5", b="0-2")
    await router.plan(NEED)
    for _ in range(3):
        router.failed(failure("a"))
    router.failed(failure("a", PeerError("leaving", code=ErrorCode.DRAINING, retriable=True)))
    swarm.announce("a", state=NodeState.DRAINING)
    began = clock.time
    clock.events.append((began + 1.0, lambda: swarm.announce("a")))
    assert hops(await router.plan(NEED, limits=WaitLimits(missing_s=30))) == [("a", "0-5")]
    assert clock.time - began < 2


def moved_from(span: str) -> NotAsAnnouncedError:
    """The error of a node that was to serve ``span``, and does not any more."""
    hop = Hop("a", Span.parse(span))
    return NotAsAnnouncedError(f"a has left {span}", code=ErrorCode.SPAN_NOT_SERVED, hop=hop, kind="none")


@pytest.mark.parametrize("read_before", [True, False])
async def test_one_that_moved_is_asked_for_what_it_announces_now(read_before: bool) -> None:
    """Whether its new announcement was read before it was known that it moved, or after."""
    swarm, router, clock = await clocked_swarm(dead="0-2", a="3-5", b="3-5")
    await router.plan(NEED)
    if read_before:
        swarm.announce("a", span=Span(0, 3))
        clock.time += SNAPSHOT_S + 1
        await router.plan(NEED)
    router.failed(failure("dead", PeerUnreachableError("nobody listens")))
    router.failed(failure("a", moved_from("3-5")))
    swarm.announce("a", span=Span(0, 3))
    began = clock.time
    assert hops(await router.plan(NEED)) == [("a", "0-2"), ("b", "3-5")]
    assert clock.time == began


async def test_one_that_announces_what_it_does_not_serve_is_avoided() -> None:
    swarm, router, clock = await clocked_swarm(a="0-5", b="0-5")
    await router.plan(NEED)
    router.failed(failure("a", moved_from("3-5")))
    swarm.announce("a", span=Span(2, 6))  # which covers it still
    clock.time += SNAPSHOT_S + 1
    assert hops(await router.plan(NEED)) == [("b", "0-5")]
    assert router.health.is_banned("a", clock.time + 50)


async def test_liars_and_busy_ones_are_not_forgiven_for_coming_back() -> None:
    swarm, router, clock = await clocked_swarm(a="0-5", b="0-5")
    await router.plan(NEED)
    router.failed(failure("a", RemoteProtocolError("nonsense")))
    swarm.announce("a", maddrs=("/ip4/127.0.0.1/tcp/4242",))
    assert hops(await router.plan(NEED)) == [("b", "0-5")]
    assert router.health.is_banned("a", clock.time + 290)


async def test_a_silent_peer_is_not_asked_again_at_once() -> None:
    swarm, router, clock = await clocked_swarm(a="0-5", b="0-5")
    await router.plan(NEED)
    router.failed(failure("a", PeerTimeoutError("a is silent for 2 s")))
    swarm.store.remove("a")
    clock.time += 3
    await router.plan_gap(NEED, Span(0, 6), before=None, after=None, keep=frozenset())
    swarm.announce("a")  # a read that missed it is no restart
    clock.time += 3
    await router.plan_gap(NEED, Span(0, 6), before=None, after=None, keep=frozenset())
    assert router.health.is_banned("a", clock.time + 1.9)
    assert not router.health.is_banned("a", clock.time + 2.1)


async def test_no_more_failures_are_remembered_than_peers() -> None:
    bans = Bans(PeerHealth(), random.Random(0))
    for number in range(MAX_PEERS + 10):
        bans.failed(f"p{number}", BusyError("full", retry_after=1), [], 1000.0)
    assert len(bans.causes) == MAX_PEERS
    assert "p9" not in bans.causes
    assert f"p{MAX_PEERS + 9}" in bans.causes


async def test_a_lost_peer_is_avoided_until_it_gives_a_sign_of_life() -> None:
    """Its announcement stays in the directory after its death: only a newer one says anything."""
    swarm, router, clock = await clocked_swarm(a="0-5")
    limits = WaitLimits(missing_s=30)
    seen: list[Waiting] = []
    await router.plan(NEED)
    router.failed(failure("a"))
    with pytest.raises(NoRouteError, match=r"a has 0-5 \(failed lately\)"):
        await router.plan(NEED, limits=limits, on_wait=seen.append)
    assert clock.time == 1030.0
    assert {each.lost for each in seen} == {(swarm.info("a"),)}
    assert [each.seconds_left for each in seen] == sorted((each.seconds_left for each in seen), reverse=True)
    clock.events.append((1035.0, lambda: swarm.announce("a")))
    assert hops(await router.plan(NEED, limits=limits)) == [("a", "0-5")]
    assert 1035.0 <= clock.time < 1036.0
    router.failed(failure("a"))
    clock.events.append((1040.0, lambda: router.answered("a")))
    assert hops(await router.plan(NEED, limits=limits)) == [("a", "0-5")]
    assert 1040.0 <= clock.time < 1041.0


@pytest.mark.parametrize(
    "cause",
    [
        PeerLateError("slow"),
        PeerMuteError("mute"),
        LocalNetworkError("our own"),
        BusyError("full", retry_after=1),
    ],
)
def test_a_peer_that_is_there_is_not_lost(cause: SwarmError) -> None:
    assert not is_loss(cause)
