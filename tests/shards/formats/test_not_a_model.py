"""What people have in place of a model: the refusal names it, and says what makes a model of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.not_a_model import models_in, tokenizer_hint
from swarm_node.shards.formats.qtypes import qtype_of_number
from swarm_node.shards.pieces.hashing import model_files
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError
from tests.shards.conftest import HFLlama

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture
def model(hf_llama: HFLlama) -> Path:
    return hf_llama("it's mine")


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model-00001-of-00001.bin")
    (model / "training_args.bin").touch()


def adapter(model: Path) -> None:
    for path in model.iterdir():
        path.unlink()
    (model / "adapter_config.json").write_text("{}")
    (model / "adapter_model.safetensors").touch()


def gguf_files(model: Path) -> None:
    for path in model.iterdir():
        path.unlink()
    (model / "model-Q4_K_M.gguf").touch()


def without_index(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")


def unknown(model: Path) -> None:
    (model / "model.safetensors").rename(model / "consolidated.safetensors")
    (model / "training_args.bin").touch()


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (pickled, "a pickle (pytorch_model-00001-of-00001.bin)", "AutoModelForCausalLM"),
        (adapter, "holds an adapter", "merge_and_unload"),
        (gguf_files, "is a folder with GGUF files", "it's mine/model-Q4_K_M.gguf"),
        (without_index, "holds parts of a model", "Download the files that are missing"),
        (unknown, "neither model.safetensors nor", "A model is a HuggingFace directory"),
    ],
)
def test_folders(model: Path, change: Callable[[Path], None], message: str, hint: str) -> None:
    change(model)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(model))
    assert message in str(caught.value)
    assert hint in caught.value.hint
    if "python -c" in caught.value.hint:
        *_, program = shlex.split(caught.value.hint.partition("python -c")[2])
        compile(program, "the hint", "exec")
    with pytest.raises(CheckpointError):
        model_files(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pointers_of_git(model: Path, name: str) -> None:
    """As a clone without Git LFS has them."""
    (model / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError) as caught, open_checkpoint(str(model)) as opened:
        opened.tokenizer()
    assert name in str(caught.value)
    assert "git lfs pull" in caught.value.hint


def test_a_command_is_easily_read() -> None:
    assert tokenizer_hint(Path("/models/x")).endswith(
        """python -c 'from transformers import AutoTokenizer; """
        """AutoTokenizer.from_pretrained("/models/x").save_pretrained("/models/x")'"""
    )


@pytest.mark.parametrize("typed", ["SmolLM2.Q4_1.guff", "smollm2.q4_1.gguf", "SmolLM2-Q4_1.gguf"])
def test_a_wrong_path_gets_near_names_beside_it(tmp_path: Path, typed: str) -> None:
    (tmp_path / "SmolLM2.Q4_1.gguf").touch()
    (tmp_path / "SmolLM2.Q4_1.txt").touch()
    with pytest.raises(CheckpointError, match="no model at") as caught:
        open_checkpoint(str(tmp_path / typed))
    assert caught.value.hint == f"Did you mean {str(tmp_path / 'SmolLM2.Q4_1.gguf')!r}?"


def test_a_wrong_path_into_nowhere(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model at") as caught:
        open_checkpoint(str(tmp_path / "nothing" / "x.gguf"))
    assert caught.value.hint.startswith("Give a .gguf file")


def test_what_may_be_a_model_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.txt"):
        (tmp_path / name).touch()
    for name in ("c", "d"):
        (tmp_path / name).mkdir()
    (tmp_path / "c" / "config.json").touch()
    assert models_in(tmp_path) == ["a.gguf", "c"]
    assert models_in(tmp_path / "a.gguf") == models_in(tmp_path / "none") == []


def test_a_pointer_to_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(POINTER)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(tmp_path / "x.gguf"))
    assert "git lfs pull" in caught.value.hint


def test_types_of_gguf_files_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match="has GGUF type IQ3_S, which"):
        qtype_of_number(21, "x")
    with pytest.raises(UnsupportedModelError, match="has GGUF type 99, which"):
        qtype_of_number(99, "x")
