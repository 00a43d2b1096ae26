"""Blocks that keep a state in a GGUF file, as llama.cpp's converter writes them."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np

HYBRID = {"granitemoehybrid", "falcon_h1", "nemotron_h"}
"""Families with Mamba-2."""
_SIZES = {
    "taps": ("mamba_d_conv", "conv_kernel"),
    "state": ("mamba_d_state", "ssm_state_size"),
    "heads": ("mamba_n_heads", "mamba_num_heads"),
    "head_dim": ("mamba_d_head", "mamba_head_dim"),
    "groups": ("mamba_n_groups", "n_groups"),
}


def sizes(config: Any) -> dict[str, int]:
    """Of Mamba-2, by the names that the families have for them."""
    return {
        size: next(getattr(config, name) for name in names if hasattr(config, name))
        for size, names in _SIZES.items()
    }


def has_rope(config: Any) -> bool:
    return config.model_type == "falcon_h1" or getattr(config, "position_embedding_type", None) == "rope"


def add_mamba(writer: gguf.GGUFWriter, arch: str, config: Any) -> tuple[str, ...]:
    """Mamba-2's settings; gives the keys that these say, or the weights."""
    size = sizes(config)
    writer.add_ssm_conv_kernel(size["taps"])
    writer.add_ssm_inner_size(size["heads"] * size["head_dim"])
    writer.add_ssm_state_size(size["state"])
    writer.add_ssm_time_step_rank(size["heads"])
    writer.add_ssm_group_count(size["groups"])
    if config.model_type == "falcon_h1":
        return ("embedding_multiplier",)
    kinds = config.layers_block_type
    writer.add_head_count_kv([config.num_key_value_heads * (kind == "full_attention") for kind in kinds])
    if config.model_type == "granitemoehybrid":
        writer.add_bool(f"{arch}.rope.scaling.finetuned", has_rope(config))
        dense = not config.num_local_experts
        writer.add_feed_forward_length(config.shared_intermediate_size if dense else config.intermediate_size)
    return "num_key_value_heads", "intermediate_size"


def mamba_parts(block: str, part: str, value: np.ndarray, config: Any) -> list[tuple[str, np.ndarray]]:
    """Of the tensor ``part`` of a mixer: none if it is not Mamba-2's."""
    if part == "A_log":
        return [(f"{block}.ssm_a", -np.exp(value)[:, None])]
    if part == "D":
        return [(f"{block}.ssm_d", value[:, None])]
    if part == "norm.weight":
        return [(f"{block}.ssm_norm.weight", value.reshape(sizes(config)["groups"], -1))]
    if part == "conv1d.weight":
        return [(f"{block}.ssm_conv1d.weight", value[:, 0])]
    others = {"dt_bias": "dt.bias", "conv1d.bias": "conv1d.bias"}
    others |= {"in_proj.weight": "in.weight", "out_proj.weight": "out.weight"}
    return [(f"{block}.ssm_{others[part]}", value)] if part in others else []


def falcon_scaled(name: str, value: np.ndarray, config: Any) -> np.ndarray:
    """``value`` times what Falcon-H1 multiplies by, which its files have in their weights."""
    of_attention, kind = config.attention_in_multiplier, name.removesuffix(".weight").split(".")[-1]
    if kind == "in_proj":
        inner, state = config.mamba_d_ssm or 2 * config.hidden_size, sizes(config)["state"]
        groups = sizes(config)["groups"] * state
        counts = (inner, inner, groups, groups, config.mamba_n_heads)
        factors = np.repeat(config.ssm_multipliers, counts) * config.ssm_in_multiplier
        return (value * factors[:, None]).astype(np.float32)
    return value * {
        "gate_proj": config.mlp_multipliers[0],
        "down_proj": config.mlp_multipliers[1],
        "q_proj": of_attention,
        "k_proj": of_attention * config.key_multiplier,
        "v_proj": of_attention,
        "o_proj": config.attention_out_multiplier,
        "out_proj": config.ssm_out_multiplier,
        "lm_head": config.lm_head_multiplier,
        "embed_tokens": config.embedding_multiplier,
    }.get(kind, 1.0)
