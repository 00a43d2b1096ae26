from __future__ import annotations

import asyncio
import json
import os

import pytest
import torch

from swarm_node.dht.joining.network import GivenNetwork, NetworkFigures
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node import loaded_span
from swarm_node.node import node as serve
from swarm_node.node.bootstrap import run_bootstrap
from swarm_node.node.config import BootstrapConfig, NodeConfig, NodeEvent
from swarm_node.node.loaded_span import compile_kernels
from swarm_node.node.node import Node
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.errors import CheckpointError, ErrorCode, NetworkError, PeerUnreachableError, UsageError
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.messages import Hello, Open, Opened, Refused, Result, Step, Want, Welcome
from swarm_node.swarm.protocol.wire import DEFAULT_MAX_FRAME, PROTOCOL_ID
from swarm_node.swarm.runtime.c_build import NativeUnavailableError
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import NodeState, Span


class FailingNetwork(GivenNetwork):
    """A network whose daemon can be made to die."""

    def __init__(self, transport, directory) -> None:
        super().__init__(transport, directory)
        self.death = asyncio.Event()
        self.closed = 0

    async def failed(self) -> None:
        await self.death.wait()
        raise NetworkError("p2pd is gone")

    async def close(self) -> None:
        self.closed += 1
        await super().close()


MIDDLE = Span(1, 3)


class Swarm:
    def __init__(self, model: str) -> None:
        self.model = model
        self.memory = MemoryNetwork()
        self.store = MemoryStore()
        self.events: list[NodeEvent] = []

    def node(self, blocks: Span | None = MIDDLE, peer: str = "node", **options) -> Node:
        options = {"threads": 1, "kv_cache_tokens": 300, "dtype": "float32", "quantize": "none"} | options
        config = NodeConfig(model=self.model, blocks=blocks, **options)
        network = FailingNetwork(self.memory.transport(peer), MemoryDirectory(self.store))
        return Node(config, self.events.append, network=network)

    @property
    def names(self) -> list[str]:
        return [event.event for event in self.events]

    async def until(self, name: str) -> None:
        async with asyncio.timeout(20):
            while name not in self.names:  # noqa: ASYNC110 - polls what has no event
                await asyncio.sleep(0.001)

    async def client(self, peer: str = "client") -> Connection:
        connection = Connection(await self.memory.transport(peer).open_stream("node", PROTOCOL_ID))
        await connection.send(Hello((1,), "", ("none",), DEFAULT_MAX_FRAME, "test"))
        assert isinstance(await connection.receive(), Welcome)
        return connection

    async def open(self, connection: Connection):
        await connection.send(Open(os.urandom(16), Span(1, 3), 10, "none", "none"))
        return await connection.receive()


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """So that events are the same on a machine that never compiled anything."""
    compile_kernels("cpu", lambda: None)


@pytest.fixture
def swarm(tiny_dir):
    threads = torch.get_num_threads()
    yield Swarm(str(tiny_dir))
    torch.set_num_threads(threads)


async def test_a_node_from_start_to_stop(swarm):
    node = swarm.node()
    await node.start()
    assert swarm.names == ["listening", "loading", "online"]
    (announced,) = await MemoryDirectory(swarm.store).all_nodes()
    assert announced == node.info()
    assert (announced.peer_id, announced.span, announced.state) == ("node", Span(1, 3), NodeState.ONLINE)
    assert announced.model.n_blocks == 4
    assert announced.decode_ms_per_block > 0
    assert announced.prefill_tokens_per_s > 0
    assert (announced.free_kv_tokens, announced.total_kv_tokens) == (320, 320)  # whole pages
    assert (announced.queue_ms, announced.tokens_per_s, announced.sessions) == (0.0, 0.0, 0)
    assert "int8" in announced.codecs
    client = await swarm.client()
    assert isinstance(await swarm.open(client), Opened)
    assert (node.info().free_kv_tokens, node.info().sessions) == (288, 1)
    server = node.statistics().server
    assert (server.sessions, server.links) == (1, 0)
    assert (server.journal.used, server.journal.budget) == (0, 256 * 2**20)
    assert (announced.journal_bytes, announced.total_journal_bytes) == (0, 256 * 2**20)
    assert announced.row_check == ""
    figures = node.figures()
    assert (figures.state, figures.ready, figures.span) == (NodeState.ONLINE, True, MIDDLE)
    assert figures.load == node.statistics()
    assert (figures.work.loads, figures.work.sessions_opened) == (1, 1)
    assert 0 < figures.work.last_load_s < figures.uptime_s
    await node.stop()
    await node.stop()
    assert swarm.names[-1] == "stopped"
    assert not node.figures().ready
    assert node.figures().work.sessions_ended == {"node_left": 1}
    assert await MemoryDirectory(swarm.store).all_nodes() == []
    with pytest.raises(PeerUnreachableError):
        await swarm.client("another")


