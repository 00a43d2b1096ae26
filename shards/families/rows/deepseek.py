"""DeepSeek, and families with its router (GLM-4.5, dots), or its attention too (Kimi K2, GLM-4.7-Flash)."""

from __future__ import annotations

from typing import Any

from ...formats.blocks.attention import HeadNorm
from ...formats.blocks.block import BlockConfig
from ...formats.blocks.experts import MAX_EXPERTS, ExpertsConfig, RouterConfig
from ..experts import (
    EXPERTS,
    GGUF_LATENT,
    LATENT,
    corrected_router,
    experts,
    latent,
    shared,
    sparse_or_dense,
)
from ..family import Family, GGUFFamily
from ..pieces import attention, rms, rms_client, scalar, usual
from ..rope import rope
from ..settings import FULL, SLIDING, Settings
from .llama import VISION

_V3: dict[str, Any] = {"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "router_correction": True}
_V3_FIXED = {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "moe_layer_freq": (1,)}
_COUNT = {"expert_count": "n_routed_experts"}


def _is_first(s: Settings) -> bool:
    """The first blocks have no experts."""
    return s.block < (s.optional_integer("first_k_dense_replace") or 0)


def _experts(s: Settings, *, dense: bool) -> ExpertsConfig | None:
    """``dense``: the block has none; nor has any block of some models."""
    if not s.optional_integer("n_routed_experts", most=MAX_EXPERTS) or dense:
        return None
    return experts(s, corrected_router(s), count="n_routed_experts", shared=shared(s))


def _v2_router(s: Settings) -> RouterConfig:
    grouped = s.text("topk_method") == "group_limited_greedy"
    if not grouped and s.text("topk_method") != "greedy":
        raise s.wrong("topk_method", "greedy or group_limited_greedy")
    groups, used = s.optional_integer("n_group", least=1), s.optional_integer("topk_group", least=1)
    return RouterConfig(
        groups=groups or 1 if grouped else 1,
        used_groups=used or 1 if grouped else 1,
        renormalise=False,
        scaling=scalar(s, "routed_scaling_factor"),
    )


def _v2_block(s: Settings) -> BlockConfig:
    bias = s.flag("mlp_bias")
    some = experts(s, _v2_router(s), count="n_routed_experts", shared=shared(s, bias=bias))
    return sparse_or_dense(s, latent(s), None if _is_first(s) else some, bias=bias)


DEEPSEEK_V2 = Family(
    types=("deepseek_v2",),
    architectures=("DeepseekV2ForCausalLM",),
    defaults=usual(
        *(102400, 4096, 11008, 32, 32, None, 2048),
        bos_token_id=1,
        attention_bias=False,
        mlp_bias=False,
        first_k_dense_replace=0,
        kv_lora_rank=512,
        q_lora_rank=1536,
        n_routed_experts=64,
        n_shared_experts=2,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        routed_scaling_factor=1.0,
        topk_method="greedy",
        moe_intermediate_size=1407,
    ),
    block=_v2_block,
    client=rms_client,
    tensors={**EXPERTS, **LATENT},
    aliases={"num_experts": "n_routed_experts"},
    fixed={"scoring_func": ("softmax",), "norm_topk_prob": (False, None), "moe_layer_freq": (1,)},
)


DEEPSEEK_V3 = Family(
    types=("deepseek_v3", "kimi_k2"),
    architectures=("DeepseekV3ForCausalLM",),
    defaults=usual(
        *(129280, 7168, 18432, 61, 128, 128, 4096),
        bos_token_id=0,
        attention_bias=False,
        first_k_dense_replace=3,
        kv_lora_rank=512,
        q_lora_rank=1536,
        n_routed_experts=256,
        n_shared_experts=1,
        num_experts_per_tok=8,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        routed_scaling_factor=2.5,
        moe_intermediate_size=2048,
        rope_interleave=True,
        num_nextn_predict_layers=1,
        **{**_V3, "n_group": 8, "topk_group": 4},
    ),
    block=lambda s: sparse_or_dense(
        s, latent(s, interleaved=s.flag("rope_interleave")), _experts(s, dense=_is_first(s))
    ),
    client=rms_client,
    tensors={**EXPERTS, **LATENT},
    aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    fixed=_V3_FIXED,
    ignored=rf"{VISION}|(model\.)?mm_projector\..*",
    wrappers=("kimi_k25", "kimi_vl"),
    gguf=GGUFFamily(  # of DeepSeek V2 and GLM-4.7-Flash, too
        "deepseek2",
        neighbours=True,
        mscale=10.0,
        settings={"scoring_func": "softmax"},
        keys={
            **_COUNT,
            "rope.dimension_count": "qk_rope_head_dim",
            "attention.value_length": "value_length",
        },
        tensors=GGUF_LATENT,
    ),
)


def _glm4_moe_block(s: Settings) -> BlockConfig:
    return sparse_or_dense(
        s,
        attention(
            s,
            rope=rope(s, partial=True),
            qk_norm=HeadNorm(rms(s)) if s.flag("use_qk_norm") else None,
            bias=s.flag("attention_bias"),
        ),
        _experts(s, dense=_is_first(s)),
    )


GLM4_MOE = Family(
    types=("glm4_moe",),
    architectures=("Glm4MoeForCausalLM",),
    defaults=usual(
        *(151552, 4096, 10944, 46, 96, 8, 131072),
        rms_norm_eps=1e-5,
        attention_bias=False,
        moe_intermediate_size=1408,
        num_experts_per_tok=8,
        n_shared_experts=1,
        n_routed_experts=128,
        routed_scaling_factor=1.0,
        first_k_dense_replace=1,
        use_qk_norm=False,
        partial_rotary_factor=0.5,
        num_nextn_predict_layers=1,
        **_V3,
    ),
    block=_glm4_moe_block,
    client=rms_client,
    tensors=EXPERTS,
    aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    fixed=_V3_FIXED,
    gguf=GGUFFamily(
        "glm4moe",
        settings={"scoring_func": "sigmoid"},
        keys=_COUNT,
        tensors={"post_attention_layernorm": "post_attention_norm"},
    ),
)


def _glm4_moe_lite_block(s: Settings) -> BlockConfig:
    kinds = s.texts("mlp_layer_types") or ("dense", *["sparse"] * (s.n_blocks - 1))
    if len(kinds) != s.n_blocks or not {*kinds} <= {"dense", "sparse"}:
        raise s.wrong("mlp_layer_types", f"dense or sparse for each of {s.n_blocks} blocks")
    return sparse_or_dense(
        s,
        latent(s, interleaved=s.flag("rope_interleave")),
        _experts(s, dense=kinds[s.block] == "dense"),
    )


GLM4_MOE_LITE = Family(
    types=("glm4_moe_lite",),
    architectures=("Glm4MoeLiteForCausalLM",),
    defaults=usual(
        *(154880, 2048, 10240, 47, 20, 20, 202752),
        rms_norm_eps=1e-5,
        bos_token_id=0,
        attention_bias=False,
        kv_lora_rank=512,
        q_lora_rank=768,
        n_routed_experts=64,
        n_shared_experts=1,
        num_experts_per_tok=4,
        qk_nope_head_dim=192,
        qk_rope_head_dim=64,
        v_head_dim=256,
        routed_scaling_factor=1.8,
        moe_intermediate_size=1536,
        rope_interleave=True,
        num_nextn_predict_layers=0,
        **_V3,
    ),
    block=_glm4_moe_lite_block,
    client=rms_client,
    tensors={**EXPERTS, **LATENT},
    aliases={"num_local_experts": "n_routed_experts"},
    fixed={**_V3_FIXED, "first_k_dense_replace": (1,)},
)


def _dots1_block(s: Settings) -> BlockConfig:
    window, bias = s.window(), s.flag("attention_bias")
    later = window > 0 and s.block >= s.integer("max_window_layers")
    slides = s.layer_type(SLIDING if later else FULL) == SLIDING
    return sparse_or_dense(
        s,
        attention(s, window=window if slides else 0, qk_norm=HeadNorm(rms(s)), bias=bias, out_bias=bias),
        _experts(s, dense=_is_first(s)),
    )


DOTS1 = Family(
    types=("dots1",),
    architectures=("Dots1ForCausalLM",),
    defaults=usual(
        *(152064, 4608, 10944, 62, 32, 32, 2048),
        attention_bias=False,
        moe_intermediate_size=1408,
        routed_scaling_factor=1.0,
        first_k_dense_replace=0,
        sliding_window=4096,
        max_window_layers=62,
        **{**_V3, "norm_topk_prob": False},
    ),
    block=_dots1_block,
    client=rms_client,
    tensors=EXPERTS,
    aliases={"num_local_experts": "n_routed_experts"},
    fixed={**_V3_FIXED, "scoring_func": ("sigmoid", "noaux_tc")},
    gguf=GGUFFamily("dots1", settings={"scoring_func": "sigmoid"}, keys=_COUNT),
)

ROWS = (DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE, GLM4_MOE_LITE, DOTS1)
