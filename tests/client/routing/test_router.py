from __future__ import annotations

import pytest

from swarm_node.swarm.types import PeerLink
from tests.doubles.router_case import NEED, clocked_swarm, failure, hops


async def test_a_route_with_the_announcements_of_its_hops() -> None:
    _, router, _ = await clocked_swarm(a="0-2", b="3-5", c="5-5")
    planned = await router.plan(NEED)
    assert hops(planned) == [("a", "0-2"), ("b", "3-5")]
    assert set(planned.nodes) == {"a", "b"}


async def test_a_failed_peer_is_avoided_then_tried_again() -> None:
    _, router, clock = await clocked_swarm(a="0-5", b="0-5")
    ((first, _),) = hops(await router.plan(NEED))
    router.failed(failure(first))
    ((second, _),) = hops(await router.plan(NEED))
    assert second != first
    router.failed(failure(second))
    router.answered(first)
    assert hops(await router.plan(NEED)) == [(first, "0-5")]
    assert 1001.9 < clock.time < 1003


async def test_a_chain_that_is_slower_than_its_nodes_say_is_left() -> None:
    swarm, router, clock = await clocked_swarm(a="0-2", b="3-5", c="3-5")
    swarm.announce("a", links=(PeerLink("b", 0.001), PeerLink("c", 0.050)))
    for peer in "abc":
        router.measured(peer, 0.1)
    planned = await router.plan(NEED)
    assert hops(planned) == [("a", "0-2"), ("b", "3-5")]
    router.chain_measured(["a", "b"], 0.1 + 0.060)
    predicted = router.predict(planned.route, NEED)
    assert predicted is not None
    assert predicted.wire_s == pytest.approx(0.150, abs=0.02)  # through the client at most
    clock.time += 1
    assert hops(await router.plan(NEED)) == [("a", "0-2"), ("c", "3-5")]
