"""A whole node that chooses its blocks itself: real weights, engine and server, over a network in memory."""

from __future__ import annotations

import asyncio
import os
import weakref

import pytest
import torch

from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node import loaded_span
from swarm_node.node.auto.blocks import begin_auto
from swarm_node.node.config import NodeConfig, NodeEvent
from swarm_node.node.loaded_span import compile_kernels
from swarm_node.node.node import Node
from swarm_node.swarm.errors import ErrorCode, UsageError
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.messages import ErrorMessage, Hello, Open, Opened, Welcome
from swarm_node.swarm.protocol.wire import DEFAULT_MAX_FRAME, PROTOCOL_ID
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import NodeState, Span

pytestmark = pytest.mark.slow

BLOCK_BYTES = 124_000
KV_BYTES = 256 * 2 * 2 * 16 * 4


class Swarm:
    def __init__(self, model: str) -> None:
        self.model = model
        self.memory = MemoryNetwork()
        self.store = MemoryStore()
        self.events: dict[str, list[NodeEvent]] = {}

    def node(self, peer: str, blocks: int | None = None, **options) -> Node:
        memory = None if blocks is None else blocks * (BLOCK_BYTES + KV_BYTES)
        options = {
            "threads": 1,
            "dtype": "float32",
            "quantize": "none",
            "kernels": "torch",
            "auto": True,
            "memory": memory,
            "look_seconds": 0.05,
            "drain_seconds": 0.5,
        } | options
        events = self.events.setdefault(peer, [])
        network = GivenNetwork(self.memory.transport(peer), MemoryDirectory(self.store))
        return Node(
            NodeConfig(model=self.model, **options), events.append, network=network, begin_auto=begin_auto
        )

    def names(self, peer: str) -> list[str]:
        return [event.event for event in self.events[peer]]

    async def until(self, peer: str, name: str) -> NodeEvent:
        async with asyncio.timeout(20):
            while name not in self.names(peer):  # noqa: ASYNC110 - polls what has no event
                await asyncio.sleep(0.005)
        return next(event for event in reversed(self.events[peer]) if event.event == name)

    async def hello(self, peer: str) -> tuple[Connection, object]:
        transport = self.memory.transport(f"client-{os.urandom(2).hex()}")
        connection = Connection(await transport.open_stream(peer, PROTOCOL_ID))
        await connection.send(Hello((1,), "", ("none",), DEFAULT_MAX_FRAME, "test"))
        return connection, await connection.receive()


@pytest.fixture(scope="module", autouse=True)
def compiled():
    compile_kernels("cpu", lambda: None)


@pytest.fixture
def swarm(tiny_dir, monkeypatch):
    monkeypatch.setattr("swarm_node.node.auto.blocks.SETTLE_S", 0.1)
    monkeypatch.setattr("swarm_node.node.engine.self_bench.DECODE_SECONDS", 0.02)
    monkeypatch.setattr("swarm_node.node.engine.self_bench.PREFILL_SECONDS", 0.02)
    threads = torch.get_num_threads()
    yield Swarm(str(tiny_dir))
    torch.set_num_threads(threads)


async def test_alone_it_serves_everything_that_fits(swarm):
    node = swarm.node("a")
    await node.start()
    assert swarm.names("a") == ["listening", "measured", "planned", "loading", "online"]
    (announced,) = swarm.store.live()
    assert (announced.span, announced.state, announced.max_blocks) == (Span(0, 4), NodeState.ONLINE, 4)
    await node.stop()
    assert swarm.store.live() == []


async def test_nodes_with_little_memory_share_the_model(swarm):
    nodes = [swarm.node("a", 2), swarm.node("b", 3)]
    async with asyncio.TaskGroup() as tasks:
        for node in nodes:
            tasks.create_task(node.start())
    served = {block for node in nodes for block in range(node.span.start, node.span.end)}
    assert served == {0, 1, 2, 3}
    assert len(nodes[0].span) <= 2
    assert len(nodes[1].span) <= 3
    for node in nodes:
        used = node.loaded.weight_bytes + node.info().total_kv_tokens * len(node.span) * KV_BYTES // 256
        assert used <= node.config.memory
        assert node.info().total_kv_tokens >= 256
    for node in nodes:
        await node.stop()


