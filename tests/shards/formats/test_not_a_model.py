"""What people have in place of a model: the refusal names it, and says what makes a model of it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.not_a_model import models_in, tokenizer_hint
from swarm_node.shards.formats.qtypes import qtype_of_number
from swarm_node.shards.pieces.hashing import model_files
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError
from tests.shards.conftest import GGUFLlama, HFLlama

Change = Callable[[Path], None]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture
def model(hf_llama: HFLlama) -> Path:
    return hf_llama("it's mine")


def renamed(to: str, *others: str) -> Change:
    """The weights under another name, and other files beside them."""

    def change(model: Path) -> None:
        (model / "model.safetensors").rename(model / to)
        for name in others:
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).touch()

    return change


def only(*names: str) -> Change:
    def change(model: Path) -> None:
        for path in model.iterdir():
            path.unlink()
        for name in names:
            (model / name).touch()

    return change


ADAPTER = only("adapter_config.json", "adapter_model.safetensors")
UNFINISHED = ".cache/huggingface/download/model.safetensors.abc.incomplete"
FIRST = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (
            renamed("pytorch_model-00001-of-00001.bin", "training_args.bin"),
            "a pickle (pytorch_model-00001-of-00001.bin)",
            "AutoModelForCausalLM",
        ),
        (only("pytorch_model.bin"), "a pickle (pytorch_model.bin)", "safetensors files, or as a GGUF file"),
        (only("model.pth"), "a pickle (model.pth)", "safetensors files, or as a GGUF file"),
        (ADAPTER, "holds an adapter", "merge_and_unload"),
        (only("adapter_model.safetensors"), "holds an adapter", "merge_and_unload"),
        (
            only("a-Q4_K_M.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"),
            "holds 2 GGUF models: 'a-Q4_K_M', 'a-Q8_0'",
            "None of them can run. To be told why, give the path of one",
        ),
        (
            only("model.gguf.part"),
            "a download that has not ended (model.gguf.part)",
            "Run the download again",
        ),
        (only("mmproj-a.gguf"), "is a folder with GGUF files, and holds no config.json", "mmproj-a.gguf"),
        (renamed(FIRST), "lacks 1 of its 2 safetensors files: model-00002-of-00002", "too: the number in"),
        (renamed(FIRST, UNFINISHED), "lacks 1 of its 2", "Run the download again"),
        (renamed("model.incomplete"), "a download that has not ended (model.incomplete)", "Run the download"),
        (
            only(FIRST),
            "holds weights (model-00001-of-00002.safetensors), and no config.json",
            "config.json, too",
        ),
        (renamed(FIRST, "tiny-00001-of-00003.safetensors"), "parts of several models", "folder of its own"),
        (
            renamed("consolidated.safetensors", "params.json"),
            "in its maker's own format (consolidated.safetensors)",
            "as transformers has it",
        ),
        (only("consolidated.00.pth", "params.json"), "its maker's own format", "as transformers has it"),
        (only("model_index.json"), "a pipeline of diffusers", "A model is a HuggingFace directory"),
        (only("model.onnx"), "a model for ONNX (model.onnx)", "A model is a HuggingFace"),
        (only("tf_model.h5"), "a model for TensorFlow", "A model is a HuggingFace"),
        (
            renamed("tiny.safetensors"),
            "under another name (tiny.safetensors)",
            "rename it: model.safetensors",
        ),
        (only("config.json", "training_args.bin"), "not usable JSON", "Download it again"),
        (renamed("training_args.bin"), "holds neither model.safetensors nor", "A model is a HuggingFace"),
    ],
)
def test_folders(model: Path, change: Change, message: str, hint: str) -> None:
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", "is a pickle"),
        ("model.pth", "is a pickle"),
        ("model.onnx", "is a model for ONNX"),
        ("model.gguf.incomplete", "is a download that has not ended"),
        ("model.gguf.part", "is a download that has not ended"),
        ("model.gguf.crdownload", "is a download that has not ended"),
        ("notes.txt", "is not a GGUF file"),
        ("model.safetensors", "is one file of a checkpoint"),
    ],
)
def test_files(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(str(tmp_path / name))
    assert caught.value.hint
    assert "Download it again" not in caught.value.hint


def test_only_what_is_called_gguf_is_a_bad_download(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError, match="does not begin with the letters GGUF") as caught:
        open_checkpoint(str(tmp_path / "x.gguf"))
    assert caught.value.hint == "Download it again."


def test_missing_files_are_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00006.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 5 of its 6 .*: (\S+, ){2}\S+04-of\S+ and 2 more"):
        open_checkpoint(str(model))
    monkeypatch.chdir(model)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("./")
    assert str(caught.value).startswith(f"{model} lacks 5")


def test_a_folder_of_models_tells_which_run(model: Path, gguf_llama: GGUFLlama) -> None:
    folder = model.parent
    (model / "tokenizer.json").write_text("{}")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text('{"model_type": "mamba"}')
    (folder / "a-damaged.gguf").write_bytes(b"GGUF")
    good = gguf_llama("F32", name="good.gguf")
    with pytest.raises(CheckpointError, match="holds 4 models in folders") as caught:
        open_checkpoint(str(folder))
    assert caught.value.hint == f"Give the path of one that can run: {str(good)!r} or {str(model)!r}."


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tiny.gguf"])
def test_empty_files(model: Path, name: str) -> None:
    (model / name).write_bytes(b"")
    with (
        pytest.raises(CheckpointError) as caught,
        open_checkpoint(str(model / "tiny.gguf" if name.endswith("gguf") else model)) as opened,
    ):
        opened.tokenizer()
    assert name in str(caught.value)
    assert "Download it again" in caught.value.hint


def save_in_two(model: Path, *, twice: bool = False) -> dict[str, torch.Tensor]:
    """The weights in two numbered files without an index."""
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 - twice :]
    for number, half in enumerate(halves, 1):
        save_file({name: tensors[name] for name in half}, model / f"model-{number:05}-of-00002.safetensors")
    (model / "model.safetensors").unlink()
    return tensors


def test_numbered_files_need_no_index(model: Path) -> None:
    tensors = save_in_two(model)
    (model / "consolidated.safetensors").write_bytes(b"of another loader")
    with open_checkpoint(str(model)) as opened:
        for name, tensor in tensors.items():
            assert np.array_equal(
                opened.tensor(name).dequantize(),
                tensor.float().numpy().reshape(opened.tensor(name).dequantize().shape),
            )
    assert [name for name in model_files(model) if name.startswith("model-")] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_numbered_files_with_a_tensor_twice(model: Path) -> None:
    save_in_two(model, twice=True)
    with pytest.raises(CheckpointError, match=r"tensor .* is in .*00001-of-00002.* and in .*00002-of-00002"):
        open_checkpoint(str(model))


def rename_tensors(model: Path, rename: Callable[[str], str], **settings: object) -> None:
    """A name that becomes "" is left out."""
    tensors = load_file(model / "model.safetensors")
    save_file(
        {new: tensor for name, tensor in tensors.items() if (new := rename(name))},
        model / "model.safetensors",
    )
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **settings}))


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "base_model.model.", "_forward_module._orig_mod.", "model.", "language_model."],
)
def test_names_of_a_wrapped_model(model: Path, prefix: str) -> None:
    with open_checkpoint(str(model)) as plain:
        names = [*plain.manifest]
        wanted = [plain.tensor(name).dequantize() for name in names]
    rename_tensors(model, lambda name: prefix + name)
    with open_checkpoint(str(model)) as opened:
        for name, tensor in zip(names, wanted, strict=True):
            assert np.array_equal(opened.tensor(name).dequantize(), tensor)


def test_a_base_model_without_the_prefix(model: Path) -> None:
    def base(name: str) -> str:
        return "" if name == "lm_head.weight" else name.removeprefix("model.")

    rename_tensors(model, base, tie_word_embeddings=True)
    with open_checkpoint(str(model)) as opened:
        assert opened.config.tie_word_embeddings
        opened.tensor("model.layers.3.self_attn.q_proj.weight").dequantize()
    rename_tensors(model, lambda name: name, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match="a base model that was saved without one") as caught:
        open_checkpoint(str(model))
    assert "ForCausalLM" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("model.embed_tokens", "tok_embeddings", "its maker's own format", "as transformers has it"),
        ("self_attn.q_proj", "self_attn.q_proj.lora_A.default", "holds an adapter", "merge_and_unload"),
    ],
)
def test_names_that_are_not_transformers(model: Path, old: str, new: str, message: str, hint: str) -> None:
    rename_tensors(model, lambda name: name.replace(old, new))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(str(model))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("architecture", "mark", "what"),
    [
        ("clip", ("general.type", "mmproj"), "mmproj"),
        ("clip", None, "mmproj"),
        ("llama", ("general.type", "mmproj"), "mmproj"),
        ("", ("general.type", "imatrix"), "imatrix"),
        ("llama", ("general.type", "adapter"), "LoRA"),
        ("llama", ("adapter.type", "lora"), "LoRA"),
        ("controlvector", None, "control vector"),
        ("llama", None, "vocabulary without weights"),
    ],
)
def test_gguf_files_that_are_no_models(
    tmp_path: Path, architecture: str, mark: tuple[str, str] | None, what: str
) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", architecture)
    if mark is not None:
        writer.add_string(*mark)
    if what != "vocabulary without weights":
        writer.add_tensor("blk.0.attn_q.weight.lora_a", np.ones((2, 2), dtype=np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=re.escape(what)) as caught:
        open_checkpoint(str(tmp_path / "x.gguf"))
    assert "is no model but" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pointers_of_git(model: Path, name: str) -> None:
    """As a clone without Git LFS has them."""
    (model / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError) as caught, open_checkpoint(str(model)) as opened:
        opened.tokenizer()
    assert name in str(caught.value)
    assert "header of" not in str(caught.value)
    assert "git lfs pull" in caught.value.hint


def test_a_command_is_easily_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").touch()
    assert tokenizer_hint(tmp_path).endswith(
        """python -c 'from transformers import AutoTokenizer; """
        f"""AutoTokenizer.from_pretrained("{tmp_path}").save_pretrained("{tmp_path}")'"""
    )


def test_where_there_is_no_tokenizer_at_all_it_is_downloaded(tmp_path: Path) -> None:
    """transformers could make none."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert tokenizer_hint(folder).startswith("Download tokenizer.json, too")


@pytest.mark.parametrize("typed", ["SmolLM2.Q4_1.guff", "smollm2.q4_1.gguf", "SmolLM2-Q4_1.gguf"])
def test_a_wrong_path_gets_near_names_beside_it(tmp_path: Path, typed: str, gguf_llama: GGUFLlama) -> None:
    gguf_llama("F32").rename(tmp_path / "SmolLM2.Q4_1.gguf")
    (tmp_path / "SmolLM2.Q4_2.gguf").write_bytes(b"GGUF")  # cannot run
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
    with pytest.raises(UnsupportedModelError, match="has GGUF type Q8_K, which"):
        qtype_of_number(15, "x")
    with pytest.raises(UnsupportedModelError, match="has GGUF type 99, which"):
        qtype_of_number(99, "x")
