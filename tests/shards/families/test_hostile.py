"""Configurations of every family with values that nobody expects: an error names them, or a model is read."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from transformers import AutoConfig

from swarm_node.shards.families.rows.table import FAMILIES
from swarm_node.shards.families.settings import Settings
from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError

from .test_keys import NEEDED

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    10**30,
    0.5,
    -1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [1, "x"],
]
VALUES += [
    {},
    {"a": {}},
    {"full_attention": None},
    ["sliding_attention"] * 2,
    {"rope_type": "yarn", "factor": 0},
]
SMALL = {
    "num_hidden_layers": 2,
    **dict.fromkeys(("layer_types", "no_rope_layers", "mlp_layer_types", "moe_layers")),
}


OF_EACH_BLOCK: dict[str, dict[str, Any]] = {
    "gemma3n_text": {"intermediate_size": 64, "activation_sparsity_pattern": None, "num_kv_shared_layers": 0},
    "glm_moe_dsa": {
        **dict.fromkeys(("indexer_types", "index_topk_pattern")),
        "index_topk_freq": 1,
        "index_skip_topk_offset": 2,
    },
}
"""Lists with as many numbers as the class's default has blocks, and what counts these."""


@pytest.mark.parametrize("family", FAMILIES)
def test_any_value_of_any_key_gives_a_model_or_our_error(family: str) -> None:
    whole = AutoConfig.for_model(family, **NEEDED.get(family, {})).to_dict()
    document = {**json.loads(json.dumps(whole, default=str)), **SMALL, **OF_EACH_BLOCK.get(family, {})}
    hf_config(document, {}, "config.json")
    for key in (*document, "rope_scaling", "rope_theta", "partial_rotary_factor", "sliding_window_pattern"):
        for value in VALUES:
            with suppress(CheckpointError, UnsupportedModelError):
                hf_config({**document, key: value}, {}, "config.json")


def test_lists_are_read_once_for_all_blocks() -> None:
    """Which may be as many as a list has entries."""
    settings = Settings({"kinds": ["a"] * 2, "chosen": [1], "used": 3}, "a file", {}, {"used": [3, 4]})
    first, second = settings.of(0), settings.of(1)
    assert first.texts("kinds") is second.texts("kinds")
    assert first.integers("chosen", most=9) is second.integers("chosen", most=9)
    assert [each.integers("used", most=9) for each in (first, second)] == [(3,), (4,)]
    assert first.with_values({"chosen": [2]}).integers("chosen", most=9) == (2,)


NEVER = {
    "a latent head's size that rotation does not have": ("deepseek_v3", {"head_dim": 2}, "head_dim is 2"),
    "a type of layer that is misspelt": (
        "lfm2",
        {"layer_types": ["conv", "convolution"], "num_hidden_layers": 2},
        "layer_types has 'convolution' for block 1, expected 'full_attention' or 'conv'",
    ),
    "a type of layer too few": (
        "lfm2",
        {"layer_types": ["conv"], "num_hidden_layers": 2},
        "layer_types has 1 types, expected one for each of 2 blocks",
    ),
    "no groups of experts are used": ("dots1", {"topk_group": 0}, "topk_group is 0"),
    "shares that no file of the family has": ("minimax_m2", {"norm_topk_prob": False}, "norm_topk_prob"),
    "groups that the family does not have": ("minimax_m2", {"n_group": 2, "topk_group": 1}, "group"),
    "windows that the family does not have": (
        "olmo2",
        {"layer_types": ["sliding_attention"] * 2, "sliding_window": 5, "num_hidden_layers": 2},
        "layer_types",
    ),
    "chunks that the family does not have": (
        "gemma4_text",
        {"layer_types": ["chunked_attention", "full_attention"], "num_hidden_layers": 2},
        "layer_types",
    ),
    "a block in both lists": (
        "kimi_linear",
        {"num_hidden_layers": 2, "linear_attn_config": {"full_attn_layers": [1], "kda_layers": [1, 2]}},
        r"linear_attn_config\.kda_layers is \[1, 2\], expected with full_attn_layers, each block",
    ),
    "gates of Kimi K3": (
        "kimi_linear",
        {"linear_attn_config": {"gate_lower_bound": -5.0}},
        r"linear_attn_config\.gate_lower_bound",
    ),
    "two names of one number, and two numbers": (
        "kimi_linear",
        {"moe_renormalize": False, "norm_topk_prob": True},
        "moe_renormalize is False, expected True, as norm_topk_prob is",
    ),
    "a softcap that is zero in float32": ("gemma2", {"attn_logit_softcapping": 1e-300}, "softcapping"),
    "more experts than can be named": (
        "mixtral",
        {"num_hidden_layers": 4096, "num_local_experts": 4096},
        "all blocks have 16777216 experts",
    ),
}


@pytest.mark.parametrize("case", NEVER)
def test_what_would_be_computed_otherwise_is_refused(case: str) -> None:
    family, changes, named = NEVER[case]
    with pytest.raises((CheckpointError, UnsupportedModelError), match=f"^config.json: .*{named}"):
        hf_config({"model_type": family, **NEEDED.get(family, {}), **changes}, {}, "config.json")


def test_a_name_without_a_value_leaves_it_to_the_other_name() -> None:
    for given in ({"moe_renormalize": False, "norm_topk_prob": None}, {"moe_renormalize": False}):
        config = hf_config({"model_type": "kimi_linear", **given}, {}, "config.json")
        (routed, *_) = [block.experts for block in config.blocks if block.experts]
        assert not routed.router.renormalise


def test_plain_rope_has_no_factor_on_attention() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "attention_factor": 2.0}
    config = hf_config({"model_type": "llama", "rope_parameters": rope}, {}, "config.json")
    assert config.blocks[0].attention.rope is not None
    assert config.blocks[0].attention.rope.attention_factor is None
