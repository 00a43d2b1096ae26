"""config.json as transformers reads it, and settings that cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swarm_node.shards.checkpoint.checkpoint import directory_config
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.blocks.attention import AttentionConfig
from swarm_node.shards.formats.blocks.block import BlockConfig
from swarm_node.shards.formats.blocks.mlp import MlpConfig
from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.formats.blocks.rope import RopeConfig
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError
from tests.shards.tokenizer.transformers_words import our_shape, rope_of, shape_of

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 50,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def read(**changes: Any) -> ModelConfig:
    return hf_config({**BASE, **changes}, {}, "config.json")


def test_defaults_are_transformers_defaults() -> None:
    config = read()
    norm = NormConfig(1e-6)
    rope = RopeConfig(16, theta=10000.0, original_max_position_embeddings=2048)
    block = BlockConfig(AttentionConfig(4, 4, 16, 0.25, rope), MlpConfig(96), norm=norm, mlp_norm=norm)
    assert config == ModelConfig("llama", (block,) * 4, 64, 50, norm, 2048, bos_token_id=1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2, "head_dim": 20, "tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-5},
        {"max_position_embeddings": 512, "rope_theta": 500000.0},
        {"rope_scaling": LLAMA3},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 3.0}},
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "beta_fast": 16.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
            }
        },
        {"rope_scaling": {**LLAMA3, "rope_type": "yarn"}, "original_max_position_embeddings": 32},
    ],
)
def test_equals_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    """The same settings, from the original file and from the one transformers writes."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(
        json.dumps({**BASE, "bos_token_id": 1, "eos_token_id": 2, **changes})
    )
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs.standardize_rope_params()  # as the model does before it computes frequencies
    again = tmp_path / "again"
    theirs.save_pretrained(again)
    ours = directory_config(tmp_path)
    assert directory_config(again) == ours
    assert our_shape(ours) == shape_of(theirs)
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    rope, our_rope = dict(theirs.rope_parameters), rope_of(ours)
    rope.pop("type", None)
    assert our_rope.type == rope.pop("rope_type")
    stretch = rope.get("factor", 1) if our_rope.type in ("linear", "yarn") else 1
    trained = rope.get("original_max_position_embeddings", theirs.max_position_embeddings)
    assert ours.max_position_embeddings == max(theirs.max_position_embeddings, trained * stretch)
    assert our_rope.theta == rope.pop("rope_theta")
    for name, value in rope.items():
        if not (our_rope.type == "yarn" and name in ("low_freq_factor", "high_freq_factor")):
            assert getattr(our_rope, name) == value


def test_end_of_text() -> None:
    assert hf_config({**BASE, "eos_token_id": 5}, {}, "x").eos_token_ids == (5,)
    assert hf_config({**BASE, "eos_token_id": [5, 6]}, {"eos_token_id": [7, 8, 7]}, "x").eos_token_ids == (
        7,
        8,
    )
    assert hf_config(BASE, {}, "x").eos_token_ids == ()


def test_mistral_without_window_is_llama() -> None:
    mistral = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }
    llama = read(num_key_value_heads=2, max_position_embeddings=1024)
    for window in (None, 1024, 4096):
        assert read(**mistral, sliding_window=window) == replace(llama, family="mistral")
    assert read(**mistral) == replace(llama, family="mistral")  # of a window of 4096
    assert {block.attention.window for block in read(**mistral, sliding_window=128).blocks} == {128}
    del mistral["max_position_embeddings"]
    assert {block.attention.window for block in read(**mistral).blocks} == {4096}


def test_a_window_shorter_than_what_scaling_makes_of_the_context() -> None:
    scaled = {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "sliding_window": 3000,
        "num_key_value_heads": 4,
    }
    assert read(sliding_window=3000).max_position_embeddings == 2048
    with pytest.raises(UnsupportedModelError, match="sliding_window is 3000: this family has no"):
        read(**scaled)
    vain = read(model_type="mistral", architectures=[], **scaled, max_position_embeddings=1500)
    assert vain.blocks[0].attention.window == 0
    short = read(model_type="mistral", architectures=[], **scaled, max_position_embeddings=1501)
    assert short.blocks[0].attention.window == 3000


def test_the_first_name_of_the_architecture() -> None:
    assert read(architectures=["LLaMAForCausalLM"]) == read()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "gpt2"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "hqq"}}, "hqq"),
        ({"hidden_act": "mish"}, "hidden_act: activation 'mish'"),
        ({"partial_rotary_factor": 0.5}, "part of a head"),
        ({"model_type": "x" * 10**6}, r"^\S+: model family .{1,120} is not"),
        ({"rope_scaling": {"rope_type": "mrope"}}, "rope type 'mrope'"),
    ],
)
def test_unsupported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected a whole number from 1 to 4096"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot be shared by 3"),
        ({"head_dim": 15}, "15 rotated dimensions of a head are not an even number"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "0 rope short_factors, expected 8"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": 0}, "theta"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling\.factor is missing, expected a number"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}}, "is below low_freq_factor"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\], expected an object"),
        ({"rope_scaling": {"rope_type": {"a": 1}}}, r"rope_scaling\.rope_type is {'a': 1}, expected a text"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": "false"}}, "true or false"),
        ({"model_type": ["x" * 10**6]}, r"model_type is .{1,200} expected a text"),
        ({"hidden_act": ["silu"]}, "hidden_act is"),
        ({"tie_word_embeddings": "yes"}, "expected true or false"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id is -1, expected a whole number from 0"),
        ({"eos_token_id": list(range(257))}, "a list of up to 256 of them"),
        ({"num_hidden_layers": 10**4000}, r"num_hidden_layers is 1.{0,50} expected"),
        ({"rope_theta": 10**4000}, r"rope_theta is 1.{0,50} expected a number above 1"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
        ({"hidden_size": ["x" * 10**6] * 100}, r"hidden_size is .{1,1000}$"),
        ({"model_type": "mistral", "sliding_window": "x"}, "sliding_window is 'x'"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(**changes)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["./nowhere", "/nowhere/model", "nowhere.gguf", "some/model.gguf", "~/nowhere", "a/b/c", ""]
)
def test_missing_path_is_not_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def no_hub(*_: object, **__: object) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr("swarm_node.shards.checkpoint.hub.open_hub_model", no_hub)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(name)
    assert caught.value.hint
