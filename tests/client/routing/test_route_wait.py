from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from swarm_node.client.routing.bans import BUSY_JITTER
from swarm_node.client.routing.route_wait import LOADING_S, Waiting, WaitLimits
from swarm_node.dht.memory import MemoryDirectory
from swarm_node.swarm.errors import (
    BusyError,
    ModelMismatchError,
    NetworkError,
    PeerTimeoutError,
    RemoteProtocolError,
)
from swarm_node.swarm.routing.best_route import NoRouteError
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from tests.doubles.fake_swarm import MODEL
from tests.doubles.router_case import NEED, clocked_swarm, failure, hops


async def test_missing_blocks_are_named_with_who_was_seen() -> None:
    _, router, clock = await clocked_swarm(a="0-2")
    with pytest.raises(NoRouteError, match=r"3-5.*a has 0-2 \(online\)") as caught:
        await router.plan(NEED)
    assert caught.value.missing == (Span(3, 6),)
    assert clock.time == 1000.0


async def test_waiting_tells_what_is_missing_and_ends_when_it_comes() -> None:
    swarm, router, clock = await clocked_swarm(a="0-2", b="3-5")
    swarm.store.remove("b")
    clock.events.append((1003.0, lambda: swarm.announce("b")))
    seen: list[Waiting] = []
    planned = await router.plan(NEED, limits=WaitLimits(missing_s=10), on_wait=seen.append)
    assert hops(planned) == [("a", "0-2"), ("b", "3-5")]
    assert 1003.0 <= clock.time <= 1003.6
    assert seen[0].missing == (Span(3, 6),)
    assert seen[0].seconds_left == pytest.approx(10)


async def test_waiting_ends_in_time() -> None:
    _, router, clock = await clocked_swarm(a="0-2")
    with pytest.raises(NoRouteError):
        await router.plan(NEED, limits=WaitLimits(missing_s=4))
    assert clock.time == pytest.approx(1004.0)


async def test_giving_up_says_why_peers_failed() -> None:
    _, router, _ = await clocked_swarm(a="0-5")
    router.failed(failure("a"))
    with pytest.raises(NoRouteError, match=r"failed lately.*a closed the stream"):
        await router.plan(NEED, limits=WaitLimits(failed_s=0))


async def test_busy_peers_are_asked_again_after_their_pause() -> None:
    _, router, clock = await clocked_swarm(a="0-5")
    router.failed(failure("a", BusyError("a is busy", retry_after=1.5)))
    await router.plan(NEED, limits=WaitLimits(failed_s=0))
    assert 1001.5 <= clock.time < 1000 + 1.5 * (1 + BUSY_JITTER) + 0.02
    router.failed(failure("a", BusyError("a is busy", retry_after=5)))
    with pytest.raises(BusyError, match="every peer") as caught:
        await router.plan(NEED, limits=WaitLimits(busy_s=2))
    assert caught.value.retry_after == 5


async def test_one_that_serves_other_weights_after_all() -> None:
    _, router, _ = await clocked_swarm(a="0-5")
    router.failed(failure("a", ModelMismatchError("a serves another model", hint="Same files.")))
    with pytest.raises(ModelMismatchError, match="another model") as caught:
        await router.plan(NEED)
    assert caught.value.hint == "Same files."


async def test_another_model_under_the_same_name_is_explained() -> None:
    swarm, router, _ = await clocked_swarm(a="0-5")
    swarm.announce("a", model=replace(MODEL, digest="cd" * 32))
    with pytest.raises(ModelMismatchError, match=f"{'ab' * 6}.*{'cd' * 6}"):
        await router.plan(NEED)


async def test_other_models_are_named_when_ours_is_absent() -> None:
    swarm, router, _ = await clocked_swarm(a="0-5")
    swarm.announce("a", model=replace(MODEL, name="other", digest="cd" * 32))
    with pytest.raises(NoRouteError, match=r"nobody serves toy@.*other@cdcd"):
        await router.plan(NEED)


async def test_rather_one_that_failed_often_than_nobody() -> None:
    _, router, clock = await clocked_swarm(a="0-5")
    await router.plan(NEED)
    for _ in range(6):  # bans of 2, 4, … 64 s
        router.failed(failure("a"))
        clock.time += 0.01
    router.answered("a")
    limits = WaitLimits(failed_s=10)
    assert hops(await router.plan(NEED, limits=limits)) == [("a", "0-5")]
    assert clock.time < 1002
    router.failed(failure("a", RemoteProtocolError("nonsense")))
    with pytest.raises(NoRouteError):
        await router.plan(NEED, limits=limits)


