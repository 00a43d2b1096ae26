from __future__ import annotations

from swarm_node.client.routing.evidence import Standing
from swarm_node.client.routing.reserves import EXPLORE_S, Wanted
from swarm_node.swarm.types import Span
from tests.doubles.router_case import NEED, clocked_swarm, failure


async def test_blocks_for_which_nobody_is_known_and_who_could_carry_them() -> None:
    _, router, _ = await clocked_swarm(a="0-2", b="3-5", c="0-5")
    await router.plan(NEED)
    reserves = router.reserves
    assert reserves.unmet(NEED, Wanted()) == (Span(0, 6),)
    router.answered("a")
    assert reserves.unmet(NEED, Wanted()) == (Span(3, 6),)
    assert {node.peer_id for node in reserves.to_meet(NEED, Wanted())} == {"b", "c"}
    assert reserves.unmet(NEED, Wanted(Span(0, 3))) == ()
    assert reserves.unmet(NEED, Wanted(Span(0, 3), frozenset("a"))) == (Span(0, 3),)
    assert reserves.unmet(NEED, Wanted(Span(0, 3), least=Standing.PROVEN)) == (Span(0, 3),)
    router.failed(failure("b"))
    assert {node.peer_id for node in reserves.to_meet(NEED, Wanted())} == {"c"}


async def test_trials_until_there_are_reserves_and_then_now_and_then() -> None:
    _, router, clock = await clocked_swarm(a="0-5", b="0-5", c="0-5", d="0-5")
    planned = await router.plan(NEED)
    (used,) = (hop.peer_id for hop in planned.route.hops)
    router.succeeded(used)
    tried = []
    for _ in range(2):
        node = router.reserves.to_try(planned.route)
        assert node is not None
        router.tried(node.peer_id, 0.001, 0.01)
        tried.append(node.peer_id)
    assert used not in tried
    assert router.reserves.to_try(planned.route) is None, "two besides the one in use are enough"
    clock.time += EXPLORE_S
    last = router.reserves.to_try(planned.route)
    assert last is not None
    assert {used, *tried, last.peer_id} == set("abcd")
