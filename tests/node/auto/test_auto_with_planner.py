"""Nodes that decide for themselves with the real planner: whole swarms in simulated time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from swarm_node.node.auto.blocks import LONGEST_SETTLE_S, SETTLE_S
from swarm_node.swarm.placement import planner
from swarm_node.swarm.types import Span
from tests.node.auto_swarm import ROOM, SHAPE, FakeSwarm, machine


async def test_a_cold_cluster_of_four_settles_in_seconds():
    async with FakeSwarm(planner) as swarm:
        for peer, blocks, decode_ms in (("a", 4, 2.0), ("b", 6, 1.0), ("c", 3, 4.0), ("d", 5, 1.0)):
            swarm.start(peer, machine(blocks, decode_ms), load_s=0.0)
        took = await swarm.covered(within=30)
        assert took <= 3 * SETTLE_S
        swarm.never_uncovered = True
        await swarm.time.pass_by(600)
        assert not swarm.holes
        # Whatever the order was, the route is the one that the planner finds with everybody in view.
        offers = [host.machine.offer(host.peer_id, host.links()) for host in swarm.hosts.values()]
        best = planner.assign(offers, SHAPE)
        assert best
        assert set(best) == {peer for peer, span in swarm.spans.items() if span}


async def test_nodes_that_start_one_after_another_cover_the_model():
    async with FakeSwarm(planner) as swarm:
        for peer in "abcd":
            swarm.start(peer, machine(4))
            await swarm.time.pass_by(1.5)
        await swarm.covered(within=60)


async def test_where_memory_is_too_small_for_all_the_missing_blocks_are_left():
    async with FakeSwarm(planner) as swarm:
        host = swarm.start("a", machine(5))
        await swarm.time.until(lambda: host.is_online, within=30)
        assert len(host.loaded) == 5
        swarm.start("b", machine(7))
        await swarm.covered(within=30)


async def test_a_faster_newcomer_makes_the_route_faster_without_a_hole():
    async with FakeSwarm(planner) as swarm:
        for peer in "ab":
            swarm.start(peer, machine(6, 4.0))
        await swarm.covered(within=60)
        swarm.never_uncovered = True
        host = swarm.start("fast", machine(8, 0.5))
        await swarm.time.until(lambda: host.is_online, within=60)
        assert len(host.loaded) == 8
        planned = next(details for name, details in host.events if name == "planned")
        assert planned["gain"] == "faster"
        assert planned["token_ms"] < planned["token_ms_before"]
        await swarm.time.pass_by(1000)
        assert not swarm.holes


async def test_others_take_over_what_a_killed_node_served():
    async with FakeSwarm(planner) as swarm:
        for peer in "abc":
            swarm.start(peer, machine(8))
        await swarm.covered(within=60)
        await swarm.time.pass_by(5)
        await swarm.kill("b")
        took = await swarm.covered(within=60)
        assert took < 30
        await swarm.time.pass_by(60)


async def test_what_nobody_noticed_expires():
    async with FakeSwarm(planner) as swarm:
        for peer in "abc":
            swarm.start(peer, machine(8))
        await swarm.covered(within=60)
        await swarm.kill("c", noticed=False)
        await swarm.covered(within=150)


async def test_a_standing_by_node_replaces_a_killed_one():
    async with FakeSwarm(planner) as swarm:
        for peer in ("a", "b"):
            swarm.start(peer, machine(6))
        await swarm.covered(within=60)
        for peer in ("c", "d", "e", "f"):
            swarm.start(peer, machine(6))
        await swarm.time.pass_by(60)
        victim = next(peer for peer, span in swarm.spans.items() if span)
        await swarm.kill(victim)
        assert await swarm.covered(within=60) < 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [4, 8])
async def test_in_any_order_nothing_flaps_and_no_hole_opens(seed):
    """Machines at random, joining at random: every block is served as soon as memory allows, stays served,
    and in the end nobody moves any more."""
    rng = random.Random(seed)
    async with FakeSwarm(planner) as swarm:
        room = 0
        for number in range(rng.randint(3, 9)):
            blocks = rng.randint(2, 12)
            room += blocks
            swarm.start(
                f"peer-{rng.randrange(1000):03d}-{number}",
                machine(blocks, rng.choice([0.5, 1.0, 2.0, 5.0])),
                load_s=rng.choice([0.0, 0.3, 2.0]),
                announce_s=rng.uniform(0.0, 0.2),
            )
            await swarm.time.pass_by(rng.choice([0.0, 0.1, 2.0, 30.0]))
        if room >= SHAPE.n_blocks:
            await swarm.covered(within=LONGEST_SETTLE_S + 90)
            swarm.never_uncovered = True
        await swarm.time.pass_by(900)
        moves = sum(host.names.count("moving") for host in swarm.hosts.values())
        await swarm.time.pass_by(1500)
        assert moves == sum(host.names.count("moving") for host in swarm.hosts.values())
        assert not swarm.holes
        assert swarm.most_moving <= 1
        assert all(span is None or span.end <= SHAPE.n_blocks for span in swarm.spans.values())


async def test_blocks_that_nobody_serves_are_taken_with_part_of_their_experts():
    lean = replace(SHAPE, rooms=(ROOM // 2,) * 12)
    async with FakeSwarm(planner) as swarm:
        host = swarm.start("a", replace(machine(6), lean=lean))
        await swarm.covered(within=60)
        assert host.loaded == Span(0, 12)
        assert host.announced.max_blocks == 12
        await swarm.time.pass_by(60)
        assert host.names == ["planned", "online"]
    async with FakeSwarm(planner) as swarm:
        hosts = [swarm.start(name, replace(machine(6), lean=lean)) for name in "ab"]
        await swarm.covered(within=60)
        assert sorted(host.loaded for host in hosts) == [Span(0, 6), Span(6, 12)]
        assert [host.announced.max_blocks for host in hosts] == [6, 6]
