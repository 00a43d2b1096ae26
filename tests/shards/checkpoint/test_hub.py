"""Hub models through a local server that speaks the hub's endpoints: what is fetched, and what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.pieces.digest import SMALL_FILES, Part
from swarm_node.shards.pieces.hashing import manifest_of
from swarm_node.shards.transfer.hub_source import HubPieces
from swarm_node.swarm.errors import CheckpointError, NetworkError, UnsupportedModelError, UsageError
from swarm_node.swarm.types import Span
from tests.shards.checkpoint.fake_hub import NAME, PIECE, FakeHub, serving
from tests.shards.mlx.mlx_checkpoints import quantize_directory
from tests.shards.pieces.differing import differing_parts

HFLlama = Callable[..., Path]


@pytest.fixture
def hub(tmp_path: Path, hf_llama: HFLlama, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    directory = hf_llama(shards=4)
    Backend(models.BPE()).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"chat_template": "hi"}')
    with serving(directory, tmp_path / "cache", monkeypatch) as server:
        yield server


def shard(number: int) -> str:
    return f"model-{number:05}-of-00004.safetensors"


def test_a_node_fetches_only_the_shards_of_its_blocks(hub: FakeHub) -> None:
    with open_checkpoint(str(hub.directory)) as local, open_checkpoint(NAME, blocks=Span(0, 1)) as model:
        small = {"config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"}
        assert hub.fetched() - {shard(1)} <= {*SMALL_FILES}
        assert hub.fetched() >= {*small, shard(1)}
        assert model.ref.name == NAME
        assert model.ref.digest == local.ref.digest
        name = "model.layers.0.self_attn.q_proj.weight"
        assert np.array_equal(model.tensor(name).dequantize(), local.tensor(name).dequantize())
        with pytest.raises(CheckpointError, match="were not fetched"):
            model.tensor("model.layers.3.mlp.up_proj.weight")
        assert model.has("model.layers.3.mlp.up_proj.weight")
    asked = sum(
        int(part.split("-")[1]) - int(part[6:].split("-")[0]) + 1 for _, _, part in hub.requests if part
    )
    assert asked <= 4 * PIECE  # four headers


def test_a_client_fetches_its_shard_and_the_tokenizer(hub: FakeHub) -> None:
    with open_checkpoint(NAME, client=True) as model:
        assert {file for file in hub.fetched() if file.endswith(".safetensors")} == {shard(4)}
        assert model.tokenizer().has_chat_template
        assert np.isfinite(model.tensor("lm_head.weight").dequantize()).all()


def test_everything(hub: FakeHub) -> None:
    with open_checkpoint(NAME) as model:
        assert {shard(number) for number in range(1, 5)} <= hub.fetched()
        for block in range(4):
            model.tensor(f"model.layers.{block}.mlp.up_proj.weight").dequantize()


def test_progress(hub: FakeHub) -> None:
    seen: list[tuple[int, int, str]] = []
    with open_checkpoint(NAME, blocks=Span(0, 1), progress=lambda *state: seen.append(state)):
        done = [(state[0], state[1]) for state in seen if state[2] == f"Fetching {shard(1)}"]
    size = (hub.directory / shard(1)).stat().st_size
    assert done[-1] == (size, size)


def test_one_file_model(hub: FakeHub, tmp_path: Path, hf_llama: HFLlama) -> None:
    hub.directory = hf_llama("single")
    with open_checkpoint(NAME, blocks=Span(1, 2)) as model, open_checkpoint(str(hub.directory)) as local:
        assert model.ref.digest == local.ref.digest


def test_every_part_of_a_hub_model_has_the_digest_of_the_whole(hub: FakeHub) -> None:
    """With any shards here, and the rest by the hub's word."""
    (hub.directory / "README.md").write_text("no part of the model")
    (hub.directory / "chat_template.jinja").write_text("hello")
    with open_checkpoint(str(hub.directory)) as local:
        for asked in (
            {"weights": False},
            {"blocks": Span(2, 3)},
            {"blocks": Span(0, 2)},
            {"client": True},
            {},
        ):
            with open_checkpoint(NAME, **asked) as model:
                assert model.identity == local.identity


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "chat_template.jinja"])
def test_another_small_file_on_the_hub_is_another_model(hub: FakeHub, name: str) -> None:
    with open_checkpoint(str(hub.directory)) as local:
        (hub.directory / name).write_bytes(b'{"version": "1.0", "model": {"type": "BPE"}}')
        with open_checkpoint(NAME, weights=False) as model:
            assert differing_parts(model.identity, local.identity) == [SMALL_FILES[name]]


def test_a_shard_beside_the_needed_ones_that_differs_is_another_model(hub: FakeHub) -> None:
    with open_checkpoint(str(hub.directory)) as local:
        path = hub.directory / shard(4)
        path.write_bytes(path.read_bytes()[:-1] + b"\7")
        with open_checkpoint(NAME, blocks=Span(0, 1)) as model:
            assert differing_parts(model.identity, local.identity) == [Part.WEIGHTS]


