from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from fake_swarm import MODEL, FakeSwarm

from swarm_node.client.hop import HopFailedError
from swarm_node.client.router import BUSY_JITTER, Need, Router, Waiting, WaitLimits
from swarm_node.swarm.errors import (
    BusyError,
    ErrorCode,
    ModelMismatchError,
    NetworkError,
    PeerError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
)
from swarm_node.swarm.routing import NoRouteError
from swarm_node.swarm.types import NodeState, Span

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
        (PeerError("leaving", code=ErrorCode.DRAINING, retriable=True), 60),
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
