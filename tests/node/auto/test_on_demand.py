"""A node that takes up what clients ask for, and gives it up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import torch

from scripts.lab.tiny_model import write_tiny_model
from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.auto.blocks import begin_auto
from swarm_node.node.auto.on_demand import OnDemand
from swarm_node.node.auto.wanted_models import LocatedDemand, WantedModels
from swarm_node.node.config import NodeConfig, NodeEvent
from swarm_node.node.model_source import ModelSource
from swarm_node.node.node import Node
from swarm_node.node.weights.found_model import FoundModel
from swarm_node.node.weights.sharing import WeightOptions, WeightService
from swarm_node.shards.checkpoint.local_models import LocalModels
from swarm_node.shards.checkpoint.lookup import ModelLocation, Source
from swarm_node.swarm.errors import CheckpointError, NetworkError, RemoteProtocolError, UsageError
from swarm_node.swarm.placement.demand import UNUSED_S, Demand, Idle, WantedModel
from swarm_node.swarm.routing.best_route import missing_blocks
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState

pytestmark = pytest.mark.slow

MEMORY = 700_000
"""Bytes: room for three of the tiny model's four blocks, with their KV cache."""


class Place:
    """A ModelSource by name, as the test's host sees it."""

    def __init__(self, name: str) -> None:
        self.name = name


class Stage:
    """A host, its wanted models and its clock: the test says what comes at each look."""

    def __init__(self) -> None:
        self.now = 0.0
        self.model: ModelRef | None = None
        self.is_serving = self.is_used = False
        self.stands_by = False
        self.log: list[str] = []
        self.asked: list[Idle] = []
        self.wanted: list[str | Exception | None] = []
        self.broken: set[str] = set()
        self.fault: Exception | None = None  # of ours, in place of an error that says what is broken
        self.failing = asyncio.Event()
        self.next_look = asyncio.Event()
        self.looked = asyncio.Event()

    # As the node.

    async def take(self, source: ModelSource) -> None:
        name = source.name  # type: ignore[attr-defined]
        self.log.append(f"take {name}")
        if name in self.broken:
            raise self.fault or CheckpointError(f"{name} is broken")
        self.model = ModelRef(name, (name * 64)[:64], 4)
        self.is_serving = not self.stands_by

    async def leave(self) -> None:
        self.log.append("leave")
        self.model, self.is_serving = None, False

    async def failed(self) -> None:
        await self.failing.wait()
        self.failing.clear()
        raise self.fault or CheckpointError("the disk is gone")

    def emit(self, event: str, **details: object) -> None:
        self.log.append(event)

    # As its wanted models.

    async def pick(self, idle: Idle) -> LocatedDemand | None:
        self.asked.append(idle)
        name = self.wanted.pop(0) if self.wanted else None
        if isinstance(name, Exception):
            raise name
        if name is None:
            return None
        return LocatedDemand(Demand(WantedModel(name), ("p",), 1.0), ModelLocation(name, Source.LOCAL, name))

    def give_up(self, demand: Demand) -> None:
        self.log.append(f"failed {demand.model.name}")

    # And the clock.

    async def sleep(self, seconds: float) -> None:
        self.looked.set()
        await self.next_look.wait()
        self.next_look.clear()

    async def look(self, seconds: float = 10.0) -> None:
        """Let it look once more, ``seconds`` later."""
        self.looked.clear()
        self.now += seconds
        self.next_look.set()
        async with asyncio.timeout(5):
            await self.looked.wait()

    async def start(self, home: str | None = None) -> asyncio.Task[None]:
        wanted_models = type("Wishes", (), {"pick": self.pick, "failed": self.give_up})()
        on_demand = OnDemand(
            self,
            wanted_models,
            lambda place: Place(place.name),  # type: ignore[arg-type, return-value]
            home=None if home is None else Place(home),  # type: ignore[arg-type]
            clock=lambda: self.now,
            sleep=self.sleep,
        )
        task = asyncio.create_task(on_demand.run())
        async with asyncio.timeout(5):
            await asyncio.wait(
                {task, looked := asyncio.create_task(self.looked.wait())}, return_when="FIRST_COMPLETED"
            )
        looked.cancel()
        return task


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_stands_by_until_somebody_wants_a_model(stage: Stage) -> None:
    task = await stage.start()
    await stage.look()
    assert stage.log == ["standing_by"]
    assert stage.asked[-1].serving == ""
    assert not stage.asked[-1].in_use
    stage.wanted = ["a"]
    await stage.look()
    assert stage.log[1:] == ["wanted", "leave", "take a"]
    stage.is_used = True
    await stage.look(100)
    idle = stage.asked[-1]
    assert idle.serving.startswith("a")
    assert (idle.in_use, idle.since_change_s, idle.unused_s) == (True, 100, 0)
    stage.is_used = False
    await stage.look(50)
    assert (stage.asked[-1].in_use, stage.asked[-1].unused_s) == (False, 50)
    await end(task)


