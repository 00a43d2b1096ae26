"""Blocks that keep a state as most families name them: what rows are put together from."""

from __future__ import annotations

from typing import Any

from ...swarm.errors import UnsupportedModelError
from ..formats.blocks.norm import NormConfig
from ..formats.blocks.state import MAX_TAPS, RecurrenceConfig, ShortConvConfig
from ..formats.values.bounds import MAX_WIDTH
from .names import Names, Stored, either, fused
from .pieces import activation_of
from .settings import FULL, Settings

CONV = "conv"
_QKV = ("state.q_proj", "state.k_proj", "state.v_proj")
_CONVS = ("state.q_conv", "state.k_conv", "state.v_conv")

DELTA_LEARNED: Names = {
    **fused("linear_attn.conv1d", *_CONVS),
    "state.a_log": "linear_attn.A_log",
    "state.decay_bias": "linear_attn.dt_bias",
    "state.norm": "linear_attn.norm",
    "state.out_proj": "linear_attn.out_proj",
}
DELTA: Names = {
    **DELTA_LEARNED,
    **fused("linear_attn.in_proj_qkv", *_QKV),
    "state.gate_proj": "linear_attn.in_proj_z",
    "state.beta_proj": "linear_attn.in_proj_b",
    "state.decay_proj": "linear_attn.in_proj_a",
}
DELTA_BY_KEYS: Names = {
    **DELTA_LEARNED,
    **fused("linear_attn.in_proj_qkvz", *_QKV, "state.gate_proj", groups="keys"),
    **fused("linear_attn.in_proj_ba", "state.beta_proj", "state.decay_proj", groups="keys"),
}
"""Qwen3-Next's: what belongs to a key head is together."""
GGUF_A_LOG = Stored("ssm_a", log=True)
_GGUF_LEARNED: Names = {
    **fused("ssm_conv1d", *_CONVS),
    "state.a_log": GGUF_A_LOG,
    "state.decay_bias": "ssm_dt.bias",
    "state.norm": "ssm_norm",
    "state.out_proj": "ssm_out",
}
GGUF_DELTA: Names = {
    **_GGUF_LEARNED,
    **fused("attn_qkv", *_QKV),
    "state.gate_proj": "attn_gate",
    "state.beta_proj": "ssm_beta",
    "state.decay_proj": "ssm_alpha",
}
GGUF_DELTA_BY_KEYS: Names = {
    **GGUF_DELTA,
    **either(
        {**fused("attn_qkv", *_QKV), "state.gate_proj": "attn_gate"},
        fused("ssm_in", *_QKV, "state.gate_proj", groups="keys"),
    ),
    **fused("ssm_ba", "state.beta_proj", "state.decay_proj", groups="keys"),
}
"""Older files have q, k, v and z in one tensor."""
KDA: Names = {
    "state.q_proj": "self_attn.q_proj",
    "state.k_proj": "self_attn.k_proj",
    "state.v_proj": "self_attn.v_proj",
    **either(
        {f"state.{name}_conv": f"self_attn.{name}_conv1d" for name in "qkv"},
        fused("self_attn.conv1d", *_CONVS),
    ),
    **either(
        {
            "state.decay_a_proj": "self_attn.f_a_proj",
            "state.decay_b_proj": "self_attn.f_b_proj",
            "state.a_log": "self_attn.A_log",
            "state.decay_bias": "self_attn.dt_bias",
        },
        {
            "state.decay_a_proj": "self_attn.forget_gate.f_a_proj",
            "state.decay_b_proj": "self_attn.forget_gate.f_b_proj",
            "state.a_log": "self_attn.forget_gate.A_log",
            "state.decay_bias": "self_attn.forget_gate.dt_bias",
        },
    ),
    "state.beta_proj": "self_attn.b_proj",
    "state.gate_a_proj": "self_attn.g_a_proj",
    "state.gate_b_proj": "self_attn.g_b_proj",
    "state.norm": "self_attn.o_norm",
    "state.out_proj": "self_attn.o_proj",
}
GGUF_KDA: Names = {
    "state.q_proj": "attn_q",
    "state.k_proj": "attn_k",
    "state.v_proj": "attn_v",
    **{f"state.{name}_conv": f"ssm_conv1d_{name}" for name in "qkv"},
    "state.decay_a_proj": "ssm_f_a",
    "state.decay_b_proj": "ssm_f_b",
    "state.a_log": GGUF_A_LOG,
    "state.decay_bias": "ssm_dt.bias",
    "state.beta_proj": "ssm_beta",
    "state.gate_a_proj": "ssm_g_a",
    "state.gate_b_proj": "ssm_g_b",
    "state.norm": "ssm_norm",
    "state.out_proj": "attn_output",
}
SHORT_CONV: Names = {
    **fused("conv.in_proj", "state.b_proj", "state.c_proj", "state.v_proj"),
    "state.conv": "conv.conv",
    "state.out_proj": "conv.out_proj",
}
GGUF_SHORT_CONV: Names = {
    **fused("shortconv.in_proj", "state.b_proj", "state.c_proj", "state.v_proj"),
    "state.conv": "shortconv.conv",
    "state.out_proj": "shortconv.out_proj",
}
GGUF_DELTA_KEYS = {
    "full_attention_interval": "full_attention_interval",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "ssm.inner_size": "linear_inner_size",
}


def delta(
    settings: Settings, sizes: tuple[int, int, int, int], norm: NormConfig, **more: Any
) -> RecurrenceConfig:
    """Gated DeltaNet, or KDA. ``sizes``: as of ``delta_sizes``. ``norm``: of its output, head by head.
    ``more``: fields that the family has otherwise."""
    check_silu(settings)
    taps = settings.integer("linear_conv_kernel_dim", least=1, most=MAX_TAPS)
    return RecurrenceConfig(*sizes, taps, "delta", norm, sizes[0], norm_shared=True, **more)


def delta_sizes(settings: Settings) -> tuple[int, int, int, int]:
    """Heads of values and of keys, and the values of one of each: key first."""

    def size(key: str) -> int:
        return settings.integer(key, least=1, most=MAX_WIDTH)

    heads, key_heads = size("linear_num_value_heads"), size("linear_num_key_heads")
    if not settings.is_gguf:
        return heads, key_heads, size("linear_key_head_dim"), size("linear_value_head_dim")
    inner = size("linear_inner_size")
    if inner % heads:
        raise settings.wrong("linear_inner_size", f"a multiple of {heads} heads")
    return heads, key_heads, size("linear_key_head_dim"), inner // heads


def check_silu(settings: Settings, key: str = "hidden_act") -> None:
    """UnsupportedModelError where the activation that ``key`` says, which a recurrence has behind its
    convolution, is another than silu."""
    if activation_of(settings, key) != "silu":
        raise UnsupportedModelError(
            f"{settings.named(key)} is {settings.shown(key)}: a recurrence with another activation than silu "
            "is not supported"
        )


def short_conv(settings: Settings) -> ShortConvConfig:
    taps = settings.integer("conv_L_cache", least=1, most=MAX_TAPS)
    return ShortConvConfig(settings.hidden, taps, settings.flag("conv_bias"))


def kind_by_heads(settings: Settings, other: str) -> str:
    """Of a GGUF file that has no key/value heads in blocks of the kind ``other``."""
    return FULL if settings.integer("num_key_value_heads", most=MAX_WIDTH) else other
