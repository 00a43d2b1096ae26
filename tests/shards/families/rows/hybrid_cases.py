"""Small models of families whose blocks keep states: as ``cases.CASES``, which has them, too."""

from __future__ import annotations

from typing import Any

from .parts import EXPERTS, GRANITE, LATENT, LOCAL, ROUTED

MAMBA = {
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "mamba_chunk_size": 8,
}
MAMBA_OPTIONS = {
    **MAMBA,
    "mamba_d_head": 16,
    "mamba_d_conv": 2,
    "mamba_conv_bias": False,
    "mamba_proj_bias": True,
    "time_step_limit": [0.2, 1.5],
}
NEMOTRON = {
    "head_dim": 20,
    "mamba_num_heads": 8,
    "mamba_head_dim": 12,
    "n_groups": 2,
    "ssm_state_size": 10,
    "chunk_size": 8,
    "time_step_min": 1e-30,  # in chunks alone transformers makes no step smaller
}
HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
DELTA = {
    "head_dim": 16,
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "rms_norm_eps": 1e-3,
}
"""A norm divides what a recurrence gives, which may be near 0: a large eps keeps float32's errors small."""
OLMO_HYBRID = {"num_hidden_layers": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
"""transformers saves weights of convolutions in three equal parts; test_state_layouts has the hub's."""
KIMI = {
    **{key: value for key, value in LATENT.items() if key != "n_routed_experts"},
    "num_local_experts": 8,
    "q_lora_rank": None,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_head_dim": 8,
    "linear_num_heads": 4,
}

HYBRID_CASES: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {**MAMBA, **HYBRID, **LOCAL, **GRANITE, "shared_intermediate_size": 28},
    "granitemoehybrid-dense": {
        **MAMBA,
        **HYBRID,
        "mamba_d_conv": 2,
        "mamba_conv_bias": False,
        "num_local_experts": 0,
        "shared_intermediate_size": 28,
        "position_embedding_type": "rope",
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "granitemoehybrid-attention": {
        **MAMBA,
        "layer_types": ["attention"] * 3,
        **GRANITE,
        "num_local_experts": 0,
        "shared_intermediate_size": 28,
        "position_embedding_type": "rope",
    },
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "bamba-options": {
        **MAMBA_OPTIONS,
        "attn_layer_indices": [0, 2],
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 20,
        "tie_word_embeddings": True,
    },
    "falcon_h1": {
        **MAMBA,
        "mamba_d_ssm": 96,
        "head_dim": 20,
        "embedding_multiplier": 3.0,
        "lm_head_multiplier": 0.4,
        "mlp_multipliers": [0.7, 0.3],
        "key_multiplier": 0.6,
        "attention_in_multiplier": 1.3,
        "attention_out_multiplier": 0.8,
        "ssm_in_multiplier": 1.2,
        "ssm_out_multiplier": 0.5,
        "ssm_multipliers": [0.7, 1.4, 0.6, 0.9, 1.1],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e11},
    },
    "falcon_h1-norm": {**MAMBA, "mamba_d_ssm": None, "mamba_rms_norm": True, "mamba_norm_before_gate": False},
    "falcon_h1-options": {
        **MAMBA_OPTIONS,
        "mamba_d_ssm": 128,
        "mamba_rms_norm": True,
        "projectors_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "mlp_multipliers": [0.7, 0.3],
        "key_multiplier": 0.6,
        "ssm_multipliers": [0.7, 1.4, 0.6, 0.9, 1.1],
        "tie_word_embeddings": True,
    },
    "nemotron_h": {**NEMOTRON, "layers_block_type": ["linear_attention", "mlp", "full_attention"]},
    "nemotron_h-experts": {
        **NEMOTRON,
        **ROUTED,
        "layers_block_type": ["mamba", "moe", "attention", "moe", "mamba"],
        "moe_latent_size": 24,
        "moe_shared_expert_intermediate_size": 20,
        "routed_scaling_factor": 2.5,
    },
    "nemotron_h-options": {
        **NEMOTRON,
        **ROUTED,
        "layers_block_type": ["moe", "linear_attention", "full_attention", "mlp"],
        "use_bias": True,
        "use_conv_bias": False,
        "mlp_bias": True,
        "moe_shared_expert_intermediate_size": 20,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": False,
        "tie_word_embeddings": True,
    },
    "qwen3_next": {**EXPERTS, **DELTA},
    "qwen3_next-some": {
        **EXPERTS,
        **DELTA,
        "linear_num_key_heads": 4,
        "mlp_only_layers": [1],
        "norm_topk_prob": False,
        "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
    },
    "qwen3_5_text": DELTA,
    "qwen3_5_text-whole": {
        **DELTA,
        "linear_num_key_heads": 4,
        "linear_conv_kernel_dim": 2,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
    "qwen3_5_moe_text": {**EXPERTS, **DELTA, "shared_expert_intermediate_size": 20},
    "olmo_hybrid": {**OLMO_HYBRID, "rope_parameters": {"rope_type": "default", "rope_theta": None}},
    "olmo_hybrid-rope": {
        **OLMO_HYBRID,
        "num_hidden_layers": 5,
        "linear_allow_neg_eigval": False,
        "attention_bias": True,
    },
    "kimi_linear": KIMI,
    "kimi_linear-groups": {
        **KIMI,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": False,
        "q_lora_rank": 12,
        "linear_attn_config": {
            "full_attn_layers": [1, 3],
            "kda_layers": [2],
            "num_heads": 2,
            "head_dim": 6,
            "short_conv_kernel_size": 3,
        },
    },
    "lfm2": {"num_hidden_layers": 4, "full_attn_idxs": [2], "tie_word_embeddings": True},
    "lfm2-biases": {
        "layer_types": ["conv", "full_attention", "conv"],
        "conv_bias": True,
        "block_ffn_dim_multiplier": 1.3,
        "block_multiple_of": 8,
        "conv_L_cache": 4,
    },
    "lfm2_moe": {
        **EXPERTS,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_dense_layers": 1,
        "routed_scaling_factor": 1.5,
        "tie_word_embeddings": True,
    },
    "lfm2_moe-plain": {
        **EXPERTS,
        "layer_types": ["full_attention", "conv", "conv"],
        "num_dense_layers": 0,
        "use_expert_bias": False,
        "norm_topk_prob": False,
    },
    "lfm3": {"head_dim": 16, "num_hidden_layers": 6, "sliding_window": 5},
    "lfm3-plain": {
        "head_dim": 16,
        "num_hidden_layers": 5,
        "sliding_window": 5,
        "conv_bias": True,
        "use_sandwich_norm": False,
        "use_attention_gate": False,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
}
