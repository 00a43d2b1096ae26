"""Families that have experts in place of the MLP, and little else of their own: Mixtral, Qwen and others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...formats.blocks.attention import HeadNorm
from ...formats.blocks.block import BlockConfig
from ...formats.blocks.experts import MAX_EXPERTS, RouterConfig
from ...formats.blocks.rope import RopeConfig
from ...formats.values.bounds import MAX_WIDTH, SCALES
from ..experts import EXPERTS, corrected_router, experts, shared, softmax_router, sparse_or_dense
from ..family import Family, GGUFFamily
from ..names import Names, either, fused, mlp_named, stack
from ..pieces import attention, layer_norm, mlp, pre_norm, rms, rms_client, scalar, usual
from ..rope import rope
from ..settings import FULL, SLIDING, Settings
from .llama import GRANITE_FACTORS, granite_attention, granite_client, hunyuan_rope

_MIXTRAL: Names = {
    "mlp.router": "block_sparse_moe.gate",
    "mlp.router.correction": "block_sparse_moe.e_score_correction_bias",
    **either(
        mlp_named("mlp.experts.{}", "block_sparse_moe.experts.{}", "w1", "w3", "w2"),
        mlp_named("mlp.experts.{}", "block_sparse_moe.switch_mlp"),
    ),
}
_LOCAL = {"expert_count": "num_local_experts"}
_SPARSE: dict[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": None, "norm_topk_prob": False}


def is_sparse(s: Settings, count: str = "num_experts") -> bool:
    """Qwen: every so many blocks, but for some."""
    turn = (s.block + 1) % s.integer("decoder_sparse_step", least=1) == 0
    return turn and s.block not in s.integers("mlp_only_layers", most=MAX_WIDTH) and s.integer(count) > 0


def _qwen2_moe_block(s: Settings) -> BlockConfig:
    slides = False
    if s.flag("use_sliding_window"):
        early = s.block % 2 == 0 and s.block < s.integer("max_window_layers")
        slides = s.layer_type(SLIDING if early else FULL) == SLIDING
    s.has("sliding_window"), s.has("layer_types")  # which else say nothing
    own = mlp(s, "shared_expert_intermediate_size")
    some = experts(s, softmax_router(s), shared=own, shared_gate=True) if is_sparse(s) else None
    return sparse_or_dense(s, attention(s, window=s.window() if slides else 0, bias=s.flag("qkv_bias")), some)


QWEN2_MOE = Family(
    types=("qwen2_moe",),
    architectures=("Qwen2MoeForCausalLM",),
    defaults=usual(
        *(151936, 2048, 5632, 24, 16, 16, 32768),
        use_sliding_window=False,
        sliding_window=4096,
        max_window_layers=28,
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
        num_experts_per_tok=4,
        num_experts=60,
        qkv_bias=True,
        **_SPARSE,
    ),
    block=_qwen2_moe_block,
    client=rms_client,
    tensors={**EXPERTS, **mlp_named("mlp.shared_experts", "mlp.shared_expert")},
    aliases={"num_local_experts": "num_experts"},
    gguf=GGUFFamily("qwen2moe"),
)


def _qwen3_moe_block(s: Settings) -> BlockConfig:
    bias, slides = s.flag("attention_bias"), s.flag("use_sliding_window")
    s.has("sliding_window")
    some = experts(s, softmax_router(s)) if is_sparse(s) else None
    return sparse_or_dense(
        s,
        attention(s, window=s.window() if slides else 0, qk_norm=HeadNorm(rms(s)), bias=bias, out_bias=bias),
        some,
    )


QWEN3_MOE = Family(
    types=("qwen3_moe",),
    architectures=("Qwen3MoeForCausalLM",),
    defaults=usual(
        *(151936, 2048, 6144, 24, 32, 4, 32768),
        attention_bias=False,
        use_sliding_window=False,
        sliding_window=4096,
        moe_intermediate_size=768,
        num_experts_per_tok=8,
        num_experts=128,
        **_SPARSE,
    ),
    block=_qwen3_moe_block,
    client=rms_client,
    tensors=EXPERTS,
    aliases={"num_local_experts": "num_experts"},
    gguf=GGUFFamily("qwen3moe", settings={"norm_topk_prob": True}),
)

MIXTRAL = Family(
    types=("mixtral",),
    architectures=("MixtralForCausalLM",),
    defaults=usual(
        *(32000, 4096, 14336, 32, 32, 8, 131072),
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        bos_token_id=1,
        sliding_window=None,
        num_experts_per_tok=2,
        num_local_experts=8,
    ),
    block=lambda s: pre_norm(
        s,
        attention(s, window=s.window()),
        None,
        experts=experts(s, RouterConfig(), count="num_local_experts", inner="intermediate_size"),
    ),
    client=rms_client,
    tensors=_MIXTRAL,
    aliases={"num_experts": "num_local_experts"},
    gguf=GGUFFamily(
        "llama",
        experts=True,
        neighbours=True,
        keys=_LOCAL,
        tensors={  # the latter in files of 2023
            f"mlp.experts.{{}}.{part}_proj": (f"ffn_{part}_exps", f"ffn_{part}.{{}}")
            for part in ("gate", "up", "down")
        },
    ),
)


def _phimoe_rope(s: Settings) -> RopeConfig:
    """Its files have the factor on cos and sin themselves."""
    found = rope(s)
    part = s.section("rope_scaling") or s.section("rope_parameters")
    if part is None or found.type == "default" or s.is_gguf:
        return found
    short = part.number("short_mscale", above=0.0, below=SCALES[1])
    if part.number("long_mscale") != short:
        raise part.wrong("long_mscale", f"{short}, as short_mscale is")
    return replace(found, attention_factor=short)


def _phimoe_block(s: Settings) -> BlockConfig:
    bias = s.flag("attention_bias")
    jitter = s.number("router_jitter_noise", least=0, below=1.0)
    router = RouterConfig("sparsemixer", renormalise=False, jitter=jitter)
    return pre_norm(
        s,
        attention(s, rope=_phimoe_rope(s), window=s.window(), bias=bias, out_bias=bias),
        None,
        experts=experts(s, router, count="num_local_experts", inner="intermediate_size"),
        norm=layer_norm(s, "rms_norm_eps", bias=True),
    )


PHIMOE = Family(
    types=("phimoe",),
    architectures=("PhimoeForCausalLM", "PhiMoEForCausalLM"),
    defaults=usual(
        *(32064, 4096, 6400, 32, 32, 8, 131072),
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        bos_token_id=1,
        sliding_window=None,
        num_experts_per_tok=2,
        num_local_experts=16,
        router_jitter_noise=0.01,
        attention_bias=False,
        lm_head_bias=False,
    ),
    block=_phimoe_block,
    client=lambda s: {
        "final_norm": layer_norm(s, "rms_norm_eps", bias=True),
        "head_bias": s.flag("lm_head_bias"),
    },
    tensors=_MIXTRAL,
    aliases={"num_experts": "num_local_experts"},
    gguf=GGUFFamily("phimoe", keys=_LOCAL),
)


def _minimax_rope(s: Settings) -> RopeConfig:
    size = s.optional_integer("rotary_dim", least=1, most=s.head_dim)
    if size is not None and not s.has("partial_rotary_factor"):
        return rope(s.with_values({"partial_rotary_factor": size / s.head_dim}), partial=True)
    return rope(s, partial=True)


MINIMAX_M2 = Family(
    types=("minimax_m2",),
    architectures=("MiniMaxM2ForCausalLM",),
    defaults=usual(
        *(200064, 3072, 1536, 62, 48, 8, 196608),
        head_dim=128,
        rope_theta=5e6,
        bos_token_id=200034,
        num_experts_per_tok=8,
        num_local_experts=256,
        norm_topk_prob=True,
        router_correction=True,
    ),
    block=lambda s: pre_norm(
        s,
        attention(s, rope=_minimax_rope(s), qk_norm=HeadNorm(rms(s), over="all")),
        None,
        experts=experts(
            s,
            corrected_router(s),
            count="num_local_experts",
            inner="moe_intermediate_size" if s.is_gguf else "intermediate_size",
        ),
    ),
    client=rms_client,
    tensors=_MIXTRAL,
    aliases={"num_experts": "num_local_experts"},
    fixed={"use_qk_norm": (True,), "scoring_func": ("sigmoid",), "use_routing_bias": (True,)}
    | {"qk_norm_type": ("per_layer",), "shared_intermediate_size": (0,), "norm_topk_prob": (True,)}
    | dict.fromkeys(("n_group", "topk_group", "routed_scaling_factor"), (1, None)),
    gguf=GGUFFamily("minimax-m2", settings={"norm_topk_prob": True}, keys=_LOCAL),
)

OLMOE = Family(
    types=("olmoe",),
    architectures=("OlmoeForCausalLM",),
    defaults=usual(
        *(50304, 2048, 2048, 16, 16, None, 4096),
        rms_norm_eps=1e-5,
        attention_bias=False,
        num_experts_per_tok=8,
        num_experts=64,
        norm_topk_prob=False,
    ),
    block=lambda s: pre_norm(
        s,
        attention(
            s,
            qk_norm=HeadNorm(rms(s), over="all"),
            bias=s.flag("attention_bias"),
            out_bias=s.flag("attention_bias"),
        ),
        None,
        experts=experts(s, softmax_router(s), inner="intermediate_size"),
    ),
    client=rms_client,
    tensors=EXPERTS,
    aliases={"num_local_experts": "num_experts"},
    gguf=GGUFFamily("olmoe"),
)


def _granitemoe_block(s: Settings) -> BlockConfig:
    inner = "shared_intermediate_size"
    return pre_norm(
        s,
        granite_attention(s),
        None,
        experts=experts(
            s,
            RouterConfig("softmax_of_used", renormalise=False),
            count="num_local_experts",
            inner="intermediate_size",
            shared=mlp(s, inner) if s.optional_integer(inner) else None,
        ),
        residual_multiplier=scalar(s, "residual_multiplier"),
    )


GRANITEMOESHARED = Family(
    types=("granitemoeshared",),
    architectures=("GraniteMoeSharedForCausalLM",),
    defaults=usual(
        *(32000, 4096, 11008, 32, 32, None, 2048),
        bos_token_id=1,
        attention_bias=False,
        num_local_experts=8,
        num_experts_per_tok=2,
        shared_intermediate_size=0,
        **GRANITE_FACTORS,
    ),
    block=_granitemoe_block,
    client=granite_client,
    tensors={
        "mlp.router": "block_sparse_moe.router.layer",
        **stack("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
        **fused("shared_mlp.input_linear", "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
        "mlp.shared_experts.down_proj": "shared_mlp.output_linear",
    },
    gguf=GGUFFamily(
        "granitemoe",
        neighbours=True,
        keys={
            **_LOCAL,
            "logit_scale": "logits_scaling",
            "expert_shared_feed_forward_length": "shared_intermediate_size",
        },
    ),
)

GRANITEMOE = replace(
    GRANITEMOESHARED, types=("granitemoe",), architectures=("GraniteMoeForCausalLM",), gguf=None
)


def _ernie_block(s: Settings) -> BlockConfig:
    bias, last = s.flag("use_bias"), s.integer("moe_layer_end_index", -1, least=-1, most=MAX_WIDTH)
    first = s.optional_integer("moe_layer_start_index") or 0
    turn = (s.block + 1) % s.integer("moe_layer_interval", 1, least=1) == 0
    is_sparse = turn and first <= s.block <= (s.n_blocks - 1 if last == -1 else last)
    # The sum of the best shares is never so small.
    s.number("moe_norm_min", above=-1.0, below=1 / MAX_EXPERTS)
    some = experts(
        s,
        RouterConfig(correction=s.flag("router_correction")),
        count="moe_num_experts",
        used="moe_k",
        shared=shared(s, "moe_num_shared_experts", bias=bias),
    )
    turns = rope(s, interleaved=True)
    return sparse_or_dense(
        s, attention(s, rope=turns, bias=bias, out_bias=bias), some if is_sparse else None, bias=bias
    )


ERNIE4_5_MOE = Family(
    types=("ernie4_5_moe",),
    architectures=("Ernie4_5_MoeForCausalLM",),
    defaults=usual(
        *(103424, 2560, 12288, 28, 20, 4, 131072),
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        bos_token_id=1,
        tie_word_embeddings=True,
        use_bias=False,
        moe_intermediate_size=1536,
        moe_k=6,
        moe_num_experts=64,
        moe_num_shared_experts=2,
        moe_layer_start_index=1,
        moe_layer_end_index=-1,
        moe_layer_interval=1,
        moe_norm_min=1e-12,
        router_correction=True,
    ),
    block=_ernie_block,
    client=lambda s: {"final_norm": rms(s), "head_bias": s.flag("use_bias")},
    tensors={**EXPERTS, "mlp.router.correction": "mlp.moe_statics.e_score_correction_bias"},
    aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    fixed={"moe_gate": ("topk",)},
    ignored=r"model\.mtp_.*",
    gguf=GGUFFamily(
        "ernie4_5-moe",
        neighbours=True,
        keys={
            "expert_count": "moe_num_experts",
            "expert_used_count": "moe_k",
            "expert_shared_count": "moe_num_shared_experts",
            "interleave_moe_layer_step": "moe_layer_interval",
            "leading_dense_block_count": "moe_layer_start_index",
        },
    ),
)


def _hunyuan_block(s: Settings) -> BlockConfig:
    bias, used = s.flag("attention_bias"), s.integers("moe_topk", most=MAX_EXPERTS)
    if len(used) != 1:
        raise s.wrong("moe_topk", "one number for all blocks")
    inner = "moe_intermediate_size" if s.is_gguf else "intermediate_size"
    return pre_norm(
        s,
        attention(
            s, rope=hunyuan_rope(s), qk_norm=HeadNorm(rms(s), after_rope=True), bias=bias, out_bias=bias
        ),
        None,
        experts=experts(
            s.with_values({"moe_topk": used[0]}),
            RouterConfig(),
            used="moe_topk",
            inner=inner,
            shared=shared(s, inner="intermediate_size"),
        ),
    )


HUNYUAN_V1_MOE = Family(
    types=("hunyuan_v1_moe",),
    architectures=("HunYuanMoEV1ForCausalLM",),
    defaults=usual(
        *(290943, 4096, 11008, 32, 32, None, 2048),
        rms_norm_eps=1e-5,
        bos_token_id=1,
        attention_bias=False,
        num_experts=1,
        n_shared_experts=1,
        moe_topk=1,
    ),
    block=_hunyuan_block,
    client=rms_client,
    tensors={
        **EXPERTS,
        "mlp.router": "mlp.gate.wg",
        **mlp_named("mlp.shared_experts", "mlp.shared_mlp"),
        "self_attn.q_norm": "self_attn.query_layernorm",
        "self_attn.k_norm": "self_attn.key_layernorm",
    },
    aliases={"num_experts_per_tok": "moe_topk", "num_local_experts": "num_experts"},
    fixed={"use_qk_norm": (True,), "norm_topk_prob": (True,), "use_cla": (False,), "use_mla": (False,)}
    | {
        "group_limited_greedy": (False,),
        "moe_layer_num_skipped": (0,),
        "routed_scaling_factor": (1.0, False),
    },
    gguf=GGUFFamily("hunyuan-moe", settings={"n_shared_experts": 1}, keys={"expert_used_count": "moe_topk"}),
)

ROWS = (
    *(QWEN2_MOE, QWEN3_MOE, MIXTRAL, PHIMOE, MINIMAX_M2, OLMOE),
    *(GRANITEMOESHARED, GRANITEMOE, ERNIE4_5_MOE, HUNYUAN_V1_MOE),
)