def test_a_model_in_one_file_has_an_index_that_nobody_reads(hub: FakeHub, hf_llama: HFLlama) -> None:
    hub.directory = hf_llama("single")
    (hub.directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    with open_checkpoint(NAME, blocks=Span(1, 2)) as model, open_checkpoint(str(hub.directory)) as local:
        assert model.ref.digest == local.ref.digest


def test_a_hub_that_tells_no_hashes_is_asked_for_small_shards_and_never_for_large_ones(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tells_sha256 = False
    monkeypatch.setattr("swarm_node.shards.checkpoint.hub_weights._MAX_UNTOLD", 1000)
    with pytest.raises(NetworkError, match="does not tell the SHA-256") as caught:
        open_checkpoint(NAME, blocks=Span(0, 1))
    assert "Download" in caught.value.hint
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.directory.parent / "cache"))
    with open_checkpoint(NAME, blocks=Span(0, 1)) as model, open_checkpoint(str(hub.directory)) as local:
        assert model.ref.digest == local.ref.digest


def test_a_download_that_was_damaged_on_this_disk(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoint(NAME, blocks=Span(0, 1)):
        pass
    (path,) = (tmp_path / "cache").rglob(shard(1))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.resolve().write_bytes(data)
    with open_checkpoint(NAME, blocks=Span(0, 1)):
        assert path.read_bytes()[-1] == data[-1] ^ 1
    assert not list((tmp_path / "cache").rglob("*.bad"))
    with open_checkpoint(NAME):
        pass
    path.resolve().write_bytes(data)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"is damaged: its SHA-256") as caught:
        open_checkpoint(NAME)
    assert "as soon as the hub can be reached" in caught.value.hint


def test_scales_may_be_in_another_shard_than_their_integers(
    hub: FakeHub, tmp_path: Path, hf_llama: HFLlama
) -> None:
    whole = quantize_directory(hf_llama(name="dense"), tmp_path / "q", group=32)
    files: dict[str, dict[str, torch.Tensor]] = {shard(number): {} for number in (1, 2, 3)}
    for name, tensor in load_file(whole / "model.safetensors").items():
        first = name.startswith("model.layers.0.")
        files[shard(3 if not first else 2 if name.endswith((".scales", ".biases")) else 1)][name] = tensor
    for file, tensors in files.items():
        save_file(tensors, whole / file)
    (whole / "model.safetensors").unlink()
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (whole / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    hub.directory = whole
    with open_checkpoint(str(whole)) as local, open_checkpoint(NAME, blocks=Span(0, 1)) as model:
        assert {file for file in hub.fetched() if file.endswith(".safetensors")} <= {shard(1), shard(2)}
        assert model.ref.digest == local.ref.digest
        name = "model.layers.0.self_attn.q_proj.weight"
        assert model.tensor(name).qtype == "MLX4_32_F32"
        assert np.array_equal(model.tensor(name).dequantize(), local.tensor(name).dequantize())


def test_a_head_beside_a_tied_embedding_is_fetched(hub: FakeHub) -> None:
    config, index = hub.directory / "config.json", hub.directory / "model.safetensors.index.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": True}))
    tensors = load_file(hub.directory / shard(4))
    save_file({"lm_head.weight": tensors.pop("lm_head.weight")}, hub.directory / "head.safetensors")
    save_file(tensors, hub.directory / shard(4))
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**places, "lm_head.weight": "head.safetensors"}}))
    with open_checkpoint(NAME, client=True) as model:
        assert not model.config.tie_word_embeddings
        assert model.tensor("lm_head.weight").shape == (50, 64)


def test_a_tensor_that_nobody_reads_in_a_shard_that_is_not_fetched(hub: FakeHub) -> None:
    tensors = load_file(hub.directory / shard(3))
    tensors["model.layers.2.self_attn.q_norm.weight"] = torch.ones(16)
    save_file(tensors, hub.directory / shard(3))
    with pytest.raises(UnsupportedModelError, match=r"not use: 'model\.layers\.2\.self_attn\.q_norm"):
        open_checkpoint(NAME, blocks=Span(0, 1))
    assert shard(3) not in hub.fetched()


def test_second_opening_works_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(NAME) as model:
        digest = model.ref.digest
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with open_checkpoint(NAME, client=True) as model:
        assert model.ref.digest == digest
        assert model.tokenizer().has_chat_template
    assert hub.requests == []


