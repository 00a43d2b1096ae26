"""Which models are on this machine, by name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from swarm_node.shards.checkpoint.local_models import LocalModels, default_local_models, gguf_title, hub_cache
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.files.mapped_file import MappedFile
from swarm_node.shards.pieces.cache import PieceCache
from swarm_node.shards.pieces.hashing import manifest_of, model_files
from swarm_node.swarm.types import ModelRef

PARTS = ("model-1-of-2.safetensors", "model-2-of-2.safetensors")


def directory(path: Path, *files: str, index: dict[str, str] | None = None) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    for name in files:
        (path / name).write_bytes(b"x" * 10)
    if index is not None:
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return path


def cached(hub: Path, repo: str, commit: str, *files: str) -> Path:
    snapshot = directory(hub / repo / "snapshots" / commit, *files)
    (hub / repo / "refs").mkdir(exist_ok=True)
    (hub / repo / "refs" / "main").write_text(commit)
    return snapshot


def test_files_and_directories_are_listed(tmp_path: Path) -> None:
    models = tmp_path / "models"
    whole = directory(models / "whole", "model.safetensors")
    directory(models / "owner" / "inner", "model.safetensors")
    directory(models / "broken", index={"a": "missing.safetensors"})
    directory(models / "parts", *PARTS, index=dict(zip("ab", PARTS, strict=True)))
    directory(models / "no-weights")
    (models / "file.Q4_1.gguf").write_bytes(b"GGUF" + bytes(6))
    (models / "notes.txt").write_text("nothing")
    found = {model.name: model for model in LocalModels([models, tmp_path / "missing"]).models()}
    assert list(found) == ["file.Q4_1", "inner", "parts", "whole"]
    assert (found["whole"].path, found["whole"].kind, found["whole"].nbytes) == (whole, "huggingface", 12)
    assert (found["file.Q4_1"].kind, found["file.Q4_1"].nbytes) == ("gguf", 10)
    assert found["parts"].nbytes > 20


def test_what_cannot_run_says_why(tmp_path: Path, hf_llama, gguf_llama) -> None:  # type: ignore[no-untyped-def]
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(gguf_llama("F32"), models / "good.gguf")
    shutil.copy(
        gguf_llama("F32", extra=lambda writer: writer.add_tokenizer_model("odd")), models / "mute.gguf"
    )
    (models / "damaged.gguf").write_bytes(b"GGUF" + bytes(6))
    for name in ("whole", "mute", "half", "short", "unknown", "mamba"):
        shutil.copytree(hf_llama(name), models / name)
        (models / name / "tokenizer.json").write_text("{}")
    (models / "mute" / "tokenizer.json").unlink()
    (models / "half" / "model.safetensors").unlink()
    with (models / "short" / "model.safetensors").open("r+b") as file:
        file.truncate(10_000)
    for name in ("unknown", "mamba"):
        (models / name / "config.json").write_text(json.dumps({"model_type": name}))
    for name, file_name in (
        ("lora", "adapter_config.json"),
        ("flux", "model_index.json"),
        ("notes", "a.txt"),
    ):
        (models / name).mkdir()
        (models / name / file_name).write_text("{}")
    (models / "flux" / "unet").mkdir()
    (models / "flux" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(100))
    found = {model.name: model for model in LocalModels([models]).checked() if model.kind != "gguf"}
    files = {model.name: model for model in LocalModels([models]).checked() if model.kind == "gguf"}
    assert "notes" not in found
    assert "unet" not in found, "a part of a pipeline"
    assert found["flux"].nbytes == 102
    assert found["half"].nbytes > 2, "what is there"
    for model, why in {
        files["good"]: "",
        files["mute"]: "the tokenizer of mute.gguf is 'odd'",
        files["damaged"]: "GGUF version 0",
        found["whole"]: "",
        found["mute"]: "holds no tokenizer.json",
        found["half"]: "neither model.safetensors nor",
        found["short"]: "is truncated",
        found["unknown"]: "model family 'unknown' is not supported",
        found["mamba"]: "has blocks that keep a state",
        found["lora"]: "holds an adapter",
        found["flux"]: "a pipeline of diffusers",
    }.items():
        assert bool(model.problem) == bool(why), model
        assert why in model.problem
        assert bool(model.hint) == bool(why)
    complete = {model.name for model in LocalModels([models]).models()}
    assert complete == {*files, *found} - {"half", "lora", "flux"}


def test_what_lacks_tensors_of_a_foreign_family_cannot_run(tmp_path: Path) -> None:
    """transformers computes GPT-2, which has a table of positions before its blocks."""
    model = tmp_path / "models" / "tiny-gpt2"
    model.mkdir(parents=True)
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 16}
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    (model / "tokenizer.json").write_text("{}")
    wte, wpe = (f"transformer.{name}.weight" for name in ("wte", "wpe"))
    for names, missing in (([wte], r"no tensors of h\.0"), ([wte, "transformer.h.0.ln_1.weight"], "wpe")):
        save_file({name: torch.zeros(16, 8) for name in names}, model / "model.safetensors")
        (found,) = LocalModels([tmp_path / "models"]).checked()
        assert re.search(missing, found.problem), found
        assert str(model) in found.problem
    save_file({name: torch.zeros(16, 8) for name in (*names, wpe)}, model / "model.safetensors")
    assert not LocalModels([tmp_path / "models"]).checked()[0].problem


def test_checking_reads_no_weights(  # type: ignore[no-untyped-def]
    tmp_path: Path, hf_llama, gguf_llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(gguf_llama("F32"), models / "tiny.gguf")
    shutil.copytree(hf_llama("tiny"), models / "tiny")
    (models / "tiny" / "tokenizer.json").write_text("{}")
    read: list[int] = []
    monkeypatch.setattr(MappedFile, "slice", lambda self, at, n: read.append(n) or self._array[at : at + n])
    monkeypatch.setattr("swarm_node.shards.pieces.file_hashes.hash_files", None)  # nor hashes anything
    assert [model.problem for model in LocalModels([models]).checked()] == ["", ""]
    assert 0 < sum(read) < 10_000 < (models / "tiny" / "model.safetensors").stat().st_size


def test_the_hubs_cache_counts_where_it_is_whole(tmp_path: Path) -> None:
    cached(tmp_path, "models--own--old", "c0", "model.safetensors", "tokenizer.json")
    newest = cached(tmp_path, "models--own--old", "c1", "model.safetensors", "tokenizer.json")
    cached(tmp_path, "models--own--part", "c1", "tokenizer.json")
    cached(tmp_path, "models--own--headless", "c1", "model.safetensors")
    escaping = cached(tmp_path, "models--own--escaping", "c1", "model.safetensors", "tokenizer.json")
    (escaping.parents[1] / "refs" / "main").write_text("../../models--own--old/snapshots/c1")
    (found,) = LocalModels((), tmp_path).models()
    assert (found.name, found.path, found.kind) == ("own/old", newest, "hub")


def test_what_peers_sent_counts_where_it_is_whole(tmp_path: Path, hf_llama) -> None:  # type: ignore[no-untyped-def]
    path = hf_llama()
    files, manifest = model_files(path), manifest_of(path)
    cache = PieceCache(tmp_path / "weights")
    local_models = LocalModels(fetched=cache)
    with cache.open(manifest, ModelRef("sent", "ab" * 32, 4)) as store:
        for piece in range(manifest.n_pieces):
            assert local_models.models() == []
            place = manifest.place(piece)
            data = files[place.file.name].read_bytes()
            assert store.add(piece, data[place.offset : place.offset + place.length])
    (found,) = local_models.models()
    assert (found.name, found.root, found.kind, found.nbytes) == (
        "sent",
        manifest.root,
        "fetched",
        manifest.total_bytes,
    )
    with open_checkpoint(str(found.path)) as checkpoint:
        assert checkpoint.ref.name == "sent"


def test_earlier_folders_come_first(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        directory(tmp_path / folder / "same", "model.safetensors")
    found = LocalModels([tmp_path / "two", tmp_path / "one", tmp_path / "two"]).find("SAME")
    assert [model.path.parent.name for model in found] == ["two", "one"]


def test_a_title_inside_the_file_is_a_name(tmp_path: Path, gguf_llama) -> None:  # type: ignore[no-untyped-def]
    path = gguf_llama(extra=lambda writer: writer.add_name("Tiny Llama"))
    local_models = LocalModels([tmp_path])
    assert [model.path for model in local_models.find("tiny llama")] == [path]
    assert [model.path for model in local_models.find("tiny")] == [path]
    assert local_models.find("other") == []
    assert gguf_title(path) == "Tiny Llama"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 40, b"no"])
def test_damaged_files_have_no_title(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    assert gguf_title(tmp_path / "bad.gguf") == ""
    assert LocalModels([tmp_path]).find("good") == []
    assert gguf_title(tmp_path / "missing.gguf") == ""


def test_default_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert hub_cache() == tmp_path / "home/.cache/huggingface/hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert hub_cache() == tmp_path / "hf/hub"
    assert default_local_models().models() == []
    directory(tmp_path / "models" / "mine", "model.safetensors")
    cached(tmp_path / "hf" / "hub", "models--own--cached", "c1", "model.safetensors", "tokenizer.json")
    assert [model.name for model in default_local_models().models()] == ["mine", "own/cached"]


def test_a_model_of_several_files_is_one_with_its_own_name_and_title(
    tmp_path: Path,
    gguf_llama,  # type: ignore[no-untyped-def]
) -> None:
    models = tmp_path / "models"
    for folder in ("", "repo/Q8_0", "owner/repo"):
        (models / folder).mkdir(parents=True, exist_ok=True)
        path = gguf_llama("Q8_0", split=8, extra=lambda writer: writer.add_name("Tiny Title"))
        for part in model_files(path).values():
            shutil.move(part, models / folder / part.name.replace("tiny", f"tiny{len(folder)}"))
    (models / "repo" / "config.json").write_text("{}")  # as in many repositories of GGUF files
    listed = LocalModels([models]).checked()
    assert {(model.name, model.kind, model.problem) for model in listed} == {
        (name, "gguf", "") for name in ("tiny0", "tiny9", "tiny10")
    }
    assert all(model.nbytes > 1_000_000 for model in listed)
    assert len(LocalModels([models]).find("Tiny Title")) == 3
    (found,) = LocalModels([models]).find("tiny9.gguf")
    with open_checkpoint(str(found.path)) as checkpoint:
        assert checkpoint.ref.name == "tiny9"
    next((models / "repo" / "Q8_0").glob("*-00002-*")).unlink()
    (lacking,) = (model for model in LocalModels([models]).checked() if model.name == "tiny9")
    assert "lacks 1 of the 3 files of tiny9" in lacking.problem
    assert lacking.hint
    assert not LocalModels([models]).find("tiny9")
