"""Round trips to possible neighbours: whom, how often, and what is announced of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.config import NodeConfig
from swarm_node.node.node import Node
from swarm_node.node.presence.link_probe import (
    FIRST_PAUSE_S,
    FIRST_ROUND_S,
    FORGET_S,
    FRESH_S,
    JITTER,
    PINGS,
    PROBE_S,
    LinkProbe,
    may_be_neighbours,
    neighbours,
)
from swarm_node.swarm.errors import PeerUnreachableError, RemoteProtocolError
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import MAX_PEER_LINKS, ModelRef, NodeInfo, NodeState, PeerLink, Span

MODEL = ModelRef("m", "d" * 64, 12)


def node(peer_id: str, start: int, end: int, **more: object) -> NodeInfo:
    values: dict[str, object] = {"model": MODEL, "state": NodeState.ONLINE, **more}
    return NodeInfo(peer_id=peer_id, maddrs=(f"/{peer_id}",), span=Span(start, end), **values)  # type: ignore[arg-type]


OWN = node("own", 4, 8)


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time


@dataclass
class FakeLinks:
    """``rtts`` in seconds by peer id; a peer that is not in it cannot be dialled, None never answers."""

    rtts: dict[str, float | None]
    dialled: list[str] = field(default_factory=list)
    pings: int = 0

    async def get(self, peer_id: str, maddrs: Sequence[str] = ()) -> FakeLink:
        assert maddrs == (f"/{peer_id}",)
        self.dialled.append(peer_id)
        if peer_id not in self.rtts:
            raise PeerUnreachableError(f"{peer_id} cannot be dialled")
        return FakeLink(self, peer_id)


@dataclass
class FakeLink:
    links: FakeLinks
    peer_id: str

    async def ping(self) -> float:
        self.links.pings += 1
        rtt = self.links.rtts[self.peer_id]
        if rtt is None:
            await asyncio.Event().wait()
            raise AssertionError
        return rtt * (1 + self.links.pings % PINGS)  # the least of some is the line's


async def probe_of(
    nodes: list[NodeInfo], rtts: dict[str, float | None]
) -> tuple[LinkProbe, FakeLinks, Clock, MemoryStore]:
    clock = Clock()
    store = MemoryStore(clock=clock.now, ttl=1e9)
    for info in [OWN, *nodes]:
        await MemoryDirectory(store).announce(info)
    links = FakeLinks(rtts)
    probe = LinkProbe(MemoryDirectory(store), links, lambda: OWN, clock=clock.now, rng=random.Random(0))
    return probe, links, clock, store


def test_who_may_be_a_neighbour() -> None:
    for other, expected in (
        (Span(8, 12), True),
        (Span(0, 4), True),
        (Span(6, 9), True),
        (Span(2, 5), True),
        (Span(0, 12), True),
        (Span(4, 8), True),  # enters or leaves inside
        (Span(9, 12), False),
        (Span(0, 3), False),
    ):
        assert may_be_neighbours(Span(4, 8), other) is expected, other
        assert may_be_neighbours(other, Span(4, 8)) is expected, other
    assert not may_be_neighbours(Span(4, 5), Span(4, 5))  # one block has no inside


def test_likely_neighbours_come_first() -> None:
    nodes = [
        node("inside", 5, 7),
        node("after", 8, 12),
        node("before", 0, 4),
        node("far", 10, 12),
        node("leaving", 8, 12, state=NodeState.DRAINING),
        node("other", 8, 12, model=ModelRef("m", "e" * 64, 12)),
        OWN,
    ]
    found = [info.peer_id for info in neighbours(OWN, nodes, random.Random(0))]
    assert set(found[:2]) == {"after", "before"}
    assert found[2:] == ["inside"]


async def test_a_round_measures_the_least_of_some_round_trips() -> None:
    probe, links, _, _ = await probe_of([node("a", 8, 12), node("b", 0, 4)], {"a": 0.02, "b": 0.001})
    await probe.probe()
    assert probe.links() == (PeerLink("b", 0.001), PeerLink("a", 0.02))
    assert links.pings == 2 * PINGS


async def test_one_that_does_not_answer_is_left_alone_longer_each_time() -> None:
    probe, links, clock, _ = await probe_of([node("a", 8, 12)], {})
    for expected in (1, 2):
        await probe.probe()
        assert len(links.dialled) == expected
        clock.time += FIRST_PAUSE_S * expected - 1
        await probe.probe()
        assert len(links.dialled) == expected
        clock.time += 2
    assert probe.links() == ()


async def test_a_frozen_one_costs_a_few_seconds_and_its_link_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swarm_node.node.presence.link_probe.PROBE_TIMEOUT_S", 0.01)
    probe, links, clock, _ = await probe_of([node("a", 8, 12), node("b", 0, 4)], {"a": 0.02, "b": 0.02})
    await probe.probe()
    clock.time += PROBE_S
    links.rtts["a"] = None
    await probe.probe()
    assert [link.peer_id for link in probe.links()] == ["b"]


async def test_what_chains_measure_saves_the_probe() -> None:
    probe, links, clock, _ = await probe_of([node("a", 8, 12)], {"a": 0.02})
    probe.observed("a", 0.01, 5e6)
    await probe.probe()
    assert links.dialled == []
    assert probe.links() == (PeerLink("a", 0.01, 5e6),)
    probe.observed("a", 0.02)
    assert probe.links()[0].rtt_s == pytest.approx(0.013)
    assert probe.links()[0].bytes_per_s == 5e6
    clock.time += FRESH_S + 1
    await probe.probe()
    assert links.dialled == ["a"]
    assert probe.links() == (PeerLink("a", 0.02, 5e6),)


async def test_old_measurements_are_announced_no_more() -> None:
    probe, _, clock, _ = await probe_of([], {})
    probe.observed("a", 0.01)
    clock.time += FORGET_S + 1
    assert probe.links() == ()


async def test_a_large_swarm_is_not_probed_in_one_go() -> None:
    nodes = [node(f"n{i}", 8, 12) for i in range(50)]
    rtts: dict[str, float | None] = {info.peer_id: 0.01 for info in nodes}
    probe, links, clock, _ = await probe_of(nodes, rtts)
    await probe.probe()
    assert len(links.dialled) == MAX_PEER_LINKS == len(probe.links())
    for i in range(60):
        probe.observed(f"x{i}", 0.001 * (i + 1))
        clock.time += 0.01
    assert len(probe.links()) == MAX_PEER_LINKS


async def test_a_crowd_of_strangers_does_not_take_the_turn_of_one_that_was_met() -> None:
    strangers = [node(f"stranger {i}", 8, 12) for i in range(200)]
    probe, links, clock, _ = await probe_of([*strangers, node("met", 0, 12)], {"met": 0.02})
    probe.observed("met", 0.02)
    clock.time += FRESH_S + 1
    await probe.probe()
    assert links.dialled[0] == "met"
    assert len(links.dialled) == MAX_PEER_LINKS


async def test_rounds_come_about_once_a_minute_and_outlive_a_directory_that_is_down() -> None:
    _, links, clock, store = await probe_of([node("a", 8, 12)], {"a": 0.02})
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock.time += seconds
        store.down = len(pauses) == 2
        if len(pauses) == 5:
            raise asyncio.CancelledError

    probe = LinkProbe(
        MemoryDirectory(store), links, lambda: OWN, clock=clock.now, sleep=sleep, rng=random.Random(0)
    )
    with pytest.raises(asyncio.CancelledError):
        await probe.run()
    assert pauses[0] <= FIRST_ROUND_S * (1 + JITTER)
    assert all(PROBE_S * (1 - JITTER) <= pause <= PROBE_S * (1 + JITTER) for pause in pauses[1:])
    assert len(set(pauses)) == 5
    assert len(links.dialled) == 3  # not in the round without a directory


async def test_real_nodes_announce_their_links(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later of two nodes finds the earlier in the directory and announces the round trip to it."""
    monkeypatch.setattr("swarm_node.node.presence.link_probe.FIRST_ROUND_S", 0.01)
    monkeypatch.setattr("swarm_node.node.presence.announcer.EARLY_S", 0.02)
    monkeypatch.setattr("swarm_node.node.presence.announcer.LOOK_S", 0.01)
    network, store, latency_s = MemoryNetwork(latency=0.02), MemoryStore(), 0.02
    nodes = []
    for peer_id, blocks in (("first", Span(0, 2)), ("second", Span(2, 4))):
        config = NodeConfig(
            model=str(tiny_dir),
            blocks=blocks,
            threads=1,
            kv_cache_tokens=300,
            dtype="float32",
            quantize="none",
            kernels="torch",
        )
        given = GivenNetwork(network.transport(peer_id), MemoryDirectory(store))
        nodes.append(Node(config, lambda event: None, network=given))
    try:
        for node in nodes:
            await node.start()
        async with asyncio.timeout(20):
            while not any(info.links for info in store.live()):  # noqa: ASYNC110 - polls what has no event
                await asyncio.sleep(0.01)
        (link,) = next(info.links for info in store.live() if info.links)
        assert link.peer_id in ("first", "second")
        assert 2 * latency_s * 0.95 < link.rtt_s < 2 * latency_s + 0.2
    finally:
        for node in nodes:
            await node.stop()


@pytest.mark.parametrize("fault", [ZeroDivisionError(), RemoteProtocolError("odd")])
async def test_nothing_that_the_directory_brings_ends_the_rounds(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, links, _, _ = await probe_of([node("a", 8, 12)], {"a": 0.02})
    rounds = 0

    async def sleep(seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            raise asyncio.CancelledError

    read = MemoryDirectory.nodes

    async def odd(self: MemoryDirectory, model: ModelRef) -> list[NodeInfo]:
        if rounds == 1:
            raise fault
        return await read(self, model)

    monkeypatch.setattr(MemoryDirectory, "nodes", odd)
    monkeypatch.setattr(probe, "_sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await probe.run()
    assert links.dialled == ["a"]
