"""Which keys of transformers' configuration classes families read, and what they take for missing ones."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from transformers import AutoConfig

from swarm_node.shards.families.model import NEUTRAL
from swarm_node.shards.families.rows.table import FAMILIES
from swarm_node.shards.formats.hf.config import hf_config

CHANGES_NOTHING = {
    *("attention_dropout", "hidden_dropout", "embedding_dropout", "residual_dropout", "resid_pdrop"),
    *("embd_pdrop", "initializer_range", "use_cache", "pad_token_id", "eod_token_id"),
    *(
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "problem_type",
        "output_hidden_states",
        "return_dict",
    ),
    *(f"linear_{name}" for name in ("a_log_max", "a_log_min", "dt_max", "dt_min", "dt_init_floor")),
    *("transformers_version", "pretraining_tp", "altup_coef_clip", "output_router_logits"),
    *("num_logits_to_keep", "mamba_chunk_size", "z_loss_coefficient", "chunk_size", "expand"),
    *("use_mamba_kernels", "mamba_ssm_cache_dtype", "rescale_prenorm_residual", "residual_in_fp32"),
    *("time_step_min", "time_step_max", "time_step_floor", "moe_shared_expert_overlap"),
    "mtp_layers_block_type",
    *("router_aux_loss_coef", "router_jitter_noise", "moe_intermediate_size", "top_k_experts"),
    *(
        "input_jitter_noise",
        "sep_token_id",
        "max_window_layers",
        "layer_types",
        "original_max_position_embeddings",
    ),
}
"""Of training, of other heads than a language model's, of what a call gives back, and of parts that are not
there if keys that are read say so."""
NEEDED: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "glm4_moe": {"head_dim": 128},
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    | {"position_embedding_type": "rope"},
}
"""What has to be said, as the class's default is a model that is not supported, or has no attention."""