async def test_without_room_for_a_block_it_stands_by_and_can_be_stopped(swarm):
    node = swarm.node("a", memory=50_000)
    running = asyncio.create_task(node.run())
    told = await swarm.until("a", "standing_by")
    assert "one block takes" in told.details["why"]
    assert swarm.store.live() == []
    _, answer = await swarm.hello("a")
    assert isinstance(answer, ErrorMessage)
    assert answer.code is ErrorCode.DRAINING
    assert answer.retriable
    node.request_stop()
    await asyncio.wait_for(running, 10)
    assert swarm.names("a")[-1] == "stopped"


async def test_a_move_frees_the_memory_and_ends_sessions(swarm):
    node = swarm.node("a", auto=False)
    await node.start()
    client, welcome = await swarm.hello("a")
    assert isinstance(welcome, Welcome)
    await client.send(Open(os.urandom(16), Span(0, 4), 10, "none", "none"))
    assert isinstance(await client.receive(), Opened)
    pool = weakref.ref(node.loaded.server.engine.pool.data)
    await node.announce_as(NodeState.DRAINING, node.span)
    await node.unload()  # after drain_seconds: the session stays open
    farewell = await client.receive()
    assert isinstance(farewell, ErrorMessage)
    assert farewell.code is ErrorCode.DRAINING
    assert node.statistics() is None
    assert pool() is None
    await node.load(Span(1, 3))
    await node.go_online()
    _, welcome = await swarm.hello("a")
    assert welcome.span == Span(1, 3)
    assert [info.span for info in swarm.store.live()] == [Span(1, 3)]
    await node.stop()


async def test_memory_that_runs_short_while_loading(swarm, monkeypatch):
    load, calls = loaded_span.load_backend, []

    def short(checkpoint, span, *arguments, **options):
        calls.append(span)
        if len(span) > 2:
            raise torch.OutOfMemoryError("no memory")
        return load(checkpoint, span, *arguments, **options)

    monkeypatch.setattr(loaded_span, "load_backend", short)
    node = swarm.node("a")
    await node.start()
    assert [len(span) for span in calls] == [4, 3, 2]
    assert [event.details["max_blocks"] for event in swarm.events["a"] if event.event == "memory_short"] == [
        3,
        2,
    ]
    assert len(node.span) == 2
    await node.stop()


async def test_with_blocks_given_it_is_an_error(swarm, monkeypatch):
    def short(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(loaded_span, "load_backend", short)
    with pytest.raises(UsageError, match="do not fit"):
        await swarm.node("a", auto=False).run()
    assert swarm.events["a"][-2].details["hint"]


async def test_others_take_over_from_a_node_that_dies(swarm):
    nodes = {peer: swarm.node(peer, 2) for peer in ("a", "b", "c")}
    running = {peer: asyncio.create_task(node.run()) for peer, node in nodes.items()}

    def covered() -> bool:
        return {
            block
            for node in nodes.values()
            if node.loaded is not None and node.state is NodeState.ONLINE
            for block in range(node.span.start, node.span.end)
        } == {0, 1, 2, 3}

    async def until_covered() -> None:
        async with asyncio.timeout(30):
            while not covered():  # noqa: ASYNC110 - polls what has no event
                await asyncio.sleep(0.01)

    await until_covered()
    await asyncio.sleep(0.3)  # some looks, so that they have met
    await until_covered()  # one may have moved meanwhile
    victim = next(peer for peer, node in nodes.items() if node.span is not None and node.span.start == 0)
    swarm.memory.kill(victim)
    dead = nodes.pop(victim)
    dead.presence.announcer.announce = _never  # a killed process announces nothing any more
    running[victim].cancel()
    await until_covered()
    for node in nodes.values():
        node.request_stop()
    await asyncio.wait(running.values(), timeout=20)


async def _never() -> bool:
    return False
