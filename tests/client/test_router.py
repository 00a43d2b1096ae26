from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fake_swarm import MODEL, FakeSwarm

from swarm_node.client import router as router_module
from swarm_node.client.failures import BUSY_JITTER
from swarm_node.client.hop import HopFailedError
from swarm_node.client.router import (
    UNSETTLED_S,
    Need,
    Planned,
    Router,
    Waiting,
    WaitLimits,
)
from swarm_node.client.slow_search import (
    FRESH_S,
    LOOK_PAUSE_S,
    REPLACE_PAUSE_S,
    SLOW_S,
    SlowChain,
    SlowHop,
)
from swarm_node.dht.memory import MemoryDirectory
from swarm_node.swarm.errors import (
    BusyError,
    ErrorCode,
    LocalNetworkError,
    ModelMismatchError,
    NetworkError,
    PeerError,
    PeerTimeoutError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
)
from swarm_node.swarm.routing import NoRouteError
from swarm_node.swarm.slow_hop import ENOUGH_STEPS, GROSS_STEPS, ChainSpent, HopSpent
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, PeerLink, Route, Span

NEED = Need(kv_tokens=100, prompt_tokens=10, new_tokens=10)


class Clock:
    """Time that passes only in ``sleep``; ``at`` runs something when its time has come."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.events: list[tuple[float, object]] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        due = [event for at, event in self.events if at <= self.time]
        self.events = [(at, event) for at, event in self.events if at > self.time]
        for event in due:
            event()  # type: ignore[operator]


async def _swarm(**spans: str) -> tuple[FakeSwarm, Router, Clock]:
    swarm, clock = await FakeSwarm(**spans).start(), Clock()
    return swarm, swarm.router(clock=clock.now, sleep=clock.sleep), clock


def _hops(planned: object) -> list[tuple[str, str]]:
    return [(hop.peer_id, str(hop.span)) for hop in planned.route.hops]  # type: ignore[attr-defined]


def _failure(peer_id: str, cause: SwarmError | None = None) -> HopFailedError:
    return HopFailedError(peer_id, cause or StreamClosedError(f"{peer_id} closed the stream"))


async def test_a_route_with_the_announcements_of_its_hops() -> None:
    _, router, _ = await _swarm(a="0-2", b="3-5", c="5-5")
    planned = await router.plan(NEED)
    assert _hops(planned) == [("a", "0-2"), ("b", "3-5")]
    assert set(planned.nodes) == {"a", "b"}


async def test_missing_blocks_are_named_with_who_was_seen() -> None:
    _, router, clock = await _swarm(a="0-2")
    with pytest.raises(NoRouteError, match=r"3-5.*a has 0-2 \(online\)") as caught:
        await router.plan(NEED)
    assert caught.value.missing == (Span(3, 6),)
    assert clock.time == 1000.0


async def test_waiting_tells_what_is_missing_and_ends_when_it_comes() -> None:
    swarm, router, clock = await _swarm(a="0-2", b="3-5")
    swarm.store.remove("b")
    clock.events.append((1003.0, lambda: swarm.announce("b")))
    seen: list[Waiting] = []
    planned = await router.plan(NEED, limits=WaitLimits(missing_s=10), on_wait=seen.append)
    assert _hops(planned) == [("a", "0-2"), ("b", "3-5")]
    assert 1003.0 <= clock.time <= 1003.6
    assert seen[0].missing == (Span(3, 6),)
    assert seen[0].seconds_left == pytest.approx(10)


async def test_waiting_ends_in_time() -> None:
    _, router, clock = await _swarm(a="0-2")
    with pytest.raises(NoRouteError):
        await router.plan(NEED, limits=WaitLimits(missing_s=4))
    assert clock.time == pytest.approx(1004.0)


async def test_a_failed_peer_is_avoided_then_tried_again() -> None:
    _, router, clock = await _swarm(a="0-5", b="0-5")
    ((first, _),) = _hops(await router.plan(NEED))
    router.failed(_failure(first))
    ((second, _),) = _hops(await router.plan(NEED))
    assert second != first
    router.failed(_failure(second))
    await router.plan(NEED)
    assert 1001.9 < clock.time < 1003


async def test_giving_up_says_why_peers_failed() -> None:
    _, router, _ = await _swarm(a="0-5")
    router.failed(_failure("a"))
    with pytest.raises(NoRouteError, match=r"failed lately.*a closed the stream"):
        await router.plan(NEED, limits=WaitLimits(failed_s=0))


async def test_busy_peers_are_asked_again_after_their_pause() -> None:
    _, router, clock = await _swarm(a="0-5")
    router.failed(_failure("a", BusyError("a is busy", retry_after=1.5)))
    await router.plan(NEED, limits=WaitLimits(failed_s=0))
    assert 1001.5 <= clock.time < 1000 + 1.5 * (1 + BUSY_JITTER) + 0.02
    router.failed(_failure("a", BusyError("a is busy", retry_after=5)))
    with pytest.raises(BusyError, match="every peer") as caught:
        await router.plan(NEED, limits=WaitLimits(busy_s=2))
    assert caught.value.retry_after == 5


async def test_a_peer_that_is_always_busy_is_asked_less_and_less() -> None:
    _, router, clock = await _swarm(a="0-5")
    asked = []
    for _ in range(5):
        router.failed(_failure("a", BusyError("a is busy", retry_after=0)))
        asked.append(clock.time)
        await router.plan(NEED)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.4), strict=True):
        assert least <= pause < least * (1 + BUSY_JITTER) + 0.02


async def test_sessions_that_are_turned_away_together_are_one_row_of_busy() -> None:
    _, router, clock = await _swarm(a="0-5")
    for _ in range(20):
        router.failed(_failure("a", BusyError("a is busy", retry_after=0)))
    await router.plan(NEED)
    assert clock.time < 1000.1


async def test_sessions_that_lose_one_link_count_once() -> None:
    _, router, clock = await _swarm(a="0-5")
    lost = StreamClosedError("a closed the stream")
    for _ in range(20):
        router.failed(_failure("a", lost))
    assert not router.health.is_banned("a", clock.time + 2.1)
    clock.time += 3
    router.failed(_failure("a", StreamClosedError("again")))
    assert router.health.is_banned("a", clock.time + 3.9)


async def test_a_peer_that_gave_up_an_idle_session_is_not_avoided() -> None:
    _, router, clock = await _swarm(a="0-5")
    router.failed(_failure("a", PeerError("idle", code=ErrorCode.SESSION_EXPIRED, retriable=True)))
    assert not router.health.is_banned("a", clock.time)


async def test_an_old_announcement_of_a_full_node_is_not_believed_for_ever() -> None:
    swarm, router, clock = await _swarm(a="0-5", b="0-5")
    swarm.announce("a", free_kv_tokens=50)
    for _ in range(3):
        assert _hops(await router.plan(NEED)) == [("b", "0-5")]
    swarm.store.remove("b")
    router.failed(_failure("b"))
    assert _hops(await router.plan(NEED)) == [("a", "0-5")]
    await router.close()  # the read that the failure began
    swarm.announce("a", free_kv_tokens=50, total_kv_tokens=60)
    clock.time += 10  # snapshots grow old
    with pytest.raises(NoRouteError, match="50 of 60"):
        await router.plan(replace(NEED, kv_tokens=61))


async def test_draining_peers_are_left_alone() -> None:
    swarm, router, _ = await _swarm(a="0-5")
    swarm.announce("a", state=NodeState.DRAINING)
    with pytest.raises(NoRouteError, match="draining"):
        await router.plan(NEED)


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
    _, router, clock = await _swarm(a="0-5")
    router.failed(_failure("a", cause))
    assert router.health.is_banned("a", clock.time + seconds - 0.1)
    assert not router.health.is_banned("a", clock.time + seconds * (1 + BUSY_JITTER) + 0.1)


async def test_one_that_serves_other_weights_after_all() -> None:
    _, router, _ = await _swarm(a="0-5")
    router.failed(_failure("a", ModelMismatchError("a serves another model", hint="Same files.")))
    with pytest.raises(ModelMismatchError, match="another model") as caught:
        await router.plan(NEED)
    assert caught.value.hint == "Same files."


async def test_another_model_under_the_same_name_is_explained() -> None:
    swarm, router, _ = await _swarm(a="0-5")
    swarm.announce("a", model=replace(MODEL, digest="cd" * 32))
    with pytest.raises(ModelMismatchError, match=f"{'cd' * 6}.*{'ab' * 6}"):
        await router.plan(NEED)


async def test_other_models_are_named_when_ours_is_absent() -> None:
    swarm, router, _ = await _swarm(a="0-5")
    swarm.announce("a", model=replace(MODEL, name="other", digest="cd" * 32))
    with pytest.raises(NoRouteError, match=r"nobody serves toy@.*other@cdcd"):
        await router.plan(NEED)


async def test_the_nearer_of_equal_peers_is_taken() -> None:
    _, router, _ = await _swarm(a="0-5", b="0-5")
    router.measured("a", 0.2)
    router.measured("b", 0.01)
    assert _hops(await router.plan(NEED)) == [("b", "0-5")]
    for _ in range(20):
        router.measured("b", 0.5)
    assert _hops(await router.plan(NEED)) == [("a", "0-5")]


async def test_a_directory_that_is_down_leaves_the_last_snapshot() -> None:
    swarm, router, clock = await _swarm(a="0-5")
    await router.plan(NEED)
    swarm.store.down = True
    clock.time += 100
    assert _hops(await router.plan(NEED)) == [("a", "0-5")]
    other = swarm.router(clock=clock.now, sleep=clock.sleep)
    with pytest.raises(NetworkError, match="directory"):
        await other.plan(NEED)


async def test_a_healthy_peer_is_never_avoided_for_anothers_fault() -> None:
    _, router, clock = await _swarm(a="0-5")
    for cause in (
        PeerError("gone", code=ErrorCode.DOWNSTREAM_LOST, retriable=True),
        PeerError("gone", code=ErrorCode.UPSTREAM_LOST, retriable=True),
        PeerError("gone", code=ErrorCode.JOURNAL_LOST, retriable=True),
        LocalNetworkError("our p2pd died"),
    ):
        router.failed(_failure("a", cause))
    router.edge_failed("a", "b")
    assert not router.health.is_banned("a", clock.time)
    assert not router.health.is_banned("b", clock.time)


async def test_one_that_failed_and_was_started_anew_is_tried_at_once() -> None:
    swarm, router, clock = await _swarm(a="0-5")
    await router.plan(NEED)
    router.failed(_failure("a"))
    swarm.announce("a", maddrs=("/ip4/127.0.0.1/tcp/4242",))
    assert _hops(await router.plan(NEED)) == [("a", "0-5")]
    assert clock.time == 1000.0
    # what it did before is not forgotten: a next failure costs more
    router.failed(_failure("a"))
    assert router.health.is_banned("a", clock.time + 3.9)


async def test_one_that_was_away_since_it_failed_is_tried_at_once() -> None:
    swarm, router, clock = await _swarm(a="0-5", b="0-2")
    for _ in range(3):
        router.failed(_failure("a"))
    await router.plan(NEED, limits=WaitLimits(failed_s=60))
    router.failed(_failure("a", PeerError("leaving", code=ErrorCode.DRAINING, retriable=True)))
    swarm.announce("a", state=NodeState.DRAINING)
    began = clock.time
    clock.events.append((began + 1.0, lambda: swarm.announce("a")))
    assert _hops(await router.plan(NEED, limits=WaitLimits(missing_s=30))) == [("a", "0-5")]
    assert clock.time - began < 2


async def test_liars_and_busy_ones_are_not_forgiven_for_coming_back() -> None:
    swarm, router, clock = await _swarm(a="0-5", b="0-5")
    await router.plan(NEED)
    router.failed(_failure("a", RemoteProtocolError("nonsense")))
    swarm.announce("a", maddrs=("/ip4/127.0.0.1/tcp/4242",))
    assert _hops(await router.plan(NEED)) == [("b", "0-5")]
    assert router.health.is_banned("a", clock.time + 290)


async def test_rather_one_that_failed_often_than_nobody() -> None:
    _, router, clock = await _swarm(a="0-5")
    await router.plan(NEED)
    for _ in range(6):  # bans of 2, 4, … 64 s
        router.failed(_failure("a"))
        clock.time += 0.01
    limits = WaitLimits(failed_s=10)
    assert _hops(await router.plan(NEED, limits=limits)) == [("a", "0-5")]
    assert clock.time < 1002
    router.failed(_failure("a", RemoteProtocolError("nonsense")))
    with pytest.raises(NoRouteError):
        await router.plan(NEED, limits=limits)


async def test_who_waits_for_missing_blocks_waits_for_anybody_new() -> None:
    swarm, router, clock = await _swarm(a="0-5", b="0-5")
    swarm.store.remove("b")
    await router.plan(NEED)
    router.failed(_failure("a", RemoteProtocolError("nonsense")))  # banned for longer than the wait
    clock.events.append((1003.0, lambda: swarm.announce("b")))
    limits = WaitLimits(missing_s=30, failed_s=30)
    assert _hops(await router.plan(NEED, limits=limits)) == [("b", "0-5")]
    assert clock.time < 1004


async def test_a_patient_one_tries_those_that_failed_now_and_then() -> None:
    """Whoever fell silent may be back long before its ban ends."""
    _, router, clock = await _swarm(a="0-5")
    await router.plan(NEED)
    tried: list[float] = []
    began = clock.time

    async def try_for_ever() -> None:
        while True:
            planned = await router.plan(NEED, began=began, limits=WaitLimits(missing_s=20))
            assert _hops(planned) == [("a", "0-5")]
            tried.append(clock.time - began)
            router.failed(_failure("a", PeerTimeoutError("silent")))

    with pytest.raises(NoRouteError):
        await try_for_ever()
    assert tried[0] == 0
    pauses = [after - before for before, after in itertools.pairwise(tried)]
    assert pauses == sorted(pauses)
    assert 0.9 < pauses[0] < 2.1
    assert 4 <= len(tried) <= 8


async def test_after_a_failure_the_directory_is_read_again_and_again_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swarm_node.client.router.LOOK_AGAIN_S", 0.01)
    swarm, router, clock = await _swarm(a="0-5", b="0-5")
    await router.plan(NEED)
    router.failed(_failure("a"))
    await asyncio.sleep(0.05)
    swarm.announce("b", maddrs=("/ip4/127.0.0.1/tcp/4242",))
    await asyncio.sleep(0.05)
    (hop,) = (await router.plan_gap(NEED, Span(0, 6), before=None, after=None, keep=frozenset())).route.hops
    assert hop.maddrs == ("/ip4/127.0.0.1/tcp/4242",)
    clock.time += UNSETTLED_S
    await asyncio.sleep(0.05)
    assert router._look_again is None
    await router.close()


async def test_a_gap_is_filled_between_its_neighbours() -> None:
    _, router, _ = await _swarm(a="0-1", b="2-3", c="4-5", d="1-4", e="2-3")
    taken = set()
    for _ in range(20):
        planned = await router.plan_gap(
            NEED, Span(2, 4), before="a", after="c", keep=frozenset({"a", "c", "b"})
        )
        assert all(hop.span == Span(2, 4) for hop in planned.route.hops)
        edges = [(edge.source, edge.target) for edge in planned.predicted.edges]
        (hop,) = planned.route.hops
        assert edges == [("a", hop.peer_id), (hop.peer_id, "c")]
        assert set(planned.nodes) == {hop.peer_id}
        taken.add(hop.peer_id)
    assert taken == {"d", "e"}  # sessions spread over the two
    with pytest.raises(NoRouteError, match="2-3"):
        await router.plan_gap(NEED, Span(2, 4), before="a", after=None, keep=frozenset("abcde"))


async def test_a_repair_does_not_wait_for_a_directory_that_stalls() -> None:
    """Where nodes died, reads of the directory hang on them."""
    swarm, router, clock = await _swarm(a="0-5", b="0-5")
    planned = await router.plan(NEED)
    stalled = asyncio.Event()

    async def nodes(model: object) -> list[NodeInfo]:
        await stalled.wait()
        return swarm.store.live()

    router._directory.nodes = nodes  # type: ignore[method-assign, assignment]
    clock.time += 30
    lost = planned.route.hops[0].peer_id
    router.failed(_failure(lost, PeerTimeoutError("silent")))
    async with asyncio.timeout(1):
        gap = await router.plan_gap(NEED, Span(0, 6), before=None, after=None, keep=frozenset())
        whole = await router.plan(NEED)
    assert lost not in {hop.peer_id for hop in (*gap.route.hops, *whole.route.hops)}
    stalled.set()
    await router.close()


async def test_a_silent_peer_is_not_asked_again_at_once() -> None:
    swarm, router, clock = await _swarm(a="0-5", b="0-5")
    await router.plan(NEED)
    router.failed(_failure("a", PeerTimeoutError("a is silent for 2 s")))
    swarm.store.remove("a")
    clock.time += 3
    await router.plan_gap(NEED, Span(0, 6), before=None, after=None, keep=frozenset())
    swarm.announce("a")  # a read that missed it is no restart
    clock.time += 3
    await router.plan_gap(NEED, Span(0, 6), before=None, after=None, keep=frozenset())
    assert router.health.is_banned("a", clock.time + 1.9)
    assert not router.health.is_banned("a", clock.time + 2.1)


async def test_a_gap_that_nobody_can_fill_is_waited_for() -> None:
    swarm, router, clock = await _swarm(a="0-2", b="3-5")
    swarm.store.remove("b")
    clock.events.append((1003.0, lambda: swarm.announce("b")))
    seen: list[Waiting] = []
    planned = await router.plan_gap(
        NEED,
        Span(3, 6),
        before="a",
        after=None,
        keep=frozenset("a"),
        limits=WaitLimits(missing_s=10),
        on_wait=seen.append,
    )
    assert _hops(planned) == [("b", "3-5")]
    assert seen[0].missing == (Span(3, 6),)


async def test_a_gap_prefers_whom_its_neighbours_are_near_to() -> None:
    swarm, router, _ = await _swarm(a="0-1", b="2-5", c="2-5")
    swarm.announce("a", links=(PeerLink("b", 0.15), PeerLink("c", 0.001)))
    for peer in "abc":
        router.measured(peer, 0.1)
    planned = await router.plan_gap(NEED, Span(2, 6), before="a", after=None, keep=frozenset("a"))
    assert _hops(planned) == [("c", "2-5")]
    router.edge_failed("a", "c")  # now only through the client
    assert not router.may_chain("a", "c")
    planned = await router.plan_gap(NEED, Span(2, 6), before="a", after=None, keep=frozenset("a"))
    assert _hops(planned) == [("b", "2-5")]
    router.edge_worked("a", "c", 0.002)
    assert router.may_chain("a", "c")
    planned = await router.plan_gap(NEED, Span(2, 6), before="a", after=None, keep=frozenset("a"))
    assert _hops(planned) == [("c", "2-5")]
    assert planned.predicted.edges[0].wire_s == pytest.approx(0.001, abs=0.001)


async def test_sessions_of_one_client_spread_over_equal_peers() -> None:
    _, router, _ = await _swarm(a="0-5", b="0-5", c="0-5")
    taken = [_hops(await router.plan(NEED))[0][0] for _ in range(60)]
    assert all(taken.count(peer) > 8 for peer in "abc")


async def _slow(steps: int = ENOUGH_STEPS) -> tuple[FakeSwarm, Router, Clock, Planned, list[HopSpent]]:
    """A route of two hops, of which the second takes half a second a token, with a replica of it."""
    swarm, router, clock = await _swarm(a="0-2", b="3-5", c="3-5")
    for peer in "abc":
        swarm.announce(peer, decode_ms_per_block=1.0, prefill_tokens_per_s=1000.0)
        router.tried(peer, 0.001, 0.01)
    planned = await router.plan(NEED)
    return swarm, router, clock, planned, [HopSpent(steps, 0.0, 0.003), HopSpent(steps, 0.2, 0.3)]


async def test_a_slow_hop_that_pays_to_be_replaced() -> None:
    _, router, clock, planned, spent = await _slow()
    slow = planned.route.hops[1].peer_id
    assert router.find_slow(planned.route, spent, [], 100, 50) == SlowHop(1)
    # not twice within some seconds
    clock.time += REPLACE_PAUSE_S - 0.1
    assert router.find_slow(planned.route, spent, [], 100, 50) is None
    clock.time += LOOK_PAUSE_S
    assert router.find_slow(planned.route, spent, [], 100, 50) == SlowHop(1)
    # whoever plans next knows better than the announcement
    for _ in range(10):
        assert _hops(await router.plan(NEED))[1][0] != slow
    clock.time += SLOW_S + 1
    taken = {_hops(await router.plan(NEED))[1][0] for _ in range(30)}
    assert slow in taken


async def test_a_hop_in_a_chain_is_timed_before_it_is_left() -> None:
    """Its figures came through the hands of those behind it."""
    _, router, _, planned, spent = await _slow()
    chains = [ChainSpent(0, 1, ENOUGH_STEPS, 0.01)]
    assert router.find_slow(planned.route, spent, chains, 100, 50) == SlowChain(0, 1)


async def test_a_hop_is_left_only_for_one_that_was_measured_lately() -> None:
    _, router, clock, planned, spent = await _slow()
    clock.time += FRESH_S + 1
    assert router.find_slow(planned.route, spent, [], 100, 50) is None
    wanted = router.to_try(planned.route)
    assert wanted is not None
    assert wanted.peer_id not in {hop.peer_id for hop in planned.route.hops}
    router.tried(wanted.peer_id, 0.001, 0.01)
    clock.time += LOOK_PAUSE_S
    assert router.find_slow(planned.route, spent, [], 100, 50) == SlowHop(1)


async def test_a_slow_hop_is_left_for_one_that_only_passed_a_trial() -> None:
    """Which is not believed to be faster where it is not needed."""
    swarm, router, _, planned, spent = await _slow()
    for hop in planned.route.hops:
        swarm.announce(hop.peer_id, decode_ms_per_block=100.0)
        router.succeeded(hop.peer_id)
    await router._refresh()
    taken = {_hops(await router.plan(NEED))[1][0] for _ in range(30)}
    assert taken == {"b", "c"}, "a trial makes it an equal"
    assert router.find_slow(planned.route, spent, [], 100, 50) == SlowHop(1)


async def test_time_that_the_way_does_not_take_is_the_hops() -> None:
    _, router, clock, planned, _ = await _slow()
    liar = planned.route.hops[1].peer_id
    silent = [HopSpent(GROSS_STEPS, 0.0, 0.003, wire_s=0.01), HopSpent(GROSS_STEPS, 0.0, 5e-6, wire_s=0.3)]
    assert router.find_slow(planned.route, silent, [], 100, 50) == SlowHop(1)
    clock.time += SLOW_S + 1
    for _ in range(10):
        assert _hops(await router.plan(NEED))[1][0] != liar, "it has to prove itself anew"
    router.succeeded(liar)
    for _ in range(10):
        assert _hops(await router.plan(NEED))[1][0] != liar, "and not at once"


async def test_a_slow_hop_stays_where_replacing_does_not_pay() -> None:
    swarm, router, clock, planned, spent = await _slow()
    assert router.find_slow(planned.route, spent, [], 1, 50) is None
    clock.time += 2
    fine = [HopSpent(ENOUGH_STEPS, 0.0, 0.003), HopSpent(ENOUGH_STEPS, 0.0, 0.004)]
    assert router.find_slow(planned.route, fine, [], 10**6, 50) is None
    clock.time += 2
    replica = ({"b", "c"} - {planned.route.hops[1].peer_id}).pop()
    swarm.store.remove(replica)
    clock.time += 10
    await router.plan(NEED)
    assert router.find_slow(planned.route, spent, [], 10**6, 50) is None


async def test_long_answers_keep_the_snapshot_fresh_for_a_repair() -> None:
    swarm, router, clock, planned, spent = await _slow(steps=1)
    clock.time += 30
    swarm.announce("a", queue_ms=77.0)
    assert router.find_slow(planned.route, spent, [], 1, 50) is None
    await asyncio.sleep(0)
    predicted = router.predict(planned.route, NEED)
    assert predicted is not None
    assert predicted.hops[0].queue_s == 0.077


async def test_a_hop_is_not_judged_by_a_few_steps() -> None:
    _, router, _, planned, spent = await _slow(steps=GROSS_STEPS - 1)
    assert router.find_slow(planned.route, spent, [], 10**6, 50) is None


async def test_a_route_is_predicted_anew_when_its_links_are_known() -> None:
    swarm, router, _ = await _swarm(a="0-2", b="3-5")
    swarm.announce("a", links=(PeerLink("b", 0.002),))
    planned = await router.plan(NEED)
    assert not any(edge.measured for edge in planned.predicted.edges[::2])
    assert planned.predicted.edges[0].wire_s > 0.05
    for peer in "ab":
        router.measured(peer, 0.002)
    predicted = router.predict(planned.route, NEED)
    assert predicted is not None
    assert all(edge.measured for edge in predicted.edges)
    assert predicted.wire_s < 0.006
    router.edge_failed("a", "b")
    relayed = router.predict(planned.route, NEED)
    assert relayed is not None
    assert not relayed.edges[1].chained
    gone = replace(planned.route, hops=(replace(planned.route.hops[0], peer_id="x"),))
    assert router.predict(gone, NEED) is None


async def test_a_chain_that_is_slower_than_its_nodes_say_is_left() -> None:
    swarm, router, clock = await _swarm(a="0-2", b="3-5", c="3-5")
    swarm.announce("a", links=(PeerLink("b", 0.001), PeerLink("c", 0.050)))
    for peer in "abc":
        router.measured(peer, 0.1)
    planned = await router.plan(NEED)
    assert _hops(planned) == [("a", "0-2"), ("b", "3-5")]
    router.chain_measured(["a", "b"], 0.1 + 0.060)
    predicted = router.predict(planned.route, NEED)
    assert predicted is not None
    assert predicted.wire_s == pytest.approx(0.150, abs=0.02)  # through the client at most
    clock.time += 1
    assert _hops(await router.plan(NEED)) == [("a", "0-2"), ("c", "3-5")]


async def test_a_peer_whose_words_the_search_fails_over_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, router, _ = await _swarm(a="0-2", b="0-5", c="3-5")
    find_route = router_module.find_route

    def fragile(nodes: Sequence[NodeInfo], *arguments: object, **options: object) -> Route:
        if any(node.peer_id == "b" for node in nodes):
            raise OverflowError("cannot convert float infinity to integer")
        return find_route(nodes, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(router_module, "find_route", fragile)
    for _ in range(2):
        assert _hops(await router.plan(NEED)) == [("a", "0-2"), ("c", "3-5")]
    assert caplog.text.count("Traceback") == 1
    assert "event=fault where='routing' peer=b count=2" in caplog.text


async def test_a_reading_that_fails_leaves_what_was_read_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, router, clock = await _swarm(a="0-5")
    await router.plan(NEED)

    async def odd(self: MemoryDirectory, model: ModelRef) -> list[NodeInfo]:
        raise ZeroDivisionError

    monkeypatch.setattr(MemoryDirectory, "nodes", odd)
    clock.time += 100
    assert _hops(await router.plan(NEED)) == [("a", "0-5")]
    assert "ZeroDivisionError" in caplog.text
