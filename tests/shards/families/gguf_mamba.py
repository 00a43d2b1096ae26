"""Blocks that keep a state in a GGUF file, as llama.cpp's converter writes them."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np

HYBRID = {"granitemoehybrid", "falcon_h1", "nemotron_h"}
"""Families with Mamba-2."""
_OF_EXPERTS = ("n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size")
_OF_EXPERTS += ("num_local_experts", "routed_scaling_factor", "n_group", "topk_group")
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
    if config.model_type == "nemotron_h":
        return "num_key_value_heads", "intermediate_size", *_add_nemotron(writer, config)
    writer.add_bool(f"{arch}.rope.scaling.finetuned", has_rope(config))
    dense = not config.num_local_experts
    writer.add_feed_forward_length(config.shared_intermediate_size if dense else config.intermediate_size)
    return "num_key_value_heads", "intermediate_size"


def _add_nemotron(writer: gguf.GGUFWriter, config: Any) -> tuple[str, ...]:
    kinds = config.layers_block_type
    sparse = "moe" in kinds
    inner = config.moe_intermediate_size if sparse else config.intermediate_size
    writer.add_feed_forward_length([inner * (kind in ("mlp", "moe")) for kind in kinds])
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    if not sparse:
        return _OF_EXPERTS
    if config.moe_latent_size:
        writer.add_moe_latent_size(config.moe_latent_size)
    writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
    return ()


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


_NEMOTRON = {
    **{f"{part}_proj.weight": f"attn_{part}.weight" for part in "qkv"},
    "o_proj.weight": "attn_output.weight",
    "gate.weight": "ffn_gate_inp.weight",
    "gate.e_score_correction_bias": "exp_probs_b.bias",
    "fc1_latent_proj.weight": "ffn_latent_down.weight",
    "fc2_latent_proj.weight": "ffn_latent_up.weight",
    **{
        f"{theirs}{part}_proj{end}": f"ffn_{part}{own}.weight"
        for theirs, own, end in (("", "", ".weight"), ("experts.", "_exps", ""))
        + (("shared_experts.", "_shexp", ".weight"),)
        for part in ("up", "down")
    },
}


def nemotron_parts(name: str, value: np.ndarray, config: Any) -> list[tuple[str, np.ndarray]]:
    """Nemotron-H's tensors, of which the gguf package knows those of before transformers 5."""
    if ".layers." not in name:
        whole = {"model.embeddings": "token_embd", "model.norm_f": "output_norm", "lm_head": "output"}
        return [(f"{whole[name.removesuffix('.weight')]}.weight", value)]
    block, part = f"blk.{name.split('.')[2]}", name.split(".", 3)[3]
    if part == "norm.weight":
        return [(f"{block}.attn_norm.weight", value)]
    part = part.removeprefix("mixer.")
    if part in _NEMOTRON:
        return [(f"{block}.{_NEMOTRON[part]}", value)]
    return mamba_parts(block, part, value, config)