async def test_what_a_journal_holds_is_announced(swarm):
    node = swarm.node(journal_mib=1)
    await node.start()
    client = await swarm.client()
    session, size = os.urandom(16), NONE.payload_bytes(3, 64)
    await client.send(Open(session, Span(1, 3), 10, "none", "none", journal=True))
    assert isinstance(await client.receive(), Opened)
    await client.send(Step(session, 0, 0, 3, Want.ALL, payload=bytes(size)))
    assert isinstance(await client.receive(), Result)
    info = node.info()
    assert (info.journal_bytes, info.total_journal_bytes) == (size, 2**20)
    await node.stop()


async def test_events_are_flat_json(swarm):
    node = swarm.node()
    await node.start()
    await node.stop()
    for event in swarm.events:
        fields = json.loads(json.dumps(event.as_dict()))
        assert fields["peer_id"] == "node"
        assert fields["maddrs"]
        assert fields["blocks"] == "1-2"
        assert fields["model"]
    online = swarm.events[2].as_dict()
    assert online["announced"] is True
    assert online["kv_cache_tokens"] == 320
    assert online["journal_mib"] == 256
    assert online["kv_dtype"] == "float32"  # as exact as the dtype that was asked for
    assert online["weights"]
    assert online["kernels"].startswith(("native", "torch"))
    assert online["decode_ms_per_block"] > 0


async def test_kernels_that_must_be_compiled_are_told_of_before(swarm, monkeypatch):
    monkeypatch.setattr("swarm_node.shards.kernels.table.is_ready", lambda: False)
    node = swarm.node()
    await node.start()
    await node.stop()
    assert swarm.names == ["listening", "compiling", "loading", "online", "stopped"]


@pytest.mark.parametrize(
    ("device", "library", "codec", "told"),
    [
        ("cpu", True, True, 0),
        ("cpu", False, True, 1),
        ("cpu", True, False, 1),
        ("cpu", False, False, 1),
        ("cuda", False, True, 0),  # the blocks' kernels are for the CPU
        ("cuda", False, False, 1),
    ],
)
def test_what_is_compiled_is_told_once(monkeypatch, device, library, codec, told):
    monkeypatch.setattr("swarm_node.shards.kernels.table.is_ready", lambda: library)
    monkeypatch.setattr("swarm_node.swarm.codecs.native.is_ready", lambda: codec)
    calls: list[None] = []
    compile_kernels(device, lambda: calls.append(None))
    assert len(calls) == told


def test_without_a_compiler_a_node_goes_on(monkeypatch):
    def fail() -> None:
        raise NativeUnavailableError("no compiler")

    monkeypatch.setattr("swarm_node.shards.kernels.library.library", fail)
    compile_kernels("cpu", lambda: None)


async def test_nothing_is_compiled_for_torch_kernels(swarm, monkeypatch):
    monkeypatch.setattr(serve, "compile_kernels", lambda *_: pytest.fail("compiles"))
    node = swarm.node(kernels="torch")
    await node.start()
    await node.stop()
    assert swarm.events[2].as_dict()["kernels"].startswith("torch")


