"""GGUF models of the hub: which files a name means, and what comes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from swarm_node.shards.checkpoint import hub_repo, hub_weights
from swarm_node.shards.checkpoint.hub_gguf import called, chosen, gguf_of
from swarm_node.shards.checkpoint.local_models import LocalModels
from swarm_node.shards.checkpoint.opening import is_hub_name, open_checkpoint
from swarm_node.shards.pieces.hashing import manifest_of
from swarm_node.shards.transfer.hub_source import HubPieces
from swarm_node.swarm.errors import CheckpointError, NetworkError, UsageError
from swarm_node.swarm.names import nearness
from swarm_node.swarm.types import Span
from tests.shards.checkpoint.fake_hub import NAME, PIECE, FakeHub, serving

BLOCKS = 6
REPO = [
    "README.md",
    "Tiny-1B-Q4_K_M.gguf",
    "Tiny-1B-UD-Q4_K_XL.gguf",
    "Tiny-1B-Q8_0-imat.gguf",
    "mmproj-Tiny-1B-F16.gguf",
    "Tiny-1B-imatrix.gguf",
    "BF16/Tiny-1B-BF16-00001-of-00002.gguf",
    "BF16/Tiny-1B-BF16-00002-of-00002.gguf",
    "Q6_K/Tiny-00001-of-00002.gguf",
    "Q6_K/Tiny-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("choice", "name", "first"),
    [
        ("Q4_K_M", "Q4_K_M", "Tiny-1B-Q4_K_M.gguf"),
        ("q4_k_m", "Q4_K_M", "Tiny-1B-Q4_K_M.gguf"),
        ("tiny-1b-q4_k_m.gguf", "Q4_K_M", "Tiny-1B-Q4_K_M.gguf"),
        ("Tiny-1B-Q4_K_M", "Q4_K_M", "Tiny-1B-Q4_K_M.gguf"),
        ("Q4_K_XL", "UD-Q4_K_XL", "Tiny-1B-UD-Q4_K_XL.gguf"),
        ("UD-Q4_K_XL", "UD-Q4_K_XL", "Tiny-1B-UD-Q4_K_XL.gguf"),
        ("Q8_0", "Tiny-1B-Q8_0-imat.gguf", "Tiny-1B-Q8_0-imat.gguf"),
        ("BF16", "BF16", "BF16/Tiny-1B-BF16-00001-of-00002.gguf"),
        ("BF16/Tiny-1B-BF16-00002-of-00002.gguf", "BF16", "BF16/Tiny-1B-BF16-00001-of-00002.gguf"),
        ("Tiny-00002-of-00002.gguf", "Q6_K", "Q6_K/Tiny-00001-of-00002.gguf"),
        ("Q6_K", "Q6_K", "Q6_K/Tiny-00001-of-00002.gguf"),
    ],
)
def test_which_file_a_name_means(choice: str, name: str, first: str) -> None:
    models = gguf_of(REPO)
    assert len(models) == 5
    model = chosen("o/tiny", choice, models)
    assert model.paths[0] == first
    assert called("o/tiny", model, models) == f"o/tiny:{name}"
    assert chosen("o/tiny", called("o/tiny", model, models).partition(":")[2], models) == model


@pytest.mark.parametrize("choice", ["Q4_K", "Q2_K", "", "mmproj", "Tiny", "Q4_K_M.gguf.gguf", "4_K_M", ".*"])
def test_choices_are_named_where_none_fits(choice: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        chosen("o/tiny", choice, gguf_of(REPO))
    assert "o/tiny:Q4_K_M" in caught.value.hint
    assert "o/tiny:BF16" in caught.value.hint


def test_two_models_of_one_quantization() -> None:
    models = gguf_of(["Tiny-1B-Q4_0.gguf", "Tiny-3B-Q4_0.gguf"])
    with pytest.raises(CheckpointError, match="has several GGUF models that 'Q4_0' may mean") as caught:
        chosen("o/tiny", "Q4_0", models)
    assert "o/tiny:Tiny-1B-Q4_0.gguf, o/tiny:Tiny-3B-Q4_0.gguf" in caught.value.hint
    assert chosen("o/tiny", "Tiny-3B-Q4_0.gguf", models).stem == "Tiny-3B-Q4_0"


def test_a_part_that_the_hub_lacks() -> None:
    (model,) = gguf_of(["a/x-Q4_0-00001-of-00003.gguf"])
    with pytest.raises(CheckpointError, match="lacks 3 of the 3 files"):
        model.files({})


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("o/tiny:Q4_K_M", True),
        ("o/tiny:UD-Q4_K_XL", True),
        ("o/tiny:BF16/tiny-00001-of-00002.gguf", True),
        ("o/tiny:x.gguf", True),
        ("tiny:Q4_K_M", False),
        ("./o/tiny:Q4_K_M", False),
        ("o/tiny.gguf", False),
        ("o/tiny:", False),
        ("o/tiny:../x.gguf", False),
    ],
)
def test_names_of_gguf_models_on_the_hub(text: str, is_one: bool) -> None:
    assert is_hub_name(text) == is_one


def test_names_without_quantization_or_owner_mean_them_too() -> None:
    known = "owner/Tiny-1B-GGUF:Q4_K_M"
    for name, near in {
        known: 0,
        known.lower(): 1,
        "Tiny-1B-GGUF:Q4_K_M": 2,
        "Tiny-1B-GGUF": None,
        "Tiny-1B": 3,
        "owner/Tiny-1B-GGUF": 3,
        "other/Tiny-1B-GGUF:Q4_K_M": None,
        "owner/Tiny-1B-GGUF:Q8_0": None,
    }.items():
        assert nearness(name, known) == near
    assert nearness("owner/Tiny", "owner/Tiny-Q4_0") is None


@pytest.fixture
def hub(
    tmp_path: Path, gguf_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """One model whole, another in parts in a folder, and what lies beside such models."""
    monkeypatch.setattr(hub_weights, "_SMALL_FILE", 0)
    monkeypatch.setattr(hub_weights, "_RUN", 4 * PIECE)
    monkeypatch.setattr(hub_repo, "_MAX_PAUSE_S", 0.0)
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    repo, parts = tmp_path / "repo", tmp_path / "repo" / "F16"
    parts.mkdir(parents=True)
    gguf_llama("Q8_0", name="Tiny-Q8_0.gguf", blocks=BLOCKS).rename(repo / "Tiny-Q8_0.gguf")
    gguf_llama("F16", name="Tiny-F16.gguf", blocks=BLOCKS, split=12, tied=False)
    for path in tmp_path.glob("Tiny-F16-*.gguf"):
        path.rename(parts / path.name)
    (repo / "mmproj-Tiny-F16.gguf").write_bytes(b"GGUF")
    with serving(repo, tmp_path / "cache", monkeypatch) as server:
        yield server


WHOLE, PARTS = f"{NAME}:Q8_0", f"{NAME}:F16"


def path_of(hub: FakeHub, name: str) -> str:
    return str(hub.directory / "Tiny-Q8_0.gguf" if name == WHOLE else hub.directory / "F16")


def check_blocks(hub: FakeHub, name: str, blocks: Span) -> None:
    with open_checkpoint(path_of(hub, name)) as local, open_checkpoint(name, blocks=blocks) as model:
        assert (model.identity, model.ref.name) == (local.identity, name)
        for tensor in local.manifest:
            if tensor.startswith(
                tuple(f"model.layers.{block}." for block in range(blocks.start, blocks.end))
            ):
                assert np.array_equal(model.tensor(tensor).dequantize(), local.tensor(tensor).dequantize())


@pytest.mark.parametrize("name", [WHOLE, PARTS])
def test_a_third_of_the_blocks_is_a_third_of_the_bytes(hub: FakeHub, name: str) -> None:
    check_blocks(hub, name, Span(2, 4))
    size = sum(
        path.stat().st_size
        for path in hub.directory.rglob("Tiny*.gguf")
        if (path.parent.name == "F16") == (name == PARTS)
    )
    before = hub.bytes_of(".gguf")
    assert before < size / 3 + 12 * PIECE
    check_blocks(hub, name, Span(2, 4))
    assert hub.bytes_of(".gguf") == before
    with (
        open_checkpoint(name, blocks=Span(2, 4)) as model,
        pytest.raises(CheckpointError, match="not fetched"),
    ):
        model.tensor("model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize("name", [WHOLE, PARTS])
def test_a_client_gets_its_part_and_the_vocabulary(hub: FakeHub, name: str) -> None:
    with open_checkpoint(path_of(hub, name)) as local, open_checkpoint(name, client=True) as model:
        assert model.tokenizer().encode("ab") == local.tokenizer().encode("ab")
        head = "lm_head.weight" if name == PARTS else "model.embed_tokens.weight"
        assert np.array_equal(model.tensor(head).dequantize(), local.tensor(head).dequantize())
    assert hub.fetched() <= {"F16/Tiny-F16-00001-of-00005.gguf"}  # most of which a client needs


def test_a_header_longer_than_the_first_read(hub: FakeHub, gguf_llama: Callable[..., Path]) -> None:
    long = gguf_llama(
        "Q8_0", name="Long-Q4_0.gguf", extra=lambda writer: writer.add_description("x" * 9 * PIECE)
    )
    shutil.move(long, hub.directory / "Long-Q4_0.gguf")
    with open_checkpoint(f"{NAME}:Q4_0", blocks=Span(0, 1)) as model:
        model.tensor("model.layers.0.mlp.up_proj.weight").dequantize()
    assert not hub.fetched()


def test_all_of_it_goes_into_the_hubs_cache_and_is_found_there(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.json", "tokenizer.json"):
        (hub.directory / name).write_text("{}")
    for name in (WHOLE, PARTS):
        with open_checkpoint(name) as model:
            digest = model.ref.digest
        for path in hub_repo.HubRepo(NAME).files:
            if path.endswith(".json"):
                hub_repo.HubRepo(NAME).fetch(path)
        (found,) = LocalModels((), tmp_path / "cache").find(name)
        assert (found.name, found.kind) == (name, "hub")
        with open_checkpoint(str(found.path)) as model:
            assert model.ref.digest == digest
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_blocks(hub, PARTS, Span(0, 1))


def test_what_came_is_enough_without_the_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    check_blocks(hub, PARTS, Span(2, 4))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_blocks(hub, PARTS, Span(2, 4))
    with open_checkpoint(f"{NAME}:tiny-f16.gguf", blocks=Span(2, 4)) as model:
        assert model.ref.name == PARTS
    for name, blocks in ((PARTS, Span(0, 2)), (WHOLE, Span(2, 4)), (f"{NAME}:Q2_K", Span(2, 4))):
        with pytest.raises(NetworkError, match="cannot be reached"):
            open_checkpoint(name, blocks=blocks)


def test_a_repository_of_gguf_files_by_its_own_name(hub: FakeHub) -> None:
    with pytest.raises(CheckpointError, match="has 2 GGUF models") as caught:
        open_checkpoint(NAME, blocks=Span(0, 1))
    assert WHOLE in caught.value.hint
    assert PARTS in caught.value.hint
    shutil.rmtree(hub.directory / "F16")
    for name in ("config.json", "tokenizer.json"):  # as some such repositories have them
        (hub.directory / name).write_text("{}")
    with open_checkpoint(NAME, blocks=Span(0, 1)) as model:
        assert model.ref.name == WHOLE


def test_a_quantization_beside_safetensors(hub: FakeHub, hf_llama: Callable[..., Path]) -> None:
    shutil.copytree(hf_llama(), hub.directory, dirs_exist_ok=True)
    with open_checkpoint(NAME, blocks=Span(0, 1)) as model:
        assert model.ref.name == NAME
    check_blocks(hub, WHOLE, Span(0, 1))


def test_blocks_outside_the_model(hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="outside the model"):
        open_checkpoint(WHOLE, blocks=Span(4, 9))
    assert hub.bytes_of(".gguf") <= 4 * PIECE


@pytest.mark.parametrize("damage", ["pointer", "cut", "letters", "empty"])
def test_what_is_no_gguf_file(hub: FakeHub, damage: str) -> None:
    path = hub.directory / "Tiny-Q8_0.gguf"
    data = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:77\nsize 5\n"
    path.write_bytes({"pointer": pointer, "cut": data[:-99], "letters": b"no" + data, "empty": b""}[damage])
    with pytest.raises((CheckpointError, NetworkError)) as caught:
        open_checkpoint(WHOLE, blocks=Span(0, 1))
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [WHOLE, PARTS])
def test_single_pieces_for_those_who_have_the_manifest(hub: FakeHub, name: str) -> None:
    listed = manifest_of(Path(path_of(hub, name)), piece_size=PIECE)
    read = HubPieces(name)
    for piece in range(0, listed.n_pieces, 9):
        assert listed.is_right(piece, read(listed, piece))
    assert not hub.fetched()
    with pytest.raises(NetworkError, match=r"the hub has another model.*gguf"):
        HubPieces(PARTS if name == WHOLE else WHOLE)(listed, 0)
