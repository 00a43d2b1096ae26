"""A configuration of transformers in our words."""

from __future__ import annotations

from typing import Any


def shape_of(theirs: Any) -> dict[str, Any]:
    """The fields of ``ModelConfig`` that say how large a model is, and what its layers have."""
    return {
        "n_blocks": theirs.num_hidden_layers,
        "hidden_size": theirs.hidden_size,
        "n_heads": theirs.num_attention_heads,
        "n_kv_heads": theirs.num_key_value_heads,
        "head_dim": theirs.head_dim,
        "intermediate_size": theirs.intermediate_size,
        "vocab_size": theirs.vocab_size,
        "rms_norm_eps": theirs.rms_norm_eps,
        "attention_bias": getattr(theirs, "attention_bias", False),
        "mlp_bias": getattr(theirs, "mlp_bias", False),
    }
