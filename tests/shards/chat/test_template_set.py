"""Several chat templates by name, and the small files beside a tokenizer, as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.shards.tokenizer.hf import hf_tokenizer
from swarm_node.shards.tokenizer.tokenizer import Tokenizer
from swarm_node.swarm.errors import CheckpointError, UsageError

GGUFLlama = Callable[..., Path]
CHAT = [{"role": "user", "content": "x"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tone }}"
WITH_TOOLS = "{{ tools | default([], true) | length }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
CONFIG: ModelConfig = hf_config({"model_type": "llama", "eos_token_id": None}, {}, "config.json")


def write(directory: Path, files: dict[str, Any]) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(directory / "tokenizer.json"))
    for name, document in {"tokenizer_config.json": {}, **files}.items():
        (directory / name).write_text(json.dumps(document))
    return directory


def opened(directory: Path) -> Tokenizer:
    return hf_tokenizer(directory, CONFIG)


def named(**templates: object) -> dict[str, Any]:
    return {"chat_template": [{"name": name, "template": text} for name, text in templates.items()]}


@pytest.mark.parametrize("tools", [None, [], TOOLS])
@pytest.mark.parametrize(
    "templates",
    [{"default": PLAIN, "tool_use": WITH_TOOLS, "rag": "rag"}, {"default": WITH_TOOLS}, {"tool_use": "t"}],
)
def test_a_chat_with_tools_takes_the_template_for_tools(
    tmp_path: Path, templates: dict[str, str], tools: list[dict[str, Any]] | None
) -> None:
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    ours = opened(write(tmp_path, {"tokenizer_config.json": {**kind, **named(**templates)}}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.chat_template == theirs.chat_template
    options = {"tools": tools, "add_generation_prompt": True}
    try:
        expected = theirs.apply_chat_template(CHAT, tokenize=False, **options)
    except ValueError:
        with pytest.raises(UsageError, match="has no chat template for this chat, only tool_use"):
            ours.template.render(CHAT, **options)
    else:
        assert ours.template.render(CHAT, **options) == expected
    ours.close()


def test_variables_are_those_of_the_templates_in_use(tmp_path: Path) -> None:
    several = named(default=PLAIN, tool_use=WITH_TOOLS, rag="{{ documents }}")
    ours = opened(write(tmp_path, {"tokenizer_config.json": several}))
    assert ours.chat_variables == {"messages", "tone", "tools"}
    assert ours.has_chat_template
    ours.close()


def test_the_last_of_two_with_one_name_counts(tmp_path: Path) -> None:
    twice = {"chat_template": [*named(default="a")["chat_template"], *named(default="b")["chat_template"]]}
    assert opened(write(tmp_path, {"tokenizer_config.json": twice})).chat_template == {"default": "b"}


@pytest.mark.parametrize("none", [{}, {"chat_template": None}, {"chat_template": []}])
def test_no_template(tmp_path: Path, none: dict[str, Any]) -> None:
    assert not opened(write(tmp_path, {"tokenizer_config.json": none})).has_chat_template


@pytest.mark.parametrize(
    ("file", "document", "message"),
    [
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template is 5, expected a list of objects"),
        ("tokenizer_config.json", named(default=5), r"chat_template\[0\]\.template is 5, expected a text"),
        ("tokenizer_config.json", {"chat_template": [{}]}, r"chat_template\[0\]\.name is missing"),
        ("chat_template.json", {"chat_template": ["x"]}, "chat_template is .* expected a list of objects"),
        ("tokenizer_config.json", {"eos_token": 5}, "eos_token is 5, expected an object"),
        (
            "special_tokens_map.json",
            {"bos_token": {"content": 1}},
            r"bos_token\.content is 1, expected a text",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder is"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"²": {"content": "x"}}},
            "under '²', expected its",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9" * 4000: {}}},
            "under '9999.{1,150}expected its",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"300": {"content": 7}}}, r"300\.content is 7"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"300": {"content": "x", "special": "no"}}},
            r"added_tokens_decoder\.300\.special is 'no', expected true or false",
        ),
    ],
)
def test_values_of_the_wrong_type(tmp_path: Path, file: str, document: object, message: str) -> None:
    write(tmp_path, {file: document})
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(tmp_path)
    assert file in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"chat_template": "a"}, "a"),
        ({"chat_template": "a", "chat_template.tool_use": "b"}, "a"),  # not listed
        ({"chat_template": "a", "chat_templates": ["tool_use"], "chat_template.tool_use": "b"}, None),
        ({"chat_templates": ["tool_use"], "chat_template.tool_use": "b"}, {"tool_use": "b"}),
    ],
)
def test_templates_of_a_gguf_file(gguf_llama: GGUFLlama, keys: dict[str, Any], expected: object) -> None:
    def extra(writer: gguf.GGUFWriter) -> None:
        for key, value in keys.items():
            add = writer.add_array if isinstance(value, list) else writer.add_string
            add(f"tokenizer.{key}", value)

    several = {"default": "a", "tool_use": "b"}
    with open_checkpoint(str(gguf_llama(extra=extra))) as model:
        tokenizer = model.tokenizer()
        assert tokenizer.chat_template == (several if len(keys) == 3 else expected)
        if len(keys) == 3:
            assert tokenizer.template.render(CHAT, add_generation_prompt=True, tools=TOOLS) == "b"
        tokenizer.close()


def test_a_gguf_template_that_is_no_text(gguf_llama: GGUFLlama) -> None:
    with (
        open_checkpoint(str(gguf_llama(extra=lambda w: w.add_uint32("tokenizer.chat_template", 5)))) as model,
        pytest.raises(CheckpointError, match=r"tokenizer\.chat_template is 5, expected a text"),
    ):
        model.tokenizer()
