"""What makes clients refuse a model's tokenizer, told without building it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.files.mapped_file import MappedFile
from swarm_node.shards.formats.gguf.header import GGUFHeader
from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.shards.formats.not_a_model import tokenizer_hint
from swarm_node.shards.tokenizer.source import DirectoryTokenizer, GGUFTokenizer, TokenizerSource
from swarm_node.swarm.errors import ModelError
from tests.shards.tokenizer.tokenizer_cases import byte_level, sentencepiece, write_vocabulary

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def config() -> ModelConfig:
    return hf_config(
        {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 50,
        },
        {},
        "config.json",
    )


def refused(source: TokenizerSource) -> ModelError:
    """What ``check`` raises; ``build`` raises the same."""
    with pytest.raises(ModelError) as checked:
        source.check()
    with pytest.raises(ModelError) as built:
        source.build()
    assert (checked.value.message, checked.value.hint) == (built.value.message, built.value.hint)
    return checked.value


def of_file(path: Path, write: Callable[[gguf.GGUFWriter], None]) -> GGUFTokenizer:
    return GGUFTokenizer(GGUFHeader(MappedFile(write_vocabulary(path / "x.gguf", write))))


def test_a_directory_without_tokenizer_json(tmp_path: Path, config: ModelConfig) -> None:
    error = refused(DirectoryTokenizer(tmp_path, config))
    assert error.message == f"{tmp_path} holds no tokenizer.json"
    assert error.hint == tokenizer_hint(tmp_path)


@pytest.mark.parametrize(("content", "hint"), [(POINTER, "git lfs pull"), (b"", "again"), (b"[]", "again")])
def test_a_tokenizer_json_that_is_none(
    tmp_path: Path, config: ModelConfig, content: bytes, hint: str
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    error = refused(DirectoryTokenizer(tmp_path, config))
    assert "tokenizer.json is damaged" in error.message
    assert hint in error.hint


def test_a_directory_with_one(tmp_path: Path, config: ModelConfig) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'\n  {"version": "1.0"}')
    DirectoryTokenizer(tmp_path, config).check()


def unknown_kind(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("bert")
    writer.add_token_list(["a", "b"])


def no_merges(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (byte_level("foo"), r"splits text by 'foo' (tokenizer.ggml.pre), which is not known"),
        (byte_level("gemma4"), "'gemma4' (tokenizer.ggml.pre), which spells its tokens in characters"),
        (unknown_kind, "'bert' (tokenizer.ggml.model)"),
        (no_merges, "no merges"),
        (lambda writer: writer.add_tokenizer_model("gpt2"), "no vocabulary"),
        (lambda writer: writer.add_token_list(["a"]), "(tokenizer.ggml.model)"),
        (lambda writer: writer.add_uint32("tokenizer.ggml.tokens", 5), "is not an array"),
    ],
)
def test_gguf_files_that_clients_refuse(
    tmp_path: Path, write: Callable[[gguf.GGUFWriter], None], message: str
) -> None:
    error = refused(of_file(tmp_path, write))
    assert message in error.message
    assert error.hint


@pytest.mark.parametrize("write", [byte_level(None), byte_level("smollm"), sentencepiece()])
def test_gguf_files_that_clients_read(
    tmp_path: Path, write: Callable[[gguf.GGUFWriter], None], caplog: pytest.LogCaptureFixture
) -> None:
    source = of_file(tmp_path, write)
    source.check()
    assert not caplog.text  # that a way to split is guessed is for whoever builds it
    source.build()


@pytest.mark.slow
def test_a_check_loads_no_tokenizer_library(gguf_llama: Callable[..., Path]) -> None:
    """A node never uses it."""
    program = (
        "import sys; from swarm_node.shards.checkpoint.opening import open_checkpoint\n"
        "with open_checkpoint(sys.argv[1]) as model: model.check_tokenizer()\n"
        "assert 'tokenizers' not in sys.modules"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(gguf_llama())], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
