"""A client fetches and reads the block that guesses ahead where it can, and does without where it cannot."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.lab.tiny_model import VOCAB, write_tokenizer
from swarm_node.client.drafting.next_guesses import NEXT_BYTES, NextModel
from swarm_node.client.local_model import load_local_model
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.tensors import next_names
from swarm_node.shards.pieces import manifest
from swarm_node.shards.transfer import fetch as fetching
from swarm_node.swarm.errors import CheckpointError
from tests.shards.behind import with_behind
from tests.shards.checkpoint.fake_hub import NAME, FakeHub, serving
from tests.shards.families.models import saved
from tests.shards.families.test_layouts import Tensors, rewritten
from tests.shards.transfer.piece_swarms import PIECE, PieceWorld

WIDE = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": VOCAB}
"""Blocks of many pieces."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("model"))


def written(folder: Path) -> Path:
    with_behind("qwen3_5_text", folder, **WIDE)
    write_tokenizer(folder)
    return folder


def guesser(path: Path | str, **options: str) -> tuple[NextModel | None, list[str]]:
    """What guesses, and what people were told."""
    told: list[str] = []
    local = load_local_model(path, on_progress=told.append, **options)
    local.close()
    assert local.draft is None or isinstance(local.draft, NextModel)
    return local.draft, [line for line in told if "guesses" in line]


def test_the_block_is_read_and_people_are_told(folder: Path) -> None:
    found, told = guesser(folder)
    assert found is not None
    assert found.part.blocks.kernels.startswith("native")
    with open_checkpoint(str(folder)) as checkpoint:
        tensors = checkpoint.with_next().manifest
        size = sum(tensors[name].nbytes for name in next_names(checkpoint.config))
    assert told == [f"Loading the block that guesses ahead ({size / 1e6:.0f} MB)"]


def test_it_is_left_out_on_demand(folder: Path) -> None:
    assert guesser(folder, draft="off") == (None, [])


def test_a_draft_model_comes_first(folder: Path) -> None:
    local = load_local_model(folder, draft=folder)
    local.close()
    assert type(local.draft).__name__ == "DraftModel"


def test_a_model_without_one_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved("qwen3_5_text", tmp_path)
    write_tokenizer(tmp_path)
    assert guesser(tmp_path) == (None, [])
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


def test_one_too_large_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "swarm_node.client.drafting.next_guesses")
    memory = psutil.virtual_memory()._replace(available=1_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert guesser(folder) == (None, [])
    (line,) = [each.getMessage() for each in caplog.records if "next_block" in each.getMessage()]
    assert "event=next_block_too_large" in line
    assert "room=250000" in line


def test_a_damaged_one_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def wrong(tensors: Tensors) -> Tensors:
        return tensors | {"mtp.fc.weight": tensors["mtp.fc.weight"][:, :64].copy()}

    rewritten(written(tmp_path), wrong)
    assert guesser(tmp_path) == (None, [])
    (line,) = [each.getMessage() for each in caplog.records]
    assert "event=next_block_left_out" in line
    assert "mtp.fc.weight" in line


@pytest.fixture
async def world(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PieceWorld]:
    monkeypatch.setattr(manifest, "USUAL_PIECE", PIECE)
    world = PieceWorld(folder, tmp_path / "peers")
    yield world
    await world.close()


@pytest.mark.parametrize("most", [NEXT_BYTES, 1000, 0])
async def test_it_comes_from_peers(world: PieceWorld, most: int, caplog: pytest.LogCaptureFixture) -> None:
    await world.origin()
    async with world.fetch(await world.peer("cold")) as fetch:
        path = await fetch.fetch(None, client=True, next_bytes=most)
    found, _ = guesser(path)
    assert (found is not None) == (most == NEXT_BYTES)
    left_out = [each for each in caplog.records if "event=next_block_left_out" in each.getMessage()]
    assert len(left_out) == (found is None)


async def test_a_disk_without_room_for_it_keeps_the_model(
    world: PieceWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = fetching.ModelFetch._get

    async def full(*args: Any, wait_s: float | None = None) -> None:
        if wait_s is not None:
            raise CheckpointError("cannot write: no space left on device")
        await get(*args)

    monkeypatch.setattr(fetching.ModelFetch, "_get", full)
    await world.origin()
    async with world.fetch(await world.peer("cold")) as fetch:
        path = await fetch.fetch(None, client=True, next_bytes=NEXT_BYTES)
    assert guesser(path)[0] is None


async def test_peers_that_do_not_have_it_are_not_waited_for(
    world: PieceWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_GIVEN_S", 0.1)
    await world.origin()
    other = await world.peer("other")
    async with world.fetch(other) as fetch:
        await fetch.fetch(None, client=True)
        world.peers.pop("origin")
        async with world.fetch(await world.peer("cold")) as late:
            path = await late.fetch(None, client=True, next_bytes=NEXT_BYTES)
    assert guesser(path)[0] is None


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(folder, tmp_path / "cache", monkeypatch) as server:
        yield server


def test_it_comes_from_the_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guesser(NAME, draft="off")[0] is None
    with open_checkpoint(NAME, client=True, next_bytes=NEXT_BYTES) as checkpoint:
        whole = checkpoint.with_next()
        for name in next_names(checkpoint.config):
            whole.tensor(name).dequantize()
        digest = checkpoint.ref.digest
    assert guesser(NAME)[0] is not None
    with open_checkpoint(str(hub.directory)) as local:
        assert local.ref.digest == digest