def test_a_node_is_told_of_a_repository_without_tokenizer(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoint(NAME, weights=False) as model:
        model.check_tokenizer()
    (hub.directory / "tokenizer.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{constants.HF_HUB_CACHE}-2")
    with (
        open_checkpoint(NAME, weights=False) as model,
        pytest.raises(CheckpointError, match=r"has no tokenizer\.json on the HuggingFace hub") as caught,
    ):
        model.check_tokenizer()
    assert caught.value.hint


def test_unknown_model(hub: FakeHub) -> None:
    with pytest.raises(CheckpointError, match="no model nobody/nothing") as caught:
        open_checkpoint("nobody/nothing")
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_unreachable_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="cannot be reached") as caught:
        open_checkpoint(NAME)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_dead_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = FakeHub(hub.directory)
    closed.server_close()  # its port refuses connections now
    monkeypatch.setenv("HF_ENDPOINT", closed.url)
    with pytest.raises(NetworkError, match="cannot be reached"):
        open_checkpoint(NAME)


def test_gated_model(hub: FakeHub) -> None:
    hub.gated = True
    with pytest.raises(CheckpointError, match="gated") as caught:
        open_checkpoint(NAME)
    assert "HF_TOKEN" in caught.value.hint


def test_repository_without_safetensors(hub: FakeHub) -> None:
    for path in hub.directory.glob("model*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors") as caught:
        open_checkpoint(NAME, blocks=Span(0, 1))
    assert ".gguf" in caught.value.hint


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("config.json", "pytorch_model.bin"), "weights as a pickle (pytorch_model.bin)"),
        (("adapter_config.json", "adapter_model.safetensors"), "an adapter of a model"),
        (("model_index.json", "unet/config.json"), "a pipeline of diffusers"),
        (("params.json", "consolidated.safetensors"), "its maker's own format"),
        (("config.json", "consolidated.safetensors"), "its maker's own format"),
        (("config.json", "onnx/model.onnx"), "a model for ONNX (onnx)"),
        (("model.safetensors",), "weights (model.safetensors), and no config.json"),
        (("README.md",), "holds no config.json"),
    ],
)
def test_repositories_of_other_things(hub: FakeHub, names: tuple[str, ...], what: str) -> None:
    settings = (hub.directory / "config.json").read_text()
    shutil.rmtree(hub.directory)
    for name in names:
        (hub.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (hub.directory / name).write_text(settings)
    with pytest.raises(CheckpointError, match=re.escape(what)) as caught:
        open_checkpoint(NAME, blocks=Span(0, 1))
    assert ".gguf" in caught.value.hint


def test_numbered_files_need_no_index(hub: FakeHub) -> None:
    (hub.directory / "model.safetensors.index.json").unlink()
    with open_checkpoint(str(hub.directory)) as local, open_checkpoint(NAME, blocks=Span(0, 1)) as model:
        assert model.identity == local.identity
    (hub.directory / shard(3)).unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of its 4 safetensors files"):
        open_checkpoint(NAME, blocks=Span(0, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda listing: listing.pop("sha"),
        lambda listing: listing.update(sha="../../x"),
        lambda listing: listing.update(sha=7),
        lambda listing: listing.update(siblings=[7]),
        lambda listing: listing.update(siblings=[{"size": 5}]),
        lambda listing: listing["siblings"][0].update(rfilename=7),
        lambda listing: listing["siblings"][0].update(size="x"),
        lambda listing: listing["siblings"][0].update(lfs={"sha256": 7, "size": 5, "pointerSize": 1}),
        lambda listing: listing.clear(),
    ],
)
def test_a_garbled_list_of_files(hub: FakeHub, change: Callable[[dict[str, Any]], object]) -> None:
    whole = hub.listing()
    change(whole)
    hub.listing = lambda: whole  # type: ignore[method-assign]
    with pytest.raises(NetworkError, match="list of the files of some-org/tiny-llama is garbled"):
        open_checkpoint(NAME, blocks=Span(0, 1))


@pytest.mark.parametrize("size", [0, -5, 7, 1 << 70])
def test_a_list_with_other_sizes_than_the_files_have(hub: FakeHub, size: int) -> None:
    whole = hub.listing()
    entry = next(each for each in whole["siblings"] if each["rfilename"] == shard(2))  # type: ignore[attr-defined]
    entry["size"] = size
    hub.listing = lambda: whole  # type: ignore[method-assign]
    with pytest.raises((NetworkError, CheckpointError)) as caught:
        open_checkpoint(NAME, blocks=Span(0, 1))
    assert "\n" not in str(caught.value)


def test_truncated_remote_shard(hub: FakeHub) -> None:
    path = hub.directory / shard(2)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(NAME, blocks=Span(0, 1))


def test_span_outside_the_model_fetches_no_weights(hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="outside the model"):
        open_checkpoint(NAME, blocks=Span(3, 6))
    assert not any(file.endswith(".safetensors") for file in hub.fetched())


def test_single_pieces_for_those_who_have_the_manifest(hub: FakeHub) -> None:
    listed = manifest_of(hub.directory, piece_size=PIECE)
    read = HubPieces(NAME)
    for piece in range(0, listed.n_pieces, 5):
        assert listed.is_right(piece, read(listed, piece))
    assert not any(name.endswith(".safetensors") for name in hub.fetched())