class Asked(dict[str, Any]):
    """Remembers which keys somebody looked for."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.keys_asked: set[object] = set()

    def __contains__(self, key: object) -> bool:
        self.keys_asked.add(key)
        return super().__contains__(key)


def document_of(family: str) -> dict[str, Any]:
    return {"model_type": family, **NEEDED.get(family, {})}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_the_class_is_read_or_changes_nothing(family: str) -> None:
    document = Asked(document_of(family))
    hf_config(document, {}, "config.json")
    keys = {field.name for field in fields(type(AutoConfig.for_model(family)))}
    assert keys - CHANGES_NOTHING - NEUTRAL.keys() <= document.keys_asked


OF_EVERY_FILE = {
    *("model_type", "torch_dtype", "quantization", "quantization_config", "num_nextn_predict_layers"),
    *("head_dim", "rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings"),
}
OF_SOME = {
    "gemma3_text": {"rope_local_base_freq", "sliding_window_pattern"},
    "gemma4_text": {"global_head_dim"},
    "gemma3n_text": {"rope_local_base_freq"},
    "cohere2": {"sliding_window_pattern"},
    "minimax_m2": {"rotary_dim"},
    "granitemoe": {"shared_intermediate_size"},
    "hunyuan_v1_moe": {"n_shared_experts"},
    **{key: {"full_attention_interval"} for key in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")},
    "kimi_linear": {"linear_attn_config", "first_k_dense_replace"},
    "nemotron_h": {"hybrid_override_pattern"},
    "glm_moe_dsa": {"index_topk_pattern", "index_topk_freq", "index_skip_topk_offset"},
}
"""What files of before have, and the class makes other keys of; and what the tensors have to agree with."""


@pytest.mark.parametrize("family", FAMILIES)
def test_no_key_is_read_that_the_class_does_not_have(family: str) -> None:
    """Such a key would change what we compute, and not what transformers does."""
    document, row = Asked(document_of(family)), FAMILIES[family]
    hf_config(document, {}, "config.json")
    own = type(AutoConfig.for_model(family))
    known = {field.name for field in fields(own)} | own.attribute_map.keys()
    known |= row.aliases.keys() | row.fixed.keys() | NEUTRAL.keys() | OF_EVERY_FILE | {"router_correction"}
    assert document.keys_asked <= known | OF_SOME.get(family, set())


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_keys_have_transformers_defaults(family: str) -> None:
    theirs = AutoConfig.for_model(family, **NEEDED.get(family, {})).to_dict()
    whole = hf_config(json.loads(json.dumps(theirs, default=str)), {}, "config.json")
    assert replace(whole, eos_token_ids=()) == hf_config(document_of(family), {}, "config.json")


YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 32, "original_max_position_embeddings": 4096}
MROPE = {"mrope_interleaved": True, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25}
LIKE_SCOUT = {"low_freq_factor": 1.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 8192}
OLD: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "gemma3_text",
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "sliding_window_pattern": 3,
            "sliding_window": 16,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "attn_logit_softcapping": None,
        },
    ),
    "phi3": (
        "phi3",
        {
            "original_max_position_embeddings": 128,
            "rope_theta": 1e4,
            "sliding_window": 100,
            "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 48, "short_factor": [1.0] * 48},
        },
    ),
    "phi4": ("phi3", {"partial_rotary_factor": 0.75, "lm_head_bias": False, "rope_theta": 1e4}),
    "glm4": ("glm4", {"partial_rotary_factor": 0.25, "rope_theta": 5e4, "rope_scaling": None}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.4, "rope_theta": 5e4}),
    "olmo3": (
        "olmo3",
        {
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256},
        },
    ),
    "cohere2": ("cohere2", {"sliding_window_pattern": 2, "rope_theta": 5e4, "use_gated_activation": True}),
    "exaone4": (
        "exaone4",
        {
            "sliding_window_pattern": "LLLG",
            "num_hidden_layers": 2,
            "rope_theta": 1e6,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "hunyuan": (
        "hunyuan_v1_dense",
        {
            "use_qk_norm": True,
            "rope_theta": 1e4,
            "head_dim": 128,
            "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "mscale": 1.0},
        },
    ),
    "llama 3": (
        "llama",
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            },
        },
    ),
    "qwen2": ("qwen2", {"rope_theta": 1e6, "use_mrope": False, "use_sliding_window": False}),
    "qwen3 moe": (
        "qwen3_moe",
        {"num_experts": 64, "max_window_layers": 48, "rope_theta": 1e6, "head_dim": 128},
    ),
    "phi 3.5 moe": (
        "phimoe",
        {
            "original_max_position_embeddings": 4096,
            "rope_theta": 1e4,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [2.0] * 64,
                "short_factor": [1.0] * 64,
                "long_mscale": 1.24,
                "short_mscale": 1.24,
                "original_max_position_embeddings": 4096,
            },
        },
    ),
    "gpt-oss": (
        "gpt_oss",
        {"experts_per_token": 4, "initial_context_length": 4096, "rope_theta": 150000}
        | {"rope_scaling": {**YARN, "rope_type": "yarn", "truncate": False}},
    ),
    "deepseek v2 lite": (
        "deepseek_v2",
        {"q_lora_rank": None, "scoring_func": "softmax", "topk_method": "greedy", "seq_aux": True}
        | {"num_experts_per_tok": 6, "moe_layer_freq": 1, "rope_theta": 10000, "ep_size": 1}
        | {"rope_scaling": {**YARN, "type": "yarn", "mscale": 0.707, "mscale_all_dim": 0.707}},
    ),
    "kimi k2": (
        "deepseek_v3",
        {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "n_group": 1}
        | {"topk_group": 1, "num_nextn_predict_layers": 0, "rope_theta": 5e4}
        | {"rope_scaling": {**YARN, "type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "glm 4.5": ("glm4_moe", {"head_dim": 128, "partial_rotary_factor": 0.5, "rope_theta": 1e6}),
    "glm 4.7 flash": (
        "glm4_moe_lite",
        {"first_k_dense_replace": 1, "topk_method": "noaux_tc", "num_nextn_predict_layers": 1}
        | {"partial_rotary_factor": 1.0, "rope_theta": 1e6},
    ),
    "deepseek v3.2": (
        "deepseek_v32",
        {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "rope_theta": 10000}
        | {"first_k_dense_replace": 3, "ep_size": 1, "n_group": 8, "topk_group": 4, "index_topk": 2048}
        | {"rope_scaling": {**YARN, "factor": 40, "type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "glm 5": ("glm_moe_dsa", {"head_dim": 64, "qk_head_dim": 256, "rope_theta": 1e6}),
    "glm 5.2": (
        "glm_moe_dsa",
        {"index_topk_freq": 4, "index_skip_topk_offset": 3, "index_topk_pattern": None}
        | {"rope_interleave": True, "indexer_rope_interleave": True, "max_position_embeddings": 1 << 20}
        | {"index_share_for_mtp_iteration": True, "rope_parameters": {"rope_theta": 8e6}, "head_dim": 192}
        | {"qk_head_dim": 256, "moe_router_dtype": "float32", "scoring_func": "sigmoid", "ep_size": 1},
    ),
    "glm 5, by a pattern": ("glm_moe_dsa", {"num_hidden_layers": 4, "index_topk_pattern": "FSFS"}),
    "qwen3 next": (
        "qwen3_next",
        {"full_attention_interval": 4, "partial_rotary_factor": 0.25, "rope_theta": 1e7, "rope_scaling": None}
        | {"decoder_sparse_step": 1, "mlp_only_layers": [], "max_position_embeddings": 262144},
    ),
    "qwen3.5": (
        "qwen3_5_text",
        {"full_attention_interval": 2, "mamba_ssm_dtype": "float32", "mlp_only_layers": []}
        | {"attn_output_gate": True, "partial_rotary_factor": 0.25, "mtp_num_hidden_layers": 1}
        | {"mtp_use_dedicated_embeddings": False}
        | {"rope_parameters": {**MROPE, "rope_type": "default", "rope_theta": 1e7}},
    ),
    "kimi linear": (
        "kimi_linear",
        {"num_hidden_layers": 4, "head_dim": 72, "first_k_dense_replace": 1, "mla_use_nope": True}
        | {"moe_layer_freq": 1, "moe_renormalize": True, "moe_router_activation_func": "sigmoid"}
        | {"num_expert_group": 1, "num_experts": 64, "num_experts_per_token": 4, "num_shared_experts": 1}
        | {"model_max_length": 65536, "use_grouped_topk": True, "num_nextn_predict_layers": 0}
        | {"linear_attn_config": {"full_attn_layers": [3], "kda_layers": [1, 2, 4], "num_heads": 4}}
        | {"rope_theta": 10000.0, "rope_scaling": None},
    ),
    "kimi linear, sizes alone": (
        "kimi_linear",
        {"linear_attn_config": {"head_dim": 16, "num_heads": 4, "short_conv_kernel_size": 3}},
    ),
    "lfm2": (
        "lfm2",
        {"block_ff_dim": 6656, "full_attn_idxs": [2, 5], "tie_embedding": True, "rope_theta": 1e6}
        | {"block_dim": 2560, "conv_dim": 2560, "conv_use_xavier_init": True, "use_pos_enc": True},
    ),
    "minimax": (
        "minimax_m2",
        {"rotary_dim": 64, "scoring_func": "sigmoid", "use_qk_norm": True, "use_routing_bias": True}
        | {"qk_norm_type": "per_layer", "shared_intermediate_size": 0, "num_mtp_modules": 3}
        | {"rope_theta": 5e6, "attn_type_list": [1] * 62, "sliding_window": None},
    ),
    "llama 4 scout": (
        "llama4_text",
        {"no_rope_layers": [], "rope_theta": 5e5, "for_llm_compressor": False}
        | {"rope_scaling": {"rope_type": "llama3", "factor": 16.0, **LIKE_SCOUT}}
        | {"max_position_embeddings": 1 << 20},
    ),
    "ernie 4.5": (
        "ernie4_5_moe",
        {"moe_layer_end_index": 27, "moe_capacity": [64] * 3, "moe_gate": "topk", "head_dim": 128}
        | {"moe_use_aux_free": True, "rope_theta": 5e5},
    ),
    "hunyuan a13b": (
        "hunyuan_v1_moe",
        {"moe_topk": [8] * 32, "num_experts": 64, "intermediate_size": 3072, "head_dim": 128}
        | {"moe_intermediate_size": [3072] * 32, "num_shared_expert": [1] * 32, "use_qk_norm": True}
        | {"norm_topk_prob": True, "routed_scaling_factor": False, "n_group": False, "use_cla": False}
        | {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
    ),
    "nemotron 3 nano": (
        "nemotron_h",
        {"hybrid_override_pattern": "MEMEM*EME", "num_hidden_layers": 9, "intermediate_size": 1856}
        | {"hidden_size": 2688, "mamba_num_heads": 64, "moe_intermediate_size": 1856, "norm_eps": 1e-5}
        | {"moe_shared_expert_intermediate_size": 3712, "n_routed_experts": 128, "num_experts_per_tok": 6}
        | {"num_key_value_heads": 2, "partial_rotary_factor": 1.0, "rope_theta": 10000}
        | {"routed_scaling_factor": 2.5, "sliding_window": None, "max_position_embeddings": 262144},
    ),
    "nemotron nano 9b": (
        "nemotron_h",
        {
            "hybrid_override_pattern": "M-M*-",
            "num_hidden_layers": 5,
            "hidden_size": 4480,
            "mamba_head_dim": 80,
        }
        | {"intermediate_size": 15680, "num_attention_heads": 40, "attention_head_dim": 128},
    ),
    "granite 4 h": (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2, "position_embedding_type": "nope"}
        | {"rope_theta": 10000, "rope_scaling": None, "normalization_function": "rmsnorm"}
        | {"init_method": "mup", "attention_multiplier": 0.0078125, "logits_scaling": 16},
    ),
    "falcon h1": (
        "falcon_h1",
        {"attn_layer_indices": None, "mamba_use_mlp": True, "mamba_norm_before_gate": False, "head_dim": 64}
        | {"rope_theta": 1e11, "rope_scaling": None, "mamba_d_ssm": 1536, "mamba_n_heads": 24}
        | {"key_multiplier": 0.390625, "embedding_multiplier": 5.65, "mlp_multipliers": [0.88, 0.58]},
    ),
    "bamba": (
        "bamba",
        {"attn_layer_indices": [9, 18, 27], "attn_rotary_emb": 64, "rope_theta": 10000.0},
    ),
    "dots": (
        "dots1",
        {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6, "head_dim": 128}
        | {"scoring_func": "noaux_tc", "topk_method": "noaux_tc", "sliding_window": None}
        | {"rope_theta": 1e7, "rope_scaling": None},
    ),
}
"""Keys as files of before transformers 5 have them, and keys that transformers ignores."""


@pytest.mark.parametrize("case", OLD)
def test_old_files_mean_what_transformers_makes_of_them(case: str) -> None:
    family, document = OLD[case]
    theirs = AutoConfig.for_model(family, **document).to_dict()
    whole = hf_config(json.loads(json.dumps(theirs, default=str)), {}, "config.json")
    ours = hf_config({"model_type": family, **document}, {}, "config.json")
    assert replace(whole, eos_token_ids=()) == ours
