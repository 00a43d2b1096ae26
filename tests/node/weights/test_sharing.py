"""Nodes that share and fetch a model, over a network in memory."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.config import NodeConfig, NodeEvent
from swarm_node.node.loaded_span import compile_kernels
from swarm_node.node.node import Node
from swarm_node.node.weights.found_model import FoundModel
from swarm_node.node.weights.sharing import WeightOptions, WeightService, all_private
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.pieces import checked
from swarm_node.shards.pieces.cache import PieceCache
from swarm_node.shards.pieces.hashing import manifest_of, model_files
from swarm_node.shards.pieces.holder import WholeFiles
from swarm_node.shards.transfer.downloader import FetchSettings
from swarm_node.shards.transfer.fetch import fetch_model
from swarm_node.shards.transfer.messages import WEIGHTS_PROTOCOL
from swarm_node.swarm.errors import CheckpointError, PeerUnreachableError
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import NodeState, Span

SOON = FetchSettings(wait_s=5.0, look_s=0.02, answer_s=1.0, tick_s=0.01)


class WeightSwarm:
    """Nodes by name; ``events`` of each."""

    def __init__(self) -> None:
        self.memory = MemoryNetwork()
        self.store = MemoryStore()
        self.events: dict[str, list[NodeEvent]] = {}
        self.nodes: list[Node] = []

    async def start(self, name: str, model: str, blocks: Span, share: bool | None = None) -> Node:
        events = self.events[name] = []
        weights = WeightService(WeightOptions(share=share))
        source = FoundModel(model, weights, settings=SOON)
        await source.locate()
        config = NodeConfig(
            model=model, blocks=blocks, threads=1, kv_cache_tokens=300, dtype="float32", quantize="none"
        )
        network = GivenNetwork(self.memory.transport(name), MemoryDirectory(self.store))
        node = Node(config, events.append, network=network, source=source, services=[weights])
        self.nodes.append(node)
        await node.start()
        return node

    async def until(self, name: str, event: str) -> NodeEvent:
        async with asyncio.timeout(20):
            while True:
                for found in self.events.get(name, ()):
                    if found.event == event:
                        return found
                await asyncio.sleep(0.005)

    async def until_announced(self, name: str) -> None:
        async with asyncio.timeout(20):
            while not any(  # noqa: ASYNC110 - polls what has no event
                n.peer_id == name and n.weights_root for n in await self.announced()
            ):
                await asyncio.sleep(0.005)

    async def announced(self) -> list:
        return await MemoryDirectory(self.store).all_nodes()


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    compile_kernels("cpu", lambda: None)


@pytest.fixture
async def swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WeightSwarm]:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    threads = torch.get_num_threads()
    swarm = WeightSwarm()
    yield swarm
    for node in swarm.nodes:
        await node.stop()
    torch.set_num_threads(threads)


async def test_a_node_that_knows_only_the_name_gets_its_blocks_from_a_peer(
    swarm: WeightSwarm, tiny_dir: Path, tmp_path: Path
) -> None:
    """And passes on what it got, when the one that had all of it has gone."""
    first = await swarm.start("first", str(tiny_dir), Span(0, 2))
    sharing = await swarm.until("first", "sharing")
    await swarm.until_announced("first")
    second = await swarm.start("second", tiny_dir.name, Span(2, 4))
    fetched = await swarm.until("second", "fetched")
    assert fetched.details["bytes_by_source"].keys() == {"first"}
    assert second.model == first.model
    await swarm.until_announced("second")
    announced = {node.peer_id: node for node in await swarm.announced()}
    assert {node.weights_root for node in announced.values()} == {sharing.details["root"]}
    assert all(node.shares_weights for node in announced.values())
    assert announced["first"].weights_whole  # it has hashed them; the other repeats what it was told
    assert not announced["second"].weights_whole
    await first.stop()
    path = await fetch_model(
        second.model,
        blocks=Span(2, 4),
        client=False,
        nodes=swarm.announced,
        transport=swarm.memory.transport("third"),
        cache=PieceCache(tmp_path / "third"),
        settings=SOON,
    )
    with open_checkpoint(str(path), blocks=Span(2, 4)) as checkpoint:
        assert checkpoint.ref == second.model


@pytest.mark.parametrize("whole", [True, False])
async def test_a_node_does_not_serve_the_holes_of_its_disk(
    swarm: WeightSwarm, tiny_dir: Path, tmp_path: Path, whole: bool
) -> None:
    """It is told, and waits for the pieces; whether its disk claims all of the model or a part."""
    cache = WeightOptions().cache()
    manifest = manifest_of(tiny_dir)
    files = WholeFiles(manifest, model_files(tiny_dir))
    with open_checkpoint(str(tiny_dir)) as checkpoint, cache.open(manifest, checkpoint.ref) as store:
        for piece in range(manifest.n_pieces):
            if whole or manifest.place(piece).file.name != "tokenizer.json":
                store.add(piece, files.read(piece))
    checked._known.clear()
    hole = manifest.pieces_of("model.safetensors")[0]
    with store.path("model.safetensors").open("r+b") as file:
        file.write(bytes(manifest.size_of(hole)))
    starting = asyncio.create_task(swarm.start("second", tiny_dir.name, Span(2, 4)))
    if whole:
        await swarm.until("second", "listening")
    await swarm.start("first", str(tiny_dir), Span(0, 2))
    second = await starting
    damaged = await swarm.until("second", "weights_damaged")
    assert damaged.details["message"].startswith(f"Damaged on this disk: 1 piece of {tiny_dir.name};")
    told = [event.event for event in swarm.events["second"]]
    assert told.index("weights_damaged") < told.index("fetched") < told.index("online")
    fetched = await swarm.until("second", "fetched")
    assert fetched.details["bytes_by_source"] == {"first": manifest.size_of(hole)}
    assert second.state is NodeState.ONLINE
    with cache.find(manifest.root) as store:
        assert hole not in store.missing([hole])


async def test_what_was_fetched_whole_needs_nobody(swarm: WeightSwarm, tiny_dir: Path) -> None:
    manifest = manifest_of(tiny_dir)
    files = WholeFiles(manifest, model_files(tiny_dir))
    with open_checkpoint(str(tiny_dir)) as checkpoint:
        ref = checkpoint.ref
    with WeightOptions().cache().open(manifest, ref) as store:
        for piece in range(manifest.n_pieces):
            store.add(piece, files.read(piece))
    node = await swarm.start("alone", tiny_dir.name, Span(0, 4), share=True)
    assert node.state is NodeState.ONLINE
    assert node.model == ref
    await swarm.until_announced("alone")


async def test_files_that_change_are_not_shared_any_longer(
    swarm: WeightSwarm, tiny_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "changing"
    shutil.copytree(tiny_dir, folder)
    node = await swarm.start("node", str(folder), Span(0, 2))
    await swarm.until("node", "sharing")
    await swarm.until_announced("node")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    asking = asyncio.create_task(
        fetch_model(
            node.model,
            blocks=Span(0, 4),
            client=True,
            nodes=swarm.announced,
            transport=swarm.memory.transport("asker"),
            cache=PieceCache(tmp_path / "asker"),
            settings=SOON,
        )
    )
    told = await swarm.until("node", "not_sharing")
    assert "model.safetensors has changed" in told.details["message"]
    assert node.info().weights_root == ""
    assert node.state is NodeState.ONLINE
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_a_node_waits_for_the_model_that_nobody_has_yet(swarm: WeightSwarm, tiny_dir: Path) -> None:
    starting = asyncio.create_task(swarm.start("early", tiny_dir.name, Span(2, 4)))
    waiting = await swarm.until("early", "waiting")
    assert tiny_dir.name in waiting.details["message"]
    await swarm.start("late", str(tiny_dir), Span(0, 2))
    early = await starting
    assert early.state is NodeState.ONLINE


async def test_a_node_that_waits_tells_of_near_names_once_they_are_known(
    swarm: WeightSwarm, tiny_dir: Path
) -> None:
    starting = asyncio.create_task(swarm.start("early", f"{tiny_dir.name}.guf", Span(2, 4)))
    first = await swarm.until("early", "waiting")
    assert "Did you mean" not in first.details["hint"]
    await swarm.start("late", str(tiny_dir), Span(0, 2))
    hint = f"Did you mean {tiny_dir.name!r}?"
    async with asyncio.timeout(20):
        while swarm.events["early"][-1].details.get("hint") != hint:  # noqa: ASYNC110 - polls a list
            await asyncio.sleep(0.005)
    assert [event.event for event in swarm.events["early"]].count("waiting") == 2
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)


async def test_a_model_that_no_client_can_read_is_served_with_a_remark(
    swarm: WeightSwarm, tiny_dir: Path, tmp_path: Path
) -> None:
    """By who has its files, and by who fetches them from him."""
    model = shutil.copytree(tiny_dir, tmp_path / "unreadable")
    (model / "tokenizer.json").unlink()
    await swarm.start("node", str(model), Span(0, 2))
    await swarm.start("other", "unreadable", Span(2, 4))
    for name, message in (("node", "holds no tokenizer.json"), ("other", "has no tokenizer.json")):
        told = [event.event for event in swarm.events[name]]
        assert told.count("tokenizer_unreadable") == 1
        assert told.index("tokenizer_unreadable") < told.index("online")
        remark = await swarm.until(name, "tokenizer_unreadable")
        assert message in remark.details["message"]
        assert remark.details["hint"]


async def test_a_model_that_clients_can_read_gets_no_remark(swarm: WeightSwarm, tiny_dir: Path) -> None:
    await swarm.start("node", str(tiny_dir), Span(0, 2))
    await swarm.start("other", tiny_dir.name, Span(2, 4))
    for events in swarm.events.values():
        assert "tokenizer_unreadable" not in [event.event for event in events]


async def test_a_node_shares_nothing_unasked_and_bears_witness_all_the_same(
    swarm: WeightSwarm, tiny_dir: Path
) -> None:
    await swarm.start("node", str(tiny_dir), Span(0, 2), share=False)
    await swarm.until_announced("node")
    (announced,) = await swarm.announced()
    assert announced.weights_root == manifest_of(tiny_dir).root
    assert announced.weights_whole
    assert not announced.shares_weights
    assert not any(event.event in ("sharing", "not_sharing") for event in swarm.events["node"])
    with pytest.raises(PeerUnreachableError, match="does not speak"):
        await swarm.memory.transport("asker").open_stream("node", WEIGHTS_PROTOCOL)


@pytest.mark.parametrize(
    ("maddrs", "private"),
    [
        (("/ip4/192.168.1.7/tcp/1", "/ip4/127.0.0.1/tcp/1"), True),
        (("/ip6/fe80::1/tcp/1/p2p/Q",), True),
        (("/ip4/192.168.1.7/tcp/1", "/ip4/8.8.8.8/tcp/1"), False),
        (("/ip4/10.0.0.1/tcp/1/p2p/R/p2p-circuit/p2p/Q",), False),
        (("/dns4/home.example/tcp/1",), False),
        (("/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.7/tcp/1", "/ip6/2a01:4f8::7/tcp/1"), True),
        (("/ip4/127.0.0.1/tcp/1", "/ip6/2a01:4f8::7/tcp/1"), False),
        (("/ip4/192.168.1.7/tcp/1", "/ip6/2a01:4f8::7/tcp/1/p2p/R/p2p-circuit/p2p/Q"), False),
        ((), False),
    ],
)
def test_a_lan_is_told_from_the_internet(maddrs: tuple[str, ...], private: bool) -> None:
    assert all_private(maddrs) is private


async def test_a_name_whose_model_cannot_run_here_is_refused_before_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    models = tmp_path / "models"
    models.mkdir()
    (models / "half-00001-of-00002.gguf").write_bytes(b"GGUF")
    source = FoundModel("half", WeightService(WeightOptions()), settings=SOON)
    with pytest.raises(
        CheckpointError, match=r"half on this machine .*: half-00002-of-00002\.gguf"
    ) as caught:
        await source.locate()
    assert "Download what is missing" in caught.value.hint
    elsewhere = FoundModel("other.gguf", WeightService(WeightOptions()), settings=SOON)
    await elsewhere.locate()
    assert elsewhere.needs_network
