"""Swarms of 2 to 64 nodes that come, go, die and slow down, with a clock of their own."""

from __future__ import annotations

import random
from functools import partial

import pytest

from scripts.studies.placement.clusters import cluster, offers
from scripts.studies.placement.world import Clock, World
from swarm_node.dht.directory import TTL_S
from swarm_node.swarm.placement.types import NodeOffer
from swarm_node.swarm.types import Span
from tests.swarm.placement.placement_cases import shape

HOUR = 3600.0


def world_of(seed: int, count: int, n_blocks: int, **options: float) -> tuple[Clock, World, random.Random]:
    """All come within a few minutes, and have found their places an hour later."""
    rng = random.Random(seed)
    machines, _ = cluster(rng, count, 0, n_blocks)
    clock = Clock()
    world = World(clock, shape(n_blocks), rng, **options)
    for offer in offers(machines):
        clock.after(rng.uniform(0, 300), partial(world.join, offer))
    clock.run(HOUR)
    return clock, world, rng


@pytest.mark.parametrize(
    ("seed", "count", "n_blocks"), [(1, 2, 8), (6, 3, 12), (3, 5, 24), (4, 8, 30), (5, 16, 24)]
)
def test_all_find_places_and_then_stay(seed: int, count: int, n_blocks: int) -> None:
    clock, world, _ = world_of(seed, count, n_blocks)
    assert world.is_whole
    assert world.tally.moves <= count
    moved = world.tally.moves
    clock.run(6 * HOUR)
    assert world.tally.moves == moved
    assert (world.tally.own_holes, world.finish().uncovered_s) == (0, 0.0)


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_measurements_that_waver_move_nobody(seed: int) -> None:
    """Every node measures itself again each minute, 4 % off either way."""
    clock, world, _ = world_of(seed, 4, 16, noise=0.04, remeasure_s=60.0)
    moved = world.tally.moves
    clock.run(2 * HOUR)
    assert world.tally.moves - moved <= 1
    assert world.tally.own_holes == 0


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "count", "n_blocks"), [(21, 6, 12), (22, 12, 24), (23, 64, 32)])
def test_coverage_is_never_lost_by_a_move(seed: int, count: int, n_blocks: int) -> None:
    """Every few minutes somebody comes, goes, dies or slows down; few moves follow, and none makes a hole."""
    clock, world, rng = world_of(seed, count, n_blocks, noise=0.03)
    spare, _ = cluster(rng, 8, 0, n_blocks)
    happened, now = 0, HOUR
    for number in range(16):
        now += rng.uniform(60, 600)
        clock.run(now)
        alive = sorted(peer for peer, box in world.boxes.items() if box.counted is not None)
        what = rng.choice(["come", "die", "leave", "slow"])
        if what == "come" or len(alive) <= max(2, count // 2):
            machine = spare[number % len(spare)]
            offer = offers([machine])[0]
            world.join(
                NodeOffer(f"late{number}", offer.memory_bytes, offer.decode_ms_per_block, 0.0, offer.links)
            )
        elif what == "die":
            world.kill(rng.choice(alive))
        elif what == "leave":
            world.leave(rng.choice(alive))
        else:
            peer = rng.choice(alive)
            world.set_speed(peer, world.boxes[peer].offer.decode_ms_per_block * rng.uniform(1.5, 4))
        happened += 1
    clock.run(now + HOUR)
    moved = world.tally.moves
    clock.run(now + 3 * HOUR)
    assert world.tally.own_holes == 0
    assert world.tally.moves == moved  # at rest
    assert world.tally.moves <= count + 3 * happened


def test_a_standing_by_node_takes_over_when_the_only_server_dies() -> None:
    clock = Clock()
    world = World(clock, shape(8), random.Random(1), load_s=0.5)
    world.join(NodeOffer("fast", 800, 0.1), Span(0, 8))
    clock.run(60)
    world.join(NodeOffer("idle", 800, 90.0))
    clock.run(120)
    assert world.boxes["idle"].state is None  # of no use beside the other
    world.kill("fast")
    clock.run(120 + TTL_S + 10)
    assert world.is_whole


def test_a_node_that_gets_slow_is_passed_by() -> None:
    """Of three with half of the blocks each the one that is alone on its half gets slow: another moves."""
    clock = Clock()
    world = World(clock, shape(8), random.Random(1))
    for peer_id in ("a", "b"):
        world.join(NodeOffer(peer_id, 400, 1.0))
    world.join(NodeOffer("c", 400, 1.1))
    clock.run(HOUR)
    lonely = next(peer for peer, box in world.boxes.items() if _alone(world, peer))
    crowd = [peer for peer in world.boxes if peer != lonely]
    world.set_speed(lonely, 20.0)
    clock.run(2 * HOUR)
    spans = {peer: box.span for peer, box in world.boxes.items()}
    assert world.is_whole
    assert {spans[crowd[0]], spans[crowd[1]]} == {Span(0, 4), Span(4, 8)}  # the slow one is spare now
    assert world.tally.own_holes == 0


def _alone(world: World, peer_id: str) -> bool:
    span = world.boxes[peer_id].span
    return span is not None and all(box.span != span for peer, box in world.boxes.items() if peer != peer_id)