@pytest.mark.parametrize(
    ("asked", "dtype", "held"),
    [("auto", "float32", "float32"), ("auto", "auto", "float16"), ("int8", "float32", "int8")],
)
async def test_kv_dtype(swarm, asked, dtype, held):
    node = swarm.node(kv_dtype=asked, dtype=dtype)
    await node.start()
    assert swarm.events[-1].details["kv_dtype"] == held
    await node.stop()


async def test_a_smaller_kv_dtype_makes_a_larger_cache(swarm, monkeypatch):
    monkeypatch.setattr(loaded_span, "available_memory", lambda _: 4 * 1024**2)
    tokens = {}
    for kv_dtype in ("float32", "float16", "int8"):
        node = swarm.node(None, kv_cache_tokens=None, kv_dtype=kv_dtype)
        await node.start()
        tokens[kv_dtype] = node.info().total_kv_tokens
        await node.stop()
    per_token = 2 * 4 * 2 * 16 * 4  # keys and values, blocks, heads, head_dim, float32
    assert tokens["float32"] == pytest.approx(2**20 / per_token, abs=32)
    assert tokens["float16"] == pytest.approx(2 * tokens["float32"], abs=64)
    assert tokens["int8"] == pytest.approx(tokens["float32"] * 4 * 16 / (16 + 4), abs=128)


async def test_a_cache_that_memory_cannot_hold_is_told(swarm):
    node = swarm.node(kv_cache_tokens=2**45)
    with pytest.raises(UsageError, match="KV cache"):
        await node.run()
    assert swarm.events[-2].details["hint"]


async def test_the_prefix_cache_can_be_turned_off(swarm):
    for peer, on in (("node", True), ("other", False)):
        node = swarm.node(peer=peer, prefix_cache=on)
        await node.start()
        assert node.loaded.server.terms.page_tokens == (32 if on else 0)
        await node.stop()


async def test_request_stop_drains_first(swarm):
    node = swarm.node()
    running = asyncio.create_task(node.run())
    await swarm.until("online")
    client, late = await swarm.client(), await swarm.client("late")
    assert isinstance(await swarm.open(client), Opened)
    node.request_stop()
    await swarm.until("draining")
    refusal = await swarm.open(late)
    assert isinstance(refusal, Refused)
    assert refusal.code is ErrorCode.DRAINING
    directory = MemoryDirectory(swarm.store)
    async with asyncio.timeout(5):
        while (await directory.all_nodes())[0].state is not NodeState.DRAINING:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert not running.done()
    client.close()
    await asyncio.wait_for(running, 5)
    assert swarm.names == ["listening", "loading", "online", "draining", "stopped"]
    assert swarm.events[3].details["sessions"] == 1


@pytest.mark.parametrize("drain_seconds", [0.0, 1000.0])
async def test_a_session_that_never_ends_cannot_hold_a_node(swarm, drain_seconds):
    node = swarm.node(drain_seconds=drain_seconds)
    running = asyncio.create_task(node.run())
    await swarm.until("online")
    assert isinstance(await swarm.open(await swarm.client()), Opened)
    node.request_stop()
    await swarm.until("draining")
    if drain_seconds:
        node.request_stop()  # again: now
    await asyncio.wait_for(running, 5)
    assert swarm.names[-1] == "stopped"


async def test_cancelling_run_stops_the_node(swarm, tiny_dir):
    config = NodeConfig(model=str(tiny_dir), threads=1, kv_cache_tokens=50)
    network = FailingNetwork(swarm.memory.transport("node"), MemoryDirectory(swarm.store))
    running = asyncio.create_task(Node(config, swarm.events.append, network=network).run())
    await swarm.until("online")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert swarm.names[-1] == "stopped"
    assert network.closed == 1
    assert await MemoryDirectory(swarm.store).all_nodes() == []


