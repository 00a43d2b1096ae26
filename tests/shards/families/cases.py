"""A small model of every family, its options on and off: settings for transformers' configuration class."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
"""What a case has if it does not say otherwise."""
MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 5}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
    "long_factor": [2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5],
}

CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 10, "tie_word_embeddings": True},
    "llama-llama3": {"rope_parameters": LLAMA3},
    "llama-yarn": {"rope_parameters": YARN},
    "mistral-window": {"sliding_window": 5, "head_dim": 24},
    "mistral": {"sliding_window": None},
    "ministral3": {
        "head_dim": 16,
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
    },
    "qwen2": {"tie_word_embeddings": True},
    "qwen2-window": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"head_dim": 20},
    "qwen3-window": {"head_dim": 16, "attention_bias": True, "use_sliding_window": True, **MIXED},
    "gemma": {"head_dim": 24, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5, "tie_word_embeddings": True},
    "gemma2-options": {
        "head_dim": 16,
        "attention_bias": True,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "query_pre_attn_scalar": 30,
        **MIXED,
    },
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 7, "sliding_window": 5},
    "gemma3_text-scaled": {
        "head_dim": 16,
        "query_pre_attn_scalar": 10,
        "final_logit_softcapping": 8.0,
        **MIXED,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        },
    },
    "gemma4_text": {
        "head_dim": 16,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 0,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
    "gemma4_text-shared": {
        "head_dim": 16,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 0,
        "sliding_window": 5,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "final_logit_softcapping": 9.0,
    },
    "phi3": {"tie_word_embeddings": True},
    "phi3-window": {
        "sliding_window": 5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
    },
    "phi3-long": {"rope_parameters": LONG, "original_max_position_embeddings": 32},
    "glm": {"head_dim": 16},
    "glm-plain": {"head_dim": 24, "attention_bias": False},
    "glm4": {"head_dim": 16},
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.5,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.05,
    },
    "granite-biases": {"attention_bias": True, "mlp_bias": True},
    "olmo2": {},
    "olmo2-biases": {"attention_bias": True},
    "olmo3": {"sliding_window": 5, "num_hidden_layers": 4},
    "olmo3-yarn": {
        **MIXED,
        "rope_parameters": {
            "full_attention": {**YARN, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
        },
    },
    "smollm3": {"num_hidden_layers": 4},
    "smollm3-window": {
        "no_rope_layers": [1, 0, 1],
        "use_sliding_window": True,
        "sliding_window": 5,
        "attention_bias": True,
    },
    "cohere": {"tie_word_embeddings": True},
    "cohere-norms": {"use_qk_norm": True, "attention_bias": True, "logit_scale": 0.5},
    "cohere2": {"num_hidden_layers": 4, "sliding_window": 5, "tie_word_embeddings": True},
    "starcoder2": {"sliding_window": 5},
    "starcoder2-plain": {"use_bias": False, "tie_word_embeddings": True},
    "exaone4": {"num_hidden_layers": 4, "sliding_window": 5},
    "exaone4-full": {"sliding_window": None, "layer_types": ["full_attention"] * 3},
    "ernie4_5": {"head_dim": 16, "tie_word_embeddings": True},
    "ernie4_5-biases": {"head_dim": 24, "use_bias": True},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_dense-alpha": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0},
        "attention_bias": True,
        "head_dim": 16,
    },
    "seed_oss": {"head_dim": 16},
    "seed_oss-biases": {"head_dim": 16, "attention_out_bias": True, "mlp_bias": True},
    "stablelm": {},
    "stablelm-parallel": {"use_parallel_residual": True, "use_qkv_bias": True},
    "nemotron": {},
    "nemotron-biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "arcee": {},
    "arcee-biases": {"attention_bias": True, "mlp_bias": True},
}
"""``model_type`` or ``model_type-what`` → settings beside SMALL."""
