from __future__ import annotations

import asyncio

from swarm_node.client.routing.route_finder import Planned
from swarm_node.client.routing.router import Router
from swarm_node.client.routing.slow_search import (
    FRESH_S,
    LOOK_PAUSE_S,
    REPLACE_PAUSE_S,
    SLOW_S,
    SlowChain,
    SlowHop,
)
from swarm_node.swarm.routing.slow_hop import ENOUGH_STEPS, GROSS_STEPS, ChainSpent, HopSpent
from tests.doubles.fake_swarm import FakeSwarm
from tests.doubles.router_case import NEED, Clock, clocked_swarm, hops


async def _slow(steps: int = ENOUGH_STEPS) -> tuple[FakeSwarm, Router, Clock, Planned, list[HopSpent]]:
    """A route of two hops, of which the second takes half a second a token, with a replica of it."""
    swarm, router, clock = await clocked_swarm(a="0-2", b="3-5", c="3-5")
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
        assert hops(await router.plan(NEED))[1][0] != slow
    clock.time += SLOW_S + 1
    taken = {hops(await router.plan(NEED))[1][0] for _ in range(30)}
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
    wanted = router.reserves.to_try(planned.route)
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
    await router._announcements.refresh()
    taken = {hops(await router.plan(NEED))[1][0] for _ in range(30)}
    assert taken == {"b", "c"}, "a trial makes it an equal"
    assert router.find_slow(planned.route, spent, [], 100, 50) == SlowHop(1)


async def test_time_that_the_way_does_not_take_is_the_hops() -> None:
    _, router, clock, planned, _ = await _slow()
    liar = planned.route.hops[1].peer_id
    silent = [HopSpent(GROSS_STEPS, 0.0, 0.003, wire_s=0.01), HopSpent(GROSS_STEPS, 0.0, 5e-6, wire_s=0.3)]
    assert router.find_slow(planned.route, silent, [], 100, 50) == SlowHop(1)
    clock.time += SLOW_S + 1
    for _ in range(10):
        assert hops(await router.plan(NEED))[1][0] != liar, "it has to prove itself anew"
    router.succeeded(liar)
    for _ in range(10):
        assert hops(await router.plan(NEED))[1][0] != liar, "and not at once"


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


async def test_a_hop_is_not_judged_by_a_few_steps() -> None:
    _, router, _, planned, spent = await _slow(steps=GROSS_STEPS - 1)
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


async def test_a_hop_that_reads_a_long_context_is_not_slow() -> None:
    """Another one would take as long there."""
    swarm, router, clock = await clocked_swarm(a="0-2", b="3-5", c="3-5")
    room = {"free_kv_tokens": 100_000, "total_kv_tokens": 100_000}
    for peer in "abc":
        attends = {} if peer == "a" else {"context_ms_per_block": 1.0}
        swarm.announce(peer, decode_ms_per_block=1.0, prefill_tokens_per_s=1e6, **attends, **room)
        router.tried(peer, 0.001, 0.01)
    planned = await router.plan(NEED)
    spent = [HopSpent(ENOUGH_STEPS, 0.0, 0.003), HopSpent(ENOUGH_STEPS, 0.0, 3 * 0.021)]
    assert router.find_slow(planned.route, spent, [], 1000, 20_000) is None
    clock.time += LOOK_PAUSE_S
    assert router.find_slow(planned.route, spent, [], 1000, 50) == SlowHop(1)
