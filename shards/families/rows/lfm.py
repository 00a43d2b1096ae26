"""LFM: gated short convolutions in the place of most attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...formats.blocks.attention import AttentionConfig, HeadNorm
from ...formats.blocks.block import BlockConfig
from ...formats.blocks.experts import ExpertsConfig, RouterConfig
from ...formats.blocks.mlp import MlpConfig
from ...formats.blocks.norm import NormConfig
from ...formats.values.bounds import MAX_WIDTH, SCALES
from ..experts import each_expert, experts
from ..family import Family, GGUFFamily
from ..names import Names, either, mlp_named, stack
from ..pieces import attention, eps, scalar, usual
from ..recurrences import CONV, GGUF_SHORT_CONV, SHORT_CONV, kind_by_heads, short_conv
from ..rope import rope
from ..settings import FULL, SLIDING, Settings
from .llama import VISION

_LFM2: dict[str, Any] = {
    "rope_theta": 1e6,
    "bos_token_id": 1,
    "norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "conv_bias": False,
    "conv_L_cache": 3,
}
_NAMES: Names = {
    **SHORT_CONV,
    "model.norm": "model.embedding_norm",
    "input_layernorm": "operator_norm",
    "post_attention_layernorm": "ffn_norm",
    **mlp_named("mlp", "feed_forward", "w1", "w3", "w2"),
}
_ATTENTION: Names = {
    "self_attn.q_norm": "self_attn.q_layernorm",
    "self_attn.k_norm": "self_attn.k_layernorm",
    "self_attn.o_proj": "self_attn.out_proj",
}
_GGUF_KEYS = {"attention.layer_norm_rms_epsilon": "norm_eps", "shortconv.l_cache": "conv_L_cache"}
_GGUF_NAMES: Names = {**GGUF_SHORT_CONV, "model.norm": ("token_embd_norm", "output_norm")}


def _norm(s: Settings) -> NormConfig:
    return NormConfig(eps(s, "norm_eps"))


def _client(s: Settings) -> dict[str, Any]:
    return {"final_norm": _norm(s)}


def _mlp(s: Settings, inner: str = "intermediate_size") -> MlpConfig:
    return MlpConfig(s.integer(inner, least=1, most=MAX_WIDTH), "silu")


def _block(
    s: Settings, mlp: MlpConfig | None, some: ExpertsConfig | None = None, *, otherwise: str = FULL
) -> BlockConfig:
    """``otherwise``: what kind of block it is where the file has no list."""
    kind = kind_by_heads(s, CONV) if s.is_gguf else s.layer_type(otherwise, (FULL, CONV))
    norm, conv = _norm(s), short_conv(s)
    if kind == CONV:
        return BlockConfig(None, mlp, some, norm=norm, mlp_norm=norm, state=conv)
    return BlockConfig(attention(s, qk_norm=HeadNorm(norm)), mlp, some, norm=norm, mlp_norm=norm)


def _lfm2_block(s: Settings) -> BlockConfig:
    listed = s.integers("full_attn_idxs", most=MAX_WIDTH) if s.is_given("full_attn_idxs") else None
    attends = listed is None or s.block in listed
    return _block(s, replace(_mlp(s), inner=_inner(s)), otherwise=FULL if attends else CONV)


def _inner(s: Settings) -> int:
    """Of the MLP: two thirds of what the file says, times a factor, up to the next multiple."""
    said = s.integer("intermediate_size", least=1, most=MAX_WIDTH)
    if s.is_gguf or not s.flag("block_auto_adjust_ff_dim"):
        return said
    said = 2 * said // 3
    factor = s.optional_number("block_ffn_dim_multiplier", above=0.0, below=SCALES[1])
    if factor is None:
        return said
    multiple = s.integer("block_multiple_of", least=1, most=MAX_WIDTH)
    return -(-int(factor * said) // multiple) * multiple


LFM2 = Family(
    types=("lfm2",),
    architectures=("Lfm2ForCausalLM",),
    defaults=usual(
        *(65536, 2560, 12288, 32, 32, 8, 128000),
        block_multiple_of=256,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=True,
        full_attn_idxs=None,
        **_LFM2,
    ),
    block=_lfm2_block,
    client=_client,
    tensors={**_NAMES, **_ATTENTION},
    aliases={"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"},
    ignored=VISION,
    wrappers=("lfm2_vl",),
    mlx=True,
    gguf=GGUFFamily("lfm2", keys=_GGUF_KEYS, tensors=_GGUF_NAMES),
)


def _lfm2_moe_block(s: Settings) -> BlockConfig:
    router = RouterConfig(
        "sigmoid",
        correction=s.flag("use_expert_bias"),
        renormalise=s.flag("norm_topk_prob"),
        sum_floor=1e-6,
        scaling=scalar(s, "routed_scaling_factor"),
    )
    some = experts(s, router, mlp=_mlp(s, "moe_intermediate_size"))
    return _block(s, _mlp(s)) if s.block < s.integer("num_dense_layers") else _block(s, None, some)


LFM2_MOE = Family(
    types=("lfm2_moe",),
    architectures=("Lfm2MoeForCausalLM",),
    defaults=usual(
        *(65536, 2048, 7168, 32, 32, 8, 128000),
        moe_intermediate_size=1792,
        num_dense_layers=2,
        num_experts=32,
        num_experts_per_tok=4,
        use_expert_bias=True,
        routed_scaling_factor=1.0,
        norm_topk_prob=True,
        **_LFM2,
    ),
    block=_lfm2_moe_block,
    client=_client,
    tensors={
        **_NAMES,
        **_ATTENTION,
        "mlp.router": "feed_forward.gate",
        "mlp.router.correction": "feed_forward.expert_bias",
        **either(
            each_expert("feed_forward.experts.{}", "w1", "w3", "w2"),
            stack("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
        ),
    },
    aliases={"tie_embedding": "tie_word_embeddings"},
    gguf=GGUFFamily(
        "lfm2moe",
        experts=True,
        settings={"norm_topk_prob": True, "scoring_func": "sigmoid"},
        keys={**_GGUF_KEYS, "leading_dense_block_count": "num_dense_layers"},
        tensors=_GGUF_NAMES,
    ),
)


def _lfm3_kind(block: int) -> str:
    return FULL if block % 4 == 2 else SLIDING if block % 4 == 0 and block else CONV


def _lfm3_attention(s: Settings, kind: str) -> AttentionConfig:
    bias = s.flag("attention_bias")
    return attention(
        s,
        rope=rope(s, kind, partial=True),
        window=s.window() if kind == SLIDING else 0,
        qk_norm=HeadNorm(_norm(s)),
        gate="head" if s.flag("use_attention_gate") else None,
        bias=bias,
        out_bias=bias,
    )


def _lfm3_block(s: Settings) -> BlockConfig:
    norm = _norm(s)
    out = norm if s.flag("use_sandwich_norm") else None
    kind = s.layer_type(_lfm3_kind, (FULL, SLIDING, CONV))
    is_conv = kind == CONV
    return BlockConfig(
        None if is_conv else _lfm3_attention(s, kind),
        _mlp(s),
        norm=norm,
        mlp_norm=norm,
        attention_out_norm=out,
        mlp_out_norm=out,
        state=short_conv(s) if is_conv else None,
    )


LFM3 = Family(
    types=("lfm3",),
    architectures=("Lfm3ForCausalLM",),
    defaults=usual(
        *(128000, 2048, 7680, 24, 16, 4, 128000),
        head_dim=128,
        attention_bias=False,
        sliding_window=256,
        use_sandwich_norm=True,
        use_attention_gate=True,
        rope_parameters={
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        },
        **{**_LFM2, "bos_token_id": 124894, "conv_L_cache": 7},
    ),
    block=_lfm3_block,
    client=_client,
    tensors={
        **_NAMES,
        "self_attn.gate_proj": ("self_attn.gate_proj", "self_attn.g_proj"),
        "self_attn.out_norm": "post_operator_norm",
        "mlp.out_norm": "post_ffn_norm",
    },
    aliases={"rms_norm_eps": "norm_eps"},
    ignored=VISION,
    wrappers=("lfm3_vl",),
)

ROWS = (LFM2, LFM2_MOE, LFM3)
