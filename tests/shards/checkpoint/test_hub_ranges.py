"""Parts of files from the hub: which bytes come, what of them is kept, and which answers are refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from swarm_node.shards.checkpoint import hub_repo, hub_weights
from swarm_node.shards.checkpoint.hub_repo import HubRepo
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.files.mapped_file import place_in_file
from swarm_node.shards.pieces import checked
from swarm_node.shards.pieces.file_hashes import HashingStopped, hashing_watched, stop_hashing
from swarm_node.swarm.errors import CheckpointError, NetworkError
from swarm_node.swarm.fairness.recent import RecentMap
from swarm_node.swarm.types import Span
from tests.shards.checkpoint.fake_hub import NAME, PIECE, FakeHub, serving

FILE = "model.safetensors"
BLOCKS = 6
REFUSED = {
    "whole": "the hub answers 200 where parts of files are asked for",
    "shifted": "instead of bytes",
    "grown": "instead of bytes",
    "long": "more than",
    "etag": "has changed on the hub",
    "commit": "has changed on the hub",
    "gzip": "an encoding that was not asked for",
    "416": "cannot fetch",
}


@pytest.fixture
def hub(tmp_path: Path, hf_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A model in one file, of which nothing is small."""
    monkeypatch.setattr(hub_weights, "_SMALL_FILE", 0)
    monkeypatch.setattr(hub_weights, "_RUN", 2 * PIECE)
    monkeypatch.setattr(hub_repo, "_MAX_PAUSE_S", 0.0)
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    directory = hf_llama(num_hidden_layers=BLOCKS)
    (directory / "tokenizer.json").write_text("{}")
    with serving(directory, tmp_path / "cache", monkeypatch) as server:
        yield server


def check_blocks(hub: FakeHub, blocks: Span) -> None:
    """What a node of these blocks gets is what the whole model has."""
    with open_checkpoint(str(hub.directory)) as local, open_checkpoint(NAME, blocks=blocks) as model:
        assert model.identity == local.identity
        for name in local.manifest:
            if name.startswith(tuple(f"model.layers.{block}." for block in range(blocks.start, blocks.end))):
                assert np.array_equal(model.tensor(name).dequantize(), local.tensor(name).dequantize())


def test_a_third_of_the_blocks_is_a_third_of_the_bytes(hub: FakeHub) -> None:
    check_blocks(hub, Span(2, 4))
    size = (hub.directory / FILE).stat().st_size
    assert hub.bytes_of(FILE) < size / 3 + 4 * PIECE
    assert FILE not in hub.fetched()
    with (
        open_checkpoint(NAME, blocks=Span(2, 4)) as model,
        pytest.raises(CheckpointError, match="not fetched"),
    ):
        model.tensor("model.layers.0.mlp.up_proj.weight")


