from __future__ import annotations

import asyncio

import pytest

from swarm_node.client.routing.announcements import UNSETTLED_S
from swarm_node.dht.memory import MemoryDirectory
from swarm_node.swarm.errors import NetworkError, PeerTimeoutError
from swarm_node.swarm.types import ModelRef, NodeInfo, Span
from tests.doubles.router_case import NEED, clocked_swarm, failure, hops


async def test_a_directory_that_is_down_leaves_the_last_snapshot() -> None:
    swarm, router, clock = await clocked_swarm(a="0-5")
    await router.plan(NEED)
    swarm.store.down = True
    clock.time += 100
    assert hops(await router.plan(NEED)) == [("a", "0-5")]
    other = swarm.router(clock=clock.now, sleep=clock.sleep)
    with pytest.raises(NetworkError, match="directory"):
        await other.plan(NEED)


async def test_after_a_failure_the_directory_is_read_again_and_again_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swarm_node.client.routing.announcements.LOOK_AGAIN_S", 0.01)
    swarm, router, clock = await clocked_swarm(a="0-5", b="0-5")
    await router.plan(NEED)
    router.failed(failure("a"))
    await asyncio.sleep(0.05)
    swarm.announce("b", maddrs=("/ip4/127.0.0.1/tcp/4242",))
    await asyncio.sleep(0.05)
    (hop,) = (await router.plan_gap(NEED, Span(0, 6), before=None, after=None, keep=frozenset())).route.hops
    assert hop.maddrs == ("/ip4/127.0.0.1/tcp/4242",)
    clock.time += UNSETTLED_S
    await asyncio.sleep(0.05)
    assert router._announcements._look_again is None
    await router.close()


async def test_a_repair_does_not_wait_for_a_directory_that_stalls() -> None:
    """Where nodes died, reads of the directory hang on them."""
    swarm, router, clock = await clocked_swarm(a="0-5", b="0-5")
    planned = await router.plan(NEED)
    stalled = asyncio.Event()

    async def nodes(model: object) -> list[NodeInfo]:
        await stalled.wait()
        return swarm.store.live()

    router._announcements._directory.nodes = nodes  # type: ignore[method-assign, assignment]
    clock.time += 30
    lost = planned.route.hops[0].peer_id
    router.failed(failure(lost, PeerTimeoutError("silent")))
    async with asyncio.timeout(1):
        gap = await router.plan_gap(NEED, Span(0, 6), before=None, after=None, keep=frozenset())
        whole = await router.plan(NEED)
    assert lost not in {hop.peer_id for hop in (*gap.route.hops, *whole.route.hops)}
    stalled.set()
    await router.close()


async def test_a_reading_that_fails_leaves_what_was_read_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, router, clock = await clocked_swarm(a="0-5")
    await router.plan(NEED)

    async def odd(self: MemoryDirectory, model: ModelRef) -> list[NodeInfo]:
        raise ZeroDivisionError

    monkeypatch.setattr(MemoryDirectory, "nodes", odd)
    clock.time += 100
    assert hops(await router.plan(NEED)) == [("a", "0-5")]
    assert "ZeroDivisionError" in caplog.text