async def test_it_changes_models(stage: Stage) -> None:
    task = await stage.start()
    stage.wanted = ["a", NetworkError("no directory"), "b"]
    for _ in range(3):
        await stage.look()
    assert stage.log[1:] == ["wanted", "leave", "take a", "wanted", "leave", "take b"]
    await end(task)


async def test_what_cannot_be_loaded_is_given_up(stage: Stage) -> None:
    stage.broken = {"a"}
    task = await stage.start()
    stage.wanted = ["a"]
    await stage.look()
    assert stage.log[1:] == ["wanted", "leave", "take a", "wish_failed", "failed a", "leave", "standing_by"]
    stage.wanted = ["b"]
    await stage.look()
    assert stage.is_serving
    await end(task)


async def test_what_fails_later_is_given_up(stage: Stage) -> None:
    task = await stage.start()
    stage.wanted = ["a"]
    await stage.look()
    stage.looked.clear()
    stage.failing.set()
    await stage.looked.wait()
    assert stage.log[-3:] == ["failed a", "leave", "standing_by"]
    assert not task.done()
    await end(task)


async def test_no_strangers_wish_ends_the_node(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.fault = ZeroDivisionError("a bug")
    stage.broken = {"a"}
    task = await stage.start()
    stage.wanted = [ZeroDivisionError("another"), RemoteProtocolError("odd"), "a", "b"]
    for _ in range(4):
        await stage.look()
    assert stage.log[-7:] == ["wish_failed", "failed a", "leave", "standing_by", "wanted", "leave", "take b"]
    stage.looked.clear()
    stage.failing.set()  # what chooses its blocks fails in no foreseen way
    await stage.looked.wait()
    assert stage.log[-3:] == ["failed b", "leave", "standing_by"]
    assert not task.done()
    assert caplog.text.count("Traceback") == 2  # of two different faults
    await end(task)


async def test_the_owners_model_comes_first(stage: Stage) -> None:
    task = await stage.start("home")
    await stage.look(10 * UNUSED_S)
    assert stage.asked[-1].in_use, "what the owner named is never unloaded"
    stage.is_serving = False  # stands by for it
    stage.wanted = ["a"]
    await stage.look()
    assert stage.log == ["take home", "wanted", "leave", "take a"]
    await stage.look(UNUSED_S - 1)
    assert stage.model is not None
    assert stage.model.name == "a"
    await stage.look(1)
    assert stage.log[4:] == ["leave", "take home"]
    await end(task)


async def test_an_owners_model_that_fails_ends_it(stage: Stage) -> None:
    stage.broken = {"home"}
    task = await stage.start("home")
    with pytest.raises(CheckpointError, match="home is broken"):
        await task
    stage.broken = set()
    task = await stage.start("home")
    stage.failing.set()
    with pytest.raises(CheckpointError, match="the disk is gone"):
        await task


def test_a_node_of_fixed_blocks_takes_nothing_up() -> None:
    with pytest.raises(UsageError, match="chooses its blocks itself"):
        NodeConfig("x", models=("any",))
    with pytest.raises(UsageError, match="no model given"):
        NodeConfig("", auto=True)


class RealSwarm:
    """Nodes over the in-memory network that may load what is in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.local_models = LocalModels([folder])
        self.network = MemoryNetwork()
        self.store = MemoryStore()
        self.reader = MemoryDirectory(self.store, "client")
        self.events: dict[str, list[str]] = {}
        self.nodes: list[Node] = []
        self._running: list[asyncio.Task[None]] = []

    async def start(self, peer: str, memory: int | None = None) -> None:
        """Returns once it stands by."""
        weights = WeightService(WeightOptions(share=True))
        events = self.events[peer] = []
        standing_by = asyncio.Event()

        def on_event(event: NodeEvent) -> None:
            events.append(event.event)
            if event.event == "standing_by":
                standing_by.set()

        def on_demand(node: Node) -> OnDemand:
            wanted_models = WantedModels(
                node.directory, node.peer_id, node.config.models, local_models=self.local_models
            )
            return OnDemand(
                node, wanted_models, lambda place: FoundModel(place.name, weights, location=place)
            )

        config = NodeConfig(
            "",
            models=("any",),
            auto=True,
            memory=memory,
            threads=1,
            kernels="torch",
            dtype="float32",
            quantize="none",
            kv_cache_tokens=300,
            drain_seconds=0.0,
        )
        network = GivenNetwork(self.network.transport(peer), MemoryDirectory(self.store, peer))
        node = Node(
            config, on_event, network=network, services=[weights], begin_auto=begin_auto, on_demand=on_demand
        )
        self.nodes.append(node)
        self._running.append(asyncio.create_task(node.run()))
        async with asyncio.timeout(20):
            await standing_by.wait()

    async def until(self, condition: Callable[[list[NodeInfo]], bool]) -> list[NodeInfo]:
        """Announcements, once ``condition`` holds for those that are online."""
        async with asyncio.timeout(20):
            while True:
                nodes = [info for info in await self.reader.all_nodes() if info.state is NodeState.ONLINE]
                if condition(nodes):
                    return nodes
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        for node in self.nodes:
            node.request_stop()
        async with asyncio.timeout(20):
            await asyncio.gather(*self._running)

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


@pytest.fixture
async def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RealSwarm]:
    """With the models ``first`` and ``second``, and no long waits."""
    for name in ("on_demand.LOOK_S", "on_demand.SERVING_LOOK_S", "blocks.SETTLE_S"):
        monkeypatch.setattr(f"swarm_node.node.auto.{name}", 0.02)
    for name in ("SPREAD_S", "COOL_DOWN_S", "UNUSED_S"):
        monkeypatch.setattr(f"swarm_node.swarm.placement.demand.{name}", 0.05)
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    models = tmp_path / "models"
    for seed, name in enumerate(("first", "second")):
        (models / name).mkdir(parents=True)
        write_tiny_model(models / name, seed=seed)
    threads = torch.get_num_threads()
    swarm = RealSwarm(models)
    yield swarm
    await swarm.close()
    torch.set_num_threads(threads)


async def test_a_real_node_loads_one_model_after_another(real: RealSwarm) -> None:
    await real.start("node")
    assert await real.reader.all_nodes() == [], "an idle node announces nothing"
    roots = []
    for name in ("FIRST", "second"):
        await real.reader.want([WantedModel(name)])
        wanted = name.lower()
        (info,) = await real.until(
            lambda nodes: [(node.model.name, bool(node.weights_root)) for node in nodes] == [(wanted, True)]  # noqa: B023
        )
        roots.append(info.weights_root)
    assert roots[0] != roots[1], "it shares what it serves"
    await real.stop()
    assert await real.reader.all_nodes() == []
    assert real.events["node"].count("online") == 2
    assert real.events["node"][-1] == "stopped"


async def test_real_nodes_share_out_what_none_can_hold(real: RealSwarm) -> None:
    for peer in ("a", "b"):
        await real.start(peer, memory=MEMORY)
    await real.reader.want([WantedModel("first")])
    nodes = await real.until(lambda nodes: nodes != [] and not missing_blocks(nodes, nodes[0].model.n_blocks))
    assert {node.peer_id for node in nodes} == {"a", "b"}
    assert {node.model.name for node in nodes} == {"first"}
    await real.stop()
