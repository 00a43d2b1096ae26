"""Settings that cases of several families have."""

from __future__ import annotations

EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
LOCAL = {"num_local_experts": 5, "num_experts_per_tok": 3}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "n_shared_experts": 1}
LATENT = {
    **ROUTED,
    "n_shared_experts": 2,
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
}
GRANITE = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.5,
    "residual_multiplier": 0.3,
    "attention_multiplier": 0.05,
}