def test_what_came_stays(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    check_blocks(hub, Span(2, 4))
    before = hub.bytes_of(FILE)
    check_blocks(hub, Span(2, 4))
    assert hub.bytes_of(FILE) == before
    check_blocks(hub, Span(3, 5))
    assert hub.bytes_of(FILE) - before < (hub.directory / FILE).stat().st_size / BLOCKS + 2 * PIECE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_blocks(hub, Span(2, 5))
    with pytest.raises(NetworkError, match="cannot be reached"):
        open_checkpoint(NAME, blocks=Span(0, 1))


def test_most_of_a_file_is_fetched_whole(hub: FakeHub, tmp_path: Path) -> None:
    check_blocks(hub, Span(0, 6))
    assert FILE in hub.fetched()
    assert list((tmp_path / "cache").rglob(FILE))


def test_all_parts_together_have_the_sha256_of_the_file(hub: FakeHub, tmp_path: Path) -> None:
    for block in range(BLOCKS):
        check_blocks(hub, Span(block, block + 1))
    with open_checkpoint(NAME, client=True) as model:
        assert np.isfinite(model.tensor("lm_head.weight").dequantize()).all()
    (path,) = (tmp_path / "home" / "hub").rglob(FILE)
    assert path.read_bytes() == (hub.directory / FILE).read_bytes()
    assert FILE not in hub.fetched()


def test_a_file_that_becomes_whole_is_open_under_its_name(hub: FakeHub) -> None:
    """What reads it by its path, as the store of experts does, finds it."""
    for block in range(BLOCKS - 1):
        check_blocks(hub, Span(block, block + 1))
    last = Span(BLOCKS - 1, BLOCKS)
    with open_checkpoint(NAME, blocks=last, client=True) as model:
        tensor = model.tensor(f"model.layers.{last.start}.mlp.up_proj.weight")
        place = place_in_file(tensor.stored)
        assert place is not None
        assert place[0].path.name == FILE
        os.close(place[0].descriptor())


def test_wrong_bytes_are_found_out_when_the_file_is_whole(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults = ["", "bytes"]
    with pytest.raises(NetworkError, match="does not have the SHA-256 that it tells") as caught:  # noqa: PT012
        for block in range(BLOCKS):
            open_checkpoint(NAME, blocks=Span(block, block + 1), client=True).close()
    assert caught.value.hint
    check_blocks(hub, Span(0, 1))  # of what was wrong nothing is left


@pytest.mark.parametrize("fault", sorted(REFUSED))
@pytest.mark.parametrize("at", [0, 4])
def test_a_wrong_answer_is_refused(hub: FakeHub, fault: str, at: int) -> None:
    hub.faults = [*[""] * at, fault]
    with pytest.raises(NetworkError, match=REFUSED[fault]) as caught:
        open_checkpoint(NAME, blocks=Span(2, 4))
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert not hub.faults
    check_blocks(hub, Span(2, 4))


@pytest.mark.parametrize("fault", ["short", "broken", "reset", "429", "500", "503", "redirect"])
def test_a_broken_answer_is_asked_for_again(hub: FakeHub, fault: str) -> None:
    hub.faults = [fault, "", fault, fault, "", fault]
    check_blocks(hub, Span(2, 4))
    assert not hub.faults


def test_a_circle_of_redirects(hub: FakeHub) -> None:
    hub.faults = ["circle"] * 50
    with pytest.raises(NetworkError, match="in a circle"):
        open_checkpoint(NAME, blocks=Span(2, 4))


def test_how_long_a_busy_hub_is_waited_for(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_repo, "_MAX_PAUSE_S", 60.0)
    pauses: list[float] = []
    repo = HubRepo(NAME, sleep=pauses.append)
    hub.faults = ["429"] * 2 + ["503"] * 20
    with pytest.raises(NetworkError, match=r"busy \(503\): bytes 5-14 of model.safetensors") as caught:
        repo.read_range(repo.files[FILE], 5, 10)
    assert pauses == [7, 7, 2, 4, 8]
    assert "what came is kept" in caught.value.hint
    hub.faults = []
    assert repo.read_range(repo.files[FILE], 5, 10) == (hub.directory / FILE).read_bytes()[5:15]


def test_a_hub_that_tells_no_hashes_may_not_change_its_file(hub: FakeHub) -> None:
    repo = HubRepo(NAME)
    hub.tells_sha256 = False
    file = repo.files[FILE]
    repo.read_range(file, 0, 8)
    path = hub.directory / FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(NetworkError, match="has changed on the hub"):
        repo.read_range(file, 8, 8)


def test_pieces_that_this_disk_has_lost_come_again(hub: FakeHub, tmp_path: Path) -> None:
    check_blocks(hub, Span(2, 4))
    before = hub.bytes_of(FILE)
    (path,) = (tmp_path / "home" / "hub").rglob(FILE + ".part")
    with open_checkpoint(str(hub.directory)) as local:
        data = local.tensor("model.layers.2.mlp.up_proj.weight").dequantize().tobytes()
    at = path.read_bytes().index(data)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"damage")
    check_blocks(hub, Span(2, 4))
    assert 0 < hub.bytes_of(FILE) - before <= 2 * PIECE


def test_a_store_that_lost_its_hashes_is_fetched_again(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_blocks(hub, Span(2, 4))
    before = hub.bytes_of(FILE)
    (path,) = (tmp_path / "home" / "hub").glob("*/hashes")
    path.write_bytes(b"\7" * 31)
    monkeypatch.setattr(checked, "_known", RecentMap(64))  # as in another process
    check_blocks(hub, Span(2, 4))
    assert hub.bytes_of(FILE) == 2 * before


def test_several_requests_at_once(hub: FakeHub) -> None:
    together = threading.Barrier(3)
    hub.before_part = lambda number: together.wait(60) if 3 <= number < 6 else None
    check_blocks(hub, Span(2, 4))
    assert not together.broken


def test_progress_and_an_end_in_the_middle(hub: FakeHub) -> None:
    seen: list[tuple[int, int]] = []

    def stop_at_half(done: int, total: int, label: str) -> None:
        if label == f"Fetching {NAME}":
            seen.append((done, total))
            if total > 8 * PIECE and done > total / 2:
                stop_hashing()

    with hashing_watched(), pytest.raises(HashingStopped):
        open_checkpoint(NAME, blocks=Span(2, 4), progress=stop_at_half)
    done, total = seen[-1]
    assert total / 2 < done < total
    before = hub.bytes_of(FILE)
    check_blocks(hub, Span(2, 4))
    assert hub.bytes_of(FILE) - before < total
