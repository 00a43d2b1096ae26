"""DeepSeek, and families with its router (GLM-4.5, dots), or its attention too (Kimi K2, GLM-4.7-Flash,
GLM-5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...formats.blocks.attention import HeadNorm
from ...formats.blocks.block import BlockConfig
from ...formats.blocks.experts import MAX_EXPERTS, ExpertsConfig, RouterConfig
from ..experts import EXPERTS, corrected_router, experts, shared, sparse_or_dense
from ..family import Family, GGUFFamily, NextFamily
from ..latent import GGUF_INDEXER, GGUF_LATENT, LATENT, indexer, latent
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


_V3_NEXT = NextFamily(
    lambda s: sparse_or_dense(s, latent(s, interleaved=s.flag("rope_interleave")), _experts(s, dense=False)),
    rms,
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
    next=_V3_NEXT,
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


def _glm4_moe_block(s: Settings, *, dense: bool | None = None) -> BlockConfig:
    return sparse_or_dense(
        s,
        attention(
            s,
            rope=rope(s, partial=True),
            qk_norm=HeadNorm(rms(s)) if s.flag("use_qk_norm") else None,
            bias=s.flag("attention_bias"),
        ),
        _experts(s, dense=_is_first(s) if dense is None else dense),
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
    next=NextFamily(lambda s: _glm4_moe_block(s, dense=False), rms),
    gguf=GGUFFamily(
        "glm4moe",
        settings={"scoring_func": "sigmoid"},
        keys=_COUNT,
        tensors={"post_attention_layernorm": "post_attention_norm"},
    ),
)


def _kind(s: Settings, key: str, known: tuple[str, str]) -> str | None:
    """What a list of two kinds of blocks says of this one; None where there is none."""
    kinds = s.texts(key)
    if kinds and (len(kinds) != s.n_blocks or not {*kinds} <= {*known}):
        raise s.wrong(key, f"{' or '.join(known)} for each of {s.n_blocks} blocks")
    return kinds[s.block] if kinds else None


def is_dense(s: Settings, otherwise: bool) -> bool:
    kind = _kind(s, "mlp_layer_types", ("dense", "sparse"))
    return otherwise if kind is None else kind == "dense"


def _glm4_moe_lite_block(s: Settings) -> BlockConfig:
    return sparse_or_dense(
        s,
        latent(s, interleaved=s.flag("rope_interleave")),
        _experts(s, dense=is_dense(s, s.block == 0)),
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
    next=_V3_NEXT,
    fixed={**_V3_FIXED, "first_k_dense_replace": (1,)},
)


INDEXED = "indexed_attention"
OWN, SHARED = "full", "shared"
"""What ``indexer_types`` has for a block with an indexer of its own, and for one that uses another's."""


def _indexed_block(s: Settings, index_of: int | None = None, *, interleaved: bool = False) -> BlockConfig:
    """``interleaved``: of the indexer; attention always turns neighbours."""
    s.layer_type(INDEXED, known=(INDEXED,))
    chooses = indexer(s, interleaved=interleaved)
    attention = latent(s, indexer=chooses if index_of is None else None, has_head_dim=False)
    experts = _experts(s, dense=is_dense(s, _is_first(s)))
    return replace(sparse_or_dense(s, attention, experts), index_of=index_of)


def _index_of(s: Settings) -> int | None:
    """The last block before this one that has an indexer, where this one has none (arXiv 2603.12201)."""
    kinds = s.texts("indexer_types")
    if not kinds and s.is_text("index_topk_pattern"):
        kinds = tuple({"F": OWN, "S": SHARED}.get(each, each) for each in s.text("index_topk_pattern"))
    kinds = kinds or s.texts("index_topk_pattern")
    if kinds and (len(kinds) != s.n_blocks or not {*kinds} <= {OWN, SHARED}):
        raise s.wrong("indexer_types", f"{OWN} or {SHARED} for each of {s.n_blocks} blocks")
    period, offset = s.integer("index_topk_freq") or 1, s.integer("index_skip_topk_offset")
    if kinds:
        last = next((block for block in range(s.block, -1, -1) if kinds[block] == OWN), -1)
    else:
        last = s.block - max(s.block - offset + 1, 0) % period
    if last < 0:
        raise s.wrong("indexer_types", f"{OWN} for the first block")
    return None if last == s.block else last


_INDEXED_NEXT = NextFamily(
    lambda s: sparse_or_dense(s, latent(s, has_head_dim=False), _experts(s, dense=False)),
    rms,
)
"""Without the indexer that such blocks have: it chooses nothing among fewer keys than ``index_topk``, and a
client's have fewer."""
_INDEXED: dict[str, Any] = {
    "attention_bias": False,
    "bos_token_id": 0,
    "first_k_dense_replace": 3,
    "index_head_dim": 128,
    "index_topk": 2048,
    "kv_lora_rank": 512,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 1,
    "qk_rope_head_dim": 64,
    "routed_scaling_factor": 2.5,
    **_V3,
}


def _indexed_gguf(architecture: str) -> GGUFFamily:
    return GGUFFamily(
        architecture,
        neighbours=True,
        mscale=10.0,
        settings={"scoring_func": "sigmoid"},
        keys={
            **_COUNT,
            "rope.dimension_count": "qk_rope_head_dim",
            "attention.value_length": "value_length",
            "attention.indexer.head_count": "index_n_heads",
            "attention.indexer.key_length": "index_head_dim",
            "attention.indexer.top_k": "index_topk",
        },
        tensors={**GGUF_LATENT, **GGUF_INDEXER},
    )


DEEPSEEK_V32 = Family(
    types=("deepseek_v32",),
    architectures=("DeepseekV32ForCausalLM",),
    defaults=usual(
        *(129280, 7168, 18432, 61, 128, 128, 163840),
        q_lora_rank=1536,
        qk_nope_head_dim=128,
        v_head_dim=128,
        index_n_heads=64,
        **{**_INDEXED, "n_group": 8, "topk_group": 4},
    ),
    block=_indexed_block,
    client=rms_client,
    tensors={**EXPERTS, **LATENT},
    aliases={"num_local_experts": "n_routed_experts", "num_experts": "n_routed_experts"},
    fixed={**_V3_FIXED, "rope_interleave": (True,), "indexer_rope_interleave": (False,)},
    next=_INDEXED_NEXT,
    gguf=_indexed_gguf("deepseek32"),
)

GLM_MOE_DSA = Family(
    types=("glm_moe_dsa",),
    architectures=("GlmMoeDsaForCausalLM",),
    defaults=usual(
        *(154880, 6144, 12288, 78, 64, 64, 202752),
        rms_norm_eps=1e-5,
        q_lora_rank=2048,
        qk_nope_head_dim=192,
        v_head_dim=256,
        index_n_heads=32,
        indexer_types=None,
        index_topk_pattern=None,
        index_topk_freq=1,
        index_skip_topk_offset=2,
        **_INDEXED,
    ),
    block=lambda s: _indexed_block(s, _index_of(s), interleaved=True),
    client=rms_client,
    tensors={**EXPERTS, **LATENT},
    aliases={"num_local_experts": "n_routed_experts", "num_experts": "n_routed_experts"},
    fixed={**_V3_FIXED, "rope_interleave": (True,), "indexer_rope_interleave": (True,)},
    next=_INDEXED_NEXT,
    gguf=_indexed_gguf("glm-dsa"),
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

ROWS = (DEEPSEEK_V2, DEEPSEEK_V3, DEEPSEEK_V32, GLM_MOE_DSA, GLM4_MOE, GLM4_MOE_LITE, DOTS1)
