"""Keys and defaults of config.json against transformers, and GGUF keys against the gguf package."""

from __future__ import annotations

from typing import Any

import gguf
import pytest
from transformers import LlamaConfig, MistralConfig

from swarm_node.shards.families.model import NEUTRAL
from swarm_node.shards.formats.config import ModelConfig
from swarm_node.shards.formats.gguf.unread import HARMLESS
from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.swarm.errors import UnsupportedModelError
from tests.shards.tokenizer.transformers_words import our_shape, rope_of, shape_of

CLASSES = {"llama": LlamaConfig, "mistral": MistralConfig}
OTHERS = {
    "hidden_size": 96,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 70,
    "rms_norm_eps": 0.25,
    "max_position_embeddings": 77,
    "head_dim": 10,
    "tie_word_embeddings": True,
    "bos_token_id": 9,
    "rope_theta": 77.0,
}
"""Values that no class has as its default."""


def of_transformers(document: dict[str, Any]) -> dict[str, Any]:
    theirs = CLASSES[document["model_type"]](**document)
    return shape_of(theirs) | {
        "max_position_embeddings": theirs.max_position_embeddings,
        "tie_word_embeddings": theirs.tie_word_embeddings,
        "bos_token_id": theirs.bos_token_id,
        "theta": theirs.rope_parameters["rope_theta"],
    }


def same(ours: ModelConfig, theirs: dict[str, Any]) -> bool:
    mine = our_shape(ours) | {"theta": rope_of(ours).theta}
    return all(mine.get(name, getattr(ours, name, None)) == value for name, value in theirs.items())


@pytest.mark.parametrize("model_type", CLASSES)
@pytest.mark.parametrize("missing", [None, *OTHERS])
def test_missing_keys_have_transformers_defaults(model_type: str, missing: str | None) -> None:
    document = {"model_type": model_type, "sliding_window": None, **OTHERS}
    for key in OTHERS if missing is None else (missing,):
        del document[key]
    if missing == "head_dim":
        assert our_shape(hf_config(document, {}, "config.json"))["head_dim"] == 12
    assert same(hf_config(document, {}, "config.json"), of_transformers(document))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("is_causal", False),
        ("is_causal", None),
        ("use_bidirectional_attention", True),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.5),
        ("embedding_multiplier", 12),
        ("num_local_experts", 8),
        ("layer_types", ["full_attention", "sliding_attention"] * 16),
        ("per_layer_config", {"1": {"num_attention_heads": 2}}),
        ("is_encoder_decoder", True),
        ("rotary_pct", 0.25),
        ("quantization_config", {"quant_method": "hqq"}),
        ("quantization", {"bits": 4, "mode": "mxfp4"}),
        ("quantization", {"bits": 4, "model.layers.0": {"mode": "mxfp4"}}),
        ("rope_scaling", {"full_attention": {"rope_type": "linear", "factor": 2.0}}),
    ],
)
def test_a_key_that_changes_results_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{key}|quantized|{value!r}"):
        hf_config({"model_type": "llama", key: value}, {}, "config.json")


def test_mistral_has_no_biases_to_switch_on() -> None:
    with pytest.raises(UnsupportedModelError, match="attention_bias is True"):
        hf_config(
            {"model_type": "mistral", "sliding_window": None, "attention_bias": True}, {}, "config.json"
        )


@pytest.mark.parametrize("key", NEUTRAL)
def test_neutral_values_are_taken(key: str) -> None:
    plain = hf_config({"model_type": "llama"}, {}, "config.json")
    for value in NEUTRAL[key]:
        assert hf_config({"model_type": "llama", key: value}, {}, "config.json") == plain


def test_harmless_gguf_keys_are_keys_of_llama_cpp() -> None:
    keys = gguf.constants.Keys
    known = {value for group in (keys.LLM, keys.Attention, keys.Rope) for value in vars(group).values()}
    assert {f"{{arch}}.{key}" for key in HARMLESS} <= known
