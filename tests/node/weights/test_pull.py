"""``swarm-node pull``: a whole model from the hub, from peers, or here already."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.cli.models.pull import run_pull, told
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.weights.pull import pull_model
from swarm_node.shards.checkpoint import hub_weights
from swarm_node.shards.checkpoint.lookup import ModelNotFoundError, Source, find_local
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.tensors import needed_tensors
from swarm_node.shards.pieces import manifest
from swarm_node.swarm.errors import PeerUnreachableError
from swarm_node.swarm.membership.entry import SwarmEntry
from swarm_node.swarm.types import ModelRef
from tests.shards.checkpoint.fake_hub import NAME, FakeHub, serving
from tests.shards.transfer.piece_swarms import PIECE, PieceWorld

ALONE = SwarmEntry(mdns=False)
HERE = SwarmEntry(initial_peers=("/memory/a",), mdns=False)
ROOM = 10**9


@pytest.fixture
def hub(tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving(tiny_dir, tmp_path / "cache", monkeypatch) as server:
        yield server


async def test_all_files_come_from_the_hub_and_are_found_by_name(hub: FakeHub) -> None:
    stages: list[str] = []
    bars: list[tuple[int, int, str]] = []
    pulled = await pull_model(
        NAME,
        ALONE,
        cache_bytes=ROOM,
        on_stage=stages.append,
        on_progress=lambda done, total, label: bars.append((done, total, label)),
    )
    with open_checkpoint(str(hub.directory)) as right:
        assert pulled.ref == ModelRef(NAME, right.ref.digest, right.ref.n_blocks)
    assert (pulled.source, stages[-1]) == (Source.HUB, f"Opening {NAME} ...")
    assert any(done == total > 0 for done, total, _ in bars)
    here = find_local(NAME)
    assert here is not None
    assert here.path == pulled.path
    asked = len(hub.requests)
    again = await pull_model(NAME, ALONE, cache_bytes=ROOM)
    assert (again.source, again.ref, again.path) == (Source.LOCAL, pulled.ref, pulled.path)
    assert len(hub.requests) == asked, "nothing is asked of what is here"
    assert "was here" in told(again)
    assert f"`swarm-node serve --model {NAME}`" in told(pulled)


async def test_the_command_prints_one_object(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pull", NAME, "--no-mdns", "--json"]
    await run_pull(build_parser().parse_args(words))
    report = json.loads(capsys.readouterr().out)
    assert sorted(report) == ["digest", "model", "n_blocks", "path", "seconds", "source"]
    assert (report["model"], report["source"]) == (NAME, "hub")
    assert report["path"] != NAME, "where the files are"


async def test_a_pull_that_is_stopped_ends_and_goes_on_later(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_weights, "_SMALL_FILE", 0)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def progress(done: int, total: int, label: str) -> None:
        if done:
            loop.call_soon_threadsafe(begun.set)

    pulling = asyncio.create_task(pull_model(NAME, ALONE, cache_bytes=ROOM, on_progress=progress))
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([pulling, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    assert (await pull_model(NAME, ALONE, cache_bytes=ROOM)).ref.name == NAME


async def test_peers_that_share_it_come_before_the_hub(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(manifest, "USUAL_PIECE", PIECE)
    world = PieceWorld(tiny_dir, tmp_path / "peers")
    origin = await world.origin()
    store = MemoryStore()
    store.put(world.info(origin))

    async def network(*_: object) -> GivenNetwork:
        return GivenNetwork(world.network.transport("me"), MemoryDirectory(store))

    monkeypatch.setattr("swarm_node.dht.joining.client.join_as_client", network)
    pulled = await pull_model(world.ref.name, HERE, cache_bytes=ROOM)
    assert (pulled.source, pulled.ref) == (Source.SWARM, world.ref)
    with open_checkpoint(pulled.path) as got, open_checkpoint(str(tiny_dir)) as right:
        for name in needed_tensors(right.config, None, False):
            assert (got.tensor(name).dequantize() == right.tensor(name).dequantize()).all()
    await world.close()
    assert (await pull_model(world.ref.name, ALONE, cache_bytes=ROOM)).source is Source.LOCAL


async def test_what_nobody_has_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))

    async def nobody(*_: object) -> None:
        raise PeerUnreachableError("nobody")

    monkeypatch.setattr("swarm_node.dht.joining.client.join_as_client", nobody)
    with pytest.raises(ModelNotFoundError, match="no model 'none-such'"):
        await pull_model("none-such", SwarmEntry(mdns=True), cache_bytes=ROOM)
    with pytest.raises(PeerUnreachableError):
        await pull_model("none-such", HERE, cache_bytes=ROOM)