async def test_stop_while_starting(swarm):
    node = swarm.node()
    running = asyncio.create_task(node.run())
    node.request_stop()
    await asyncio.wait_for(running, 20)
    assert "online" not in swarm.names
    assert swarm.names[-1] == "stopped"


async def test_a_dead_network_ends_the_node_with_an_error(swarm):
    node = swarm.node()
    running = asyncio.create_task(node.run())
    await swarm.until("online")
    node._network.death.set()
    with pytest.raises(NetworkError, match="p2pd is gone"):
        await asyncio.wait_for(running, 5)
    assert swarm.names[-2:] == ["error", "stopped"]
    assert swarm.events[-2].as_dict()["message"] == "p2pd is gone"


async def test_a_span_outside_the_model_is_told_before_anything_starts(swarm):
    node = swarm.node(Span(2, 9))
    with pytest.raises(UsageError, match="has 4"):
        await node.run()
    assert swarm.names == ["error", "stopped"]


async def test_a_missing_model_is_told_before_anything_starts(swarm, tmp_path):
    swarm.model = str(tmp_path / "nothing")
    with pytest.raises((CheckpointError, UsageError)):
        await swarm.node(None).run()
    assert swarm.names == ["error", "stopped"]


async def test_every_block_and_a_measured_cache_by_default(swarm):
    node = swarm.node(None, kv_cache_tokens=None)
    await node.start()
    info = node.info()
    assert info.span == Span(0, 4)
    assert 256 <= info.total_kv_tokens <= 64 * 256
    await node.stop()


async def test_a_directory_that_is_down_does_not_keep_a_node_from_serving(swarm):
    swarm.store.down = True
    node = swarm.node()
    await node.start()
    assert swarm.events[-1].details["announced"] is False
    assert isinstance(await swarm.open(await swarm.client()), Opened)
    await node.stop()


async def test_bootstrap(swarm):
    network = FailingNetwork(swarm.memory.transport("boot"), MemoryDirectory(swarm.store))
    running = asyncio.create_task(run_bootstrap(BootstrapConfig(), swarm.events.append, network=network))
    await swarm.until("online")
    assert swarm.events[0].as_dict()["maddrs"] == ["/memory/boot/p2p/boot"]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert swarm.names == ["listening", "online", "stopped"]
    assert network.closed == 1


async def test_bootstrap_whose_network_dies(swarm):
    network = FailingNetwork(swarm.memory.transport("boot"), MemoryDirectory(swarm.store))
    network.death.set()
    with pytest.raises(NetworkError):
        await run_bootstrap(BootstrapConfig(), swarm.events.append, network=network)
    assert swarm.names == ["listening", "online", "error", "stopped"]


async def test_a_bootstrap_node_tells_what_it_does(swarm):
    network = FailingNetwork(swarm.memory.transport("boot"), MemoryDirectory(swarm.store))
    told = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        run_bootstrap(BootstrapConfig(), swarm.events.append, on_figures=told.set_result, network=network)
    )
    assert await told == NetworkFigures()
    network.death.set()
    with pytest.raises(NetworkError):
        await running
    assert swarm.names == ["listening", "online", "error", "stopped"]
    assert swarm.events[-1].as_dict()["relayed_bytes"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"port": 70000},
        {"threads": 0},
        {"kv_cache_tokens": -1},
        {"max_sessions": 0},
        {"drain_seconds": -1.0},
        {"max_frame": 100},
        {"announce_seconds": 0},
        {"max_batch_tokens": 0},
        {"max_batch_tokens": 8},
        {"kernels": "magic"},
        {"kv_dtype": "int3"},
        {"prefill_target_ms": 0.0},
        {"max_kv_share_per_peer": 0.0},
        {"max_kv_share_per_peer": 1.5},
        {"idle_session_seconds": 0.0},
    ],
)
def test_config_names_what_is_wrong(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=name):
        NodeConfig(**({"model": "m"} | wrong))


def test_bootstrap_config_is_checked():
    with pytest.raises(UsageError):
        BootstrapConfig(port=-1)