async def test_who_waits_for_missing_blocks_waits_for_anybody_new() -> None:
    swarm, router, clock = await clocked_swarm(a="0-5", b="0-5")
    swarm.store.remove("b")
    await router.plan(NEED)
    router.failed(failure("a", RemoteProtocolError("nonsense")))  # banned for longer than the wait
    clock.events.append((1003.0, lambda: swarm.announce("b")))
    limits = WaitLimits(missing_s=30, failed_s=30)
    assert hops(await router.plan(NEED, limits=limits)) == [("b", "0-5")]
    assert clock.time < 1004


async def test_a_patient_one_tries_those_that_failed_now_and_then() -> None:
    """Whoever fell silent may be back long before its ban ends."""
    _, router, clock = await clocked_swarm(a="0-5")
    await router.plan(NEED)
    tried: list[float] = []
    began = clock.time

    async def try_for_ever() -> None:
        while True:
            planned = await router.plan(NEED, began=began, limits=WaitLimits(missing_s=20))
            assert hops(planned) == [("a", "0-5")]
            tried.append(clock.time - began)
            router.failed(failure("a", PeerTimeoutError("silent")))
            router.answered("a")

    with pytest.raises(NoRouteError):
        await try_for_ever()
    assert tried[0] == 0
    pauses = [after - before for before, after in itertools.pairwise(tried)]
    assert pauses == sorted(pauses)
    assert 0.9 < pauses[0] < 2.1
    assert 4 <= len(tried) <= 8


async def test_a_gap_that_nobody_can_fill_is_waited_for() -> None:
    swarm, router, clock = await clocked_swarm(a="0-2", b="3-5")
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
    assert hops(planned) == [("b", "3-5")]
    assert seen[0].missing == (Span(3, 6),)


async def test_an_empty_directory_is_believed_only_if_its_peers_reach_others() -> None:
    """One that has just started, or has lost the others for a moment, knows of nobody yet."""
    swarm, router, clock = await clocked_swarm(a="0-5")
    swarm.store.remove("a")
    with pytest.raises(NoRouteError, match=r"seen at all\.$"):
        await router.plan(NEED)
    assert clock.time == 1000.0
    swarm.store.is_alone = True
    with pytest.raises(NoRouteError, match=r"seen at all\. The peers that were asked reach no other"):
        await router.plan(NEED, limits=WaitLimits(alone_s=4))
    assert clock.time == pytest.approx(1004.0)
    clock.events.append((1007.0, lambda: swarm.announce("a")))
    assert hops(await router.plan(NEED)) == [("a", "0-5")]
    assert 1007.0 <= clock.time <= 1007.6


async def test_a_directory_that_does_not_answer_is_asked_again() -> None:
    swarm, router, clock = await clocked_swarm(a="0-5")
    swarm.store.down = True
    seen: list[Waiting] = []
    with pytest.raises(NetworkError, match="cannot be reached"):
        await router.plan(NEED, limits=WaitLimits(failed_s=4), on_wait=seen.append)
    assert clock.time == pytest.approx(1004.0)
    assert "cannot be reached" in seen[0].message
    clock.events.append((1007.0, lambda: setattr(swarm.store, "down", False)))
    assert hops(await router.plan(NEED)) == [("a", "0-5")]
    assert clock.time == 1007.0


async def test_who_waits_reads_the_directory_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes answer one that asks far more often no longer."""
    _, router, _ = await clocked_swarm(a="0-2")
    readings, nodes = [], MemoryDirectory.nodes

    async def counted(self: MemoryDirectory, model: ModelRef) -> list[NodeInfo]:
        readings.append(model)
        return await nodes(self, model)

    monkeypatch.setattr(MemoryDirectory, "nodes", counted)
    with pytest.raises(NoRouteError):
        await router.plan(NEED, limits=WaitLimits(missing_s=4))
    assert 8 <= len(readings) <= 11


async def test_blocks_that_nodes_are_loading_are_waited_for() -> None:
    """Without being told to wait: they will be there."""
    swarm, router, clock = await clocked_swarm(a="0-2", b="3-5")
    swarm.announce("b", state=NodeState.JOINING)
    clock.events.append((1100.0, lambda: swarm.announce("b")))
    seen: list[Waiting] = []
    assert hops(await router.plan(NEED, on_wait=seen.append)) == [("a", "0-2"), ("b", "3-5")]
    assert 1100.0 <= clock.time < 1101.0
    assert seen[0].text == f"Waiting for blocks 3-5 ({LOADING_S:.0f} s left); …b is loading 3-5"


async def test_blocks_of_which_nobody_loads_some_are_not() -> None:
    swarm, router, clock = await clocked_swarm(a="0-1", b="3-5")
    swarm.announce("b", state=NodeState.JOINING)
    with pytest.raises(NoRouteError):
        await router.plan(NEED)
    assert clock.time == 1000.0
