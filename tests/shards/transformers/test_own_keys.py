"""What a config.json of a family without a row may make transformers do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedConfig

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.transformers.config import foreign_config
from swarm_node.shards.formats.transformers.layered import LayeredModel
from swarm_node.shards.formats.transformers.own_keys import LONGEST
from swarm_node.shards.loading import load_backend
from swarm_node.swarm.errors import UnsupportedModelError
from swarm_node.swarm.types import Span
from tests.shards.families.cases import SMALL
from tests.shards.transformers.test_foreign_models import EXACT, Chain, changed, foreign_model

LONG = 6
"""Seconds of the processor: it was over 60."""


def opened(family: str, **more: Any) -> Any:
    return foreign_config({**SMALL, "model_type": family, **more}, {}, "config.json")


ROPE = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 50}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8}


@pytest.mark.parametrize("family", ["apertus", "phi", "helium", "diffllama"])
@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rotations_that_depend_on_the_cut_are_refused(family: str, kind: str, key: str) -> None:
    name = "rope_type" if key == "rope_parameters" else "type"
    with pytest.raises(UnsupportedModelError, match=f"{key}.*{kind}.* cut") as raised:
        opened(family, **{key: {name: kind, **ROPE, **FACTORS}})
    assert "yarn" in str(raised.value.hint)


def test_rotations_of_one_type_of_layers_are_refused() -> None:
    ropes = {
        "full_attention": {"rope_type": "longrope", **ROPE},
        "sliding_attention": {"rope_type": "default"},
    }
    with pytest.raises(UnsupportedModelError, match=r"rope_parameters\.full_attention.*longrope"):
        opened("apertus", rope_parameters=ropes)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_other_rotations_are_not(kind: str) -> None:
    assert opened("apertus", rope_parameters={"rope_type": kind, **ROPE}).n_blocks == 3


@pytest.mark.parametrize(("length", "tokens"), [(50, 64), (1 << 12, 38)])
def test_the_self_test_goes_beyond_small_lengths(length: int, tokens: int, tmp_path: Path) -> None:
    foreign_model("gpt_neox").save_pretrained(tmp_path)
    ropes = {"rope_type": "yarn", **ROPE, "original_max_position_embeddings": length}
    context = 64 if length == 50 else 1 << 12
    with open_checkpoint(
        changed(tmp_path, rope_parameters=ropes, max_position_embeddings=context)
    ) as checkpoint:
        assert sum(load_backend(checkpoint, Span(0, 1), EXACT)._tried()) == tokens


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gpt_neox", {"num_hidden_layers": 2000}),
        ("opt", {"num_hidden_layers": 30000}),
        ("bart", {"decoder_layers": 200000, "encoder_layers": 1}),
        ("bart", {"decoder_layers": 30000, "encoder_layers": 1}),
        ("flex_olmo", {"num_hidden_layers": 32768, "num_experts": 32768}),
    ],
)
def test_too_many_layers_are_refused_soon(family: str, more: dict[str, Any]) -> None:
    opened("gpt_neox")  # the imports
    began = time.process_time()
    with pytest.raises(UnsupportedModelError, match=r"modules|decoder_layers"):
        opened(family, **more)
    assert time.process_time() - began < LONG


@pytest.mark.parametrize(("family", "layers"), [("gpt_neox", 500), ("diffllama", 100)])
def test_many_layers_take_little_time(family: str, layers: int) -> None:
    """Those of diffllama differ by a factor."""
    opened("gpt_neox")  # the imports
    began = time.process_time()
    model = opened(family, num_hidden_layers=layers)
    assert time.process_time() - began < LONG
    assert (model.n_blocks, len({id(block) for block in model.blocks})) == (layers, 1)


def test_blocks_of_each_kind_are_called() -> None:
    model = opened("gpt_neox", num_hidden_layers=40)
    other = opened("gpt_neox", num_hidden_layers=40, num_attention_heads=8)
    assert {block.attention.kv.heads for block in model.blocks} == {4}
    assert {block.attention.kv.heads for block in other.blocks} == {8}


@pytest.mark.parametrize(
    ("family", "key", "more"),
    [
        ("mpt", "max_seq_len", {}),
        ("gptj", "n_positions", {"rotary_dim": 8}),
        ("codegen", "n_positions", {"rotary_dim": 8, "n_ctx": 1 << 24}),
    ],
)
def test_a_long_context_is_clipped(family: str, key: str, more: dict[str, Any]) -> None:
    small = {name: value for name, value in SMALL.items() if name != "max_position_embeddings"}
    model = foreign_config({**small, "model_type": family, key: 1 << 24, **more}, {}, "config.json")
    assert model.max_position_embeddings == LONGEST
    assert model.foreign is not None
    assert getattr(LayeredModel(model.foreign.document).config, key) == LONGEST


def test_the_smaller_of_two_contexts_counts() -> None:
    assert opened("mpt", max_seq_len=40).max_position_embeddings == 40
    assert opened("mpt", max_seq_len=400).max_position_embeddings == 64


CHOOSES_CODE: dict[str, Any] = {
    "attn_implementation": "kernels-community/flash-attn2",
    "_attn_implementation": "kernels-community/flash-attn2",
    "_attn_implementation_internal": "flash_attention_2",
    "experts_implementation": "kernels-community/experts",
    "_experts_implementation": "deepgemm",
    "auto_map": {"AutoConfig": "evil--Config"},
    "trust_remote_code": True,
    "use_kernels": True,
    "torchscript": True,
    "per_layer_config": {"0": {"hidden_size": 8}},
    "base_model_tp_plan": {"layers.*": "colwise"},
    "to_dict": "not a method",
    "dtype": "float8_e4m3fn",
    "return_dict": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "chunk_size_feed_forward": 3,
    "no_such_key": 1,
}


@pytest.mark.parametrize("family", ["gpt_neox", "mpt", "flex_olmo"])
def test_what_chooses_code_never_reaches_transformers(family: str) -> None:
    inside = (
        {"attn_config": {"alibi": True, "attn_impl": "triton", **CHOOSES_CODE}} if family == "mpt" else {}
    )
    model, plain = opened(family, **CHOOSES_CODE, **inside), opened(family)
    assert model.foreign is not None
    assert not any(key in model.foreign.document for key in (*CHOOSES_CODE, "attn_impl"))
    made = LayeredModel(model.foreign.document)
    assert made.config._attn_implementation in ("sdpa", "eager")
    assert made.config.to_dict.__func__ is PreTrainedConfig.to_dict
    assert model.blocks == plain.blocks


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization": {"bits": 4, "group_size": 64}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}},
    ],
)
def test_quantized_weights_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="are not supported where transformers computes"):
        opened("gpt_neox", **settings)


def test_an_error_of_transformers_costs_one_step(tmp_path: Path) -> None:
    """ALiBi of mpt is made for so many tokens, and no more."""
    foreign_model("mpt").save_pretrained(tmp_path)
    tokens = np.arange(54) * 7 % 61
    with open_checkpoint(changed(tmp_path, max_seq_len=40)) as checkpoint:
        assert checkpoint.config.max_position_embeddings == 40
        chain = Chain(checkpoint)
        wanted = chain.step((0, 0, tokens[:40]))[0]
        with pytest.raises(UnsupportedModelError, match="transformers cannot run"):
            chain.step((1, 0, tokens))
        np.testing.assert_array_equal(chain.step((2, 0, tokens[:40]))[0], wanted)
