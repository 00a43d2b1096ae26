"""A configuration of transformers, and ours, in the same words."""

from __future__ import annotations

from typing import Any

from swarm_node.shards.formats.blocks.rope import RopeConfig
from swarm_node.shards.formats.config import ModelConfig


def shape_of(theirs: Any) -> dict[str, Any]:
    """How large a model is, and what its layers have."""
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


def our_shape(config: ModelConfig) -> dict[str, Any]:
    """The same of a model whose blocks are all alike."""
    (block,) = set(config.blocks)
    assert block.mlp is not None
    assert block.norm is not None
    return {
        "n_blocks": config.n_blocks,
        "hidden_size": config.hidden_size,
        "n_heads": block.attention.heads,
        "n_kv_heads": block.attention.kv_heads,
        "head_dim": block.attention.head_dim,
        "intermediate_size": block.mlp.inner,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": block.norm.eps,
        "attention_bias": block.attention.bias,
        "mlp_bias": block.mlp.bias,
    }


def rope_of(config: ModelConfig) -> RopeConfig:
    """Of the first block."""
    rope = config.blocks[0].attention.rope
    assert rope is not None
    return rope
