"""What llama.cpp's converter does with tensors and settings of blocks that keep a state."""

from __future__ import annotations

from typing import Any

import numpy as np

DELTA = {"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"}
TILED = DELTA - {"qwen3_next"}
"""Families whose value heads lie in files in turn over their key heads."""
SHORT = {"lfm2", "lfm2_moe"}
STATES = {*DELTA, *SHORT, "kimi_linear"}
_DELTA_NAMES = {
    "in_proj_ba.weight": "ssm_ba.weight",
    "in_proj_z.weight": "attn_gate.weight",
    "in_proj_a.weight": "ssm_alpha.weight",
    "in_proj_b.weight": "ssm_beta.weight",
    "conv1d.weight": "ssm_conv1d.weight",
    "A_log": "ssm_a",
    "dt_bias": "ssm_dt.bias",
    "norm.weight": "ssm_norm.weight",
    "out_proj.weight": "ssm_out.weight",
}
_KDA_NAMES = {
    **{f"{name}_proj.weight": f"attn_{name}.weight" for name in "qkv"},
    "o_proj.weight": "attn_output.weight",
    "forget_gate.f_a_proj.weight": "ssm_f_a.weight",
    "forget_gate.f_b_proj.weight": "ssm_f_b.weight",
    "forget_gate.dt_bias": "ssm_dt.bias",
    "forget_gate.A_log": "ssm_a",
    "b_proj.weight": "ssm_beta.weight",
    "g_a_proj.weight": "ssm_g_a.weight",
    "g_b_proj.weight": "ssm_g_b.weight",
    "o_norm.weight": "ssm_norm.weight",
}


def state_parts(family: str, part: str, value: np.ndarray, config: Any) -> list[tuple[str, np.ndarray]]:
    """``part``: a tensor's name in its block → names and values there, in llama.cpp's names."""
    kind, _, name = part.partition(".")
    if family in DELTA and kind == "linear_attn":
        return _delta(family, name, value, config)
    if family == "kimi_linear" and name == "conv1d.weight":
        parts = np.split(value, 3)
        return [
            (f"ssm_conv1d_{each}.weight", np.moveaxis(taps, 1, 0)[None].swapaxes(1, 2))
            for each, taps in zip("qkv", parts, strict=True)
        ]
    if family == "kimi_linear" and kind == "self_attn" and name in _KDA_NAMES:
        return [(_KDA_NAMES[name], -np.exp(value) if name.endswith("A_log") else value)]
    if family in SHORT and kind == "conv":
        return [(f"shortconv.{name}", value.reshape(len(value), -1) if value.ndim == 3 else value)]
    return [("exp_probs_b.bias", value)] if part == "feed_forward.expert_bias" else []


def _delta(family: str, name: str, value: np.ndarray, config: Any) -> list[tuple[str, np.ndarray]]:
    keys, heads = config.linear_num_key_heads, config.linear_num_value_heads
    key_dim, dim = config.linear_key_head_dim, config.linear_value_head_dim
    if name == "in_proj_qkvz.weight":
        own = heads // keys * dim
        groups = value.reshape(keys, -1, value.shape[1])
        q, k, v, z = (
            part.reshape(-1, value.shape[1])
            for part in np.split(groups, np.cumsum([key_dim, key_dim, own]), 1)
        )
        return [("attn_qkv.weight", np.concatenate((q, k, v))), ("attn_gate.weight", z)]

    def tiled(rows: np.ndarray, each: int) -> np.ndarray:
        if family not in TILED:
            return rows
        return rows.reshape(keys, heads // keys, each, -1).swapaxes(0, 1).reshape(rows.shape)

    if name in ("in_proj_qkv.weight", "conv1d.weight"):
        value = value.reshape(len(value), -1)
        mixed, v = np.split(value, [2 * keys * key_dim])
        value = np.concatenate((mixed, tiled(v, dim)))
        return [("ssm_conv1d.weight" if name == "conv1d.weight" else "attn_qkv.weight", value)]
    if name == "out_proj.weight":
        value = tiled(value.T, dim).T
    elif name == "in_proj_z.weight":
        value = tiled(value, dim)
    elif name in ("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias"):
        value = tiled(value, 1)
    return [(_DELTA_NAMES[name], -np.exp(value) if name == "A_log" else value)]


def state_settings(config: Any) -> dict[str, Any]:
    """Keys of the architecture, without its name."""
    family = config.model_type
    if family in DELTA:
        more = {} if family == "qwen3_next" else {"rope.dimension_sections": [11, 11, 10, 0]}
        return {
            "ssm.conv_kernel": config.linear_conv_kernel_dim,
            "ssm.state_size": config.linear_key_head_dim,
            "ssm.group_count": config.linear_num_key_heads,
            "ssm.time_step_rank": config.linear_num_value_heads,
            "ssm.inner_size": config.linear_value_head_dim * config.linear_num_value_heads,
            "full_attention_interval": 4,
            **more,
        }
    if family not in STATES:
        return {}
    is_full = [kind == "full_attention" for kind in config.layer_types]
    if family == "kimi_linear":
        return {
            "attention.head_count_kv": [int(full) for full in is_full],
            "ssm.conv_kernel": config.linear_conv_kernel_dim,
            "kda.head_dim": config.linear_head_dim,
            "leading_dense_block_count": config.mlp_layer_types.index("sparse"),
            "rope.dimension_count": config.qk_rope_head_dim,
        }
    found = {
        "attention.head_count_kv": [config.num_key_value_heads * full for full in is_full],
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "shortconv.l_cache": config.conv_L_cache,
    }
    if family == "lfm2_moe":
        return {**found, "leading_dense_block_count": config.num_dense_layers, "expert_gating_func": 2}
    inner = config.intermediate_size
    if config.block_auto_adjust_ff_dim:
        inner, multiple = int(config.block_ffn_dim_multiplier * (2 * inner // 3)), config.block_multiple_of
        inner = (inner + multiple - 1) // multiple * multiple
    return {**found, "feed_forward_length": inner}
