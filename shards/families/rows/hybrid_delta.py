"""Families whose blocks have Gated DeltaNet, or KDA, in the place of most attention: Qwen3-Next and 3.5, OLMo
Hybrid, Kimi Linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ....swarm.errors import UnsupportedModelError
from ...formats.blocks.attention import AttentionConfig, HeadNorm
from ...formats.blocks.block import BlockConfig
from ...formats.blocks.experts import ExpertsConfig, RouterConfig
from ...formats.blocks.mlp import MlpConfig
from ...formats.blocks.norm import NormConfig
from ...formats.blocks.state import MAX_TAPS, RecurrenceConfig
from ...formats.values.bounds import MAX_WIDTH
from ..experts import EXPERTS, corrected_router, each_expert, experts, shared, softmax_router
from ..family import Family, GGUFFamily, NextFamily
from ..latent import GGUF_LATENT, LATENT, latent
from ..names import Names, either, fused, mlp_named
from ..pieces import attention, mlp, rms, rms_client, usual
from ..recurrences import (
    DELTA,
    DELTA_BY_KEYS,
    DELTA_LEARNED,
    GGUF_DELTA,
    GGUF_DELTA_BY_KEYS,
    GGUF_DELTA_KEYS,
    GGUF_KDA,
    KDA,
    delta,
    delta_sizes,
    kind_by_heads,
)
from ..rope import rope
from ..settings import FULL, LINEAR, Settings, every
from .deepseek import is_dense
from .olmo import POST, olmo_block
from .sparse import is_sparse

_VISUAL = r"(model\.)?visual\..*"
_GATED = fused("self_attn.q_proj", "self_attn.q_proj", "self_attn.gate_proj", groups="heads")
_GGUF_GATED = fused("attn_q", "self_attn.q_proj", "self_attn.gate_proj", groups="heads")
_SHARED_EXPERT = mlp_named("mlp.shared_experts", "mlp.shared_expert")
_GGUF_NORM = {"post_attention_layernorm": "post_attention_norm"}
_QWEN_FIXED = {"attn_output_gate": (True,), "output_gate_type": ("swish", "silu")}
_DELTA: dict[str, Any] = {
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "num_nextn_predict_layers": 1,
}
_ALIASES = {"mtp_num_hidden_layers": "num_nextn_predict_layers"}
_MTP = r"(model\.)?mtp\..*"


def _is_linear(s: Settings) -> bool:
    """Every so many blocks have attention."""
    interval = s.integer("full_attention_interval", least=1, most=MAX_WIDTH)
    return s.layer_type(every(interval, FULL, LINEAR), (FULL, LINEAR)) == LINEAR


def _qwen_attention(s: Settings) -> AttentionConfig:
    """With a gate as wide as its output; positions of a text are the same in all sections of its rope."""
    return attention(s, rope=rope(s, partial=True), qk_norm=HeadNorm(rms(s, 1.0)), gate="channel")


def _qwen_block(
    s: Settings, dense: MlpConfig | None, some: ExpertsConfig | None = None, *, tiled: bool = False
) -> BlockConfig:
    """``tiled``: as of ``RecurrenceConfig``."""
    norm = rms(s, 1.0)
    behind = s.block >= s.n_blocks  # and guesses further tokens
    attends, linear = _qwen_attention(s), not behind and _is_linear(s)
    state = delta(s, delta_sizes(s), rms(s), tiled=tiled)
    return BlockConfig(
        None if linear else attends,
        None if some else dense,
        some,
        norm=norm,
        mlp_norm=norm,
        state=state if linear else None,
    )


def _qwen_next(block: Callable[[Settings], BlockConfig]) -> NextFamily:
    """``block``: as of the family."""
    return NextFamily(
        block,
        lambda s: rms(s, 1.0),
        in_block="mtp.layers.{}.",
        beside="mtp.",
        apart=True,
        tensors={
            "next.embedding_norm": "pre_fc_norm_embedding",
            "next.hidden_norm": "pre_fc_norm_hidden",
            "next.projection": "fc",
            "next.norm": "norm",
        },
    )


def _qwen_client(s: Settings) -> dict[str, Any]:
    return {"final_norm": rms(s, 1.0)}


def _qwen_experts(s: Settings, router: RouterConfig) -> ExpertsConfig:
    return experts(s, router, shared=mlp(s, "shared_expert_intermediate_size"), shared_gate=True)


def _qwen3_next_block(s: Settings) -> BlockConfig:
    some = _qwen_experts(s, softmax_router(s))
    return _qwen_block(s, mlp(s), some if s.block >= s.n_blocks or is_sparse(s) else None)


def _qwen3_5_block(s: Settings) -> BlockConfig:
    return _qwen_block(s, mlp(s), tiled=s.is_gguf)


def _qwen3_5_moe_block(s: Settings) -> BlockConfig:
    return _qwen_block(s, None, _qwen_experts(s, RouterConfig()), tiled=s.is_gguf)


QWEN3_NEXT = Family(
    types=("qwen3_next",),
    architectures=("Qwen3NextForCausalLM",),
    defaults=usual(
        *(151936, 2048, 5632, 48, 16, 2, 32768),
        decoder_sparse_step=1,
        mlp_only_layers=None,
        norm_topk_prob=True,
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
        num_experts_per_tok=10,
        num_experts=512,
        **_DELTA,
    ),
    block=_qwen3_next_block,
    client=_qwen_client,
    tensors={**EXPERTS, **_SHARED_EXPERT, **_GATED, **DELTA_BY_KEYS},
    fixed=_QWEN_FIXED,
    aliases=_ALIASES,
    ignored=_MTP,
    next=_qwen_next(_qwen3_next_block),
    mlx=True,
    gguf=GGUFFamily(
        "qwen3next",
        experts=True,
        settings={"norm_topk_prob": True},
        keys=GGUF_DELTA_KEYS,
        tensors={**_GGUF_GATED, **_GGUF_NORM, **GGUF_DELTA_BY_KEYS},
    ),
)


QWEN3_5 = Family(
    types=("qwen3_5_text",),
    architectures=("Qwen3_5ForCausalLM",),
    defaults=usual(*(248320, 4096, 12288, 32, 16, 4, 32768), **_DELTA),
    block=_qwen3_5_block,
    client=_qwen_client,
    tensors={**_GATED, **DELTA},
    fixed=_QWEN_FIXED,
    aliases=_ALIASES,
    ignored=f"{_VISUAL}|{_MTP}",
    wrappers=("qwen3_5",),
    next=_qwen_next(_qwen3_5_block),
    mlx=True,
    gguf=GGUFFamily("qwen35", keys=GGUF_DELTA_KEYS, tensors={**_GGUF_GATED, **_GGUF_NORM, **GGUF_DELTA}),
)


QWEN3_5_MOE = Family(
    types=("qwen3_5_moe_text",),
    architectures=("Qwen3_5MoeForCausalLM",),
    defaults=usual(
        *(248320, 2048, 0, 40, 16, 2, 32768),
        moe_intermediate_size=512,
        shared_expert_intermediate_size=512,
        num_experts_per_tok=8,
        num_experts=256,
        **_DELTA,
    ),
    block=_qwen3_5_moe_block,
    client=_qwen_client,
    tensors={**EXPERTS, **_SHARED_EXPERT, **_GATED, **DELTA},
    fixed=_QWEN_FIXED,
    aliases=_ALIASES,
    ignored=f"{_VISUAL}|{_MTP}",
    wrappers=("qwen3_5_moe",),
    next=_qwen_next(_qwen3_5_moe_block),
    mlx=True,
    gguf=GGUFFamily(
        "qwen35moe",
        experts=True,
        keys=GGUF_DELTA_KEYS,
        tensors={**_GGUF_GATED, **_GGUF_NORM, **GGUF_DELTA},
    ),
)


_OLMO_EPS = 1e-5
"""Of the norm behind the recurrence: transformers' class has it from no key."""


def _olmo_hybrid_block(s: Settings) -> BlockConfig:
    last = s.n_blocks - 1 if s.n_blocks < 4 else -1  # a short model has attention in its last block
    kind = s.layer_type(lambda block: FULL if block % 4 == 3 or block == last else LINEAR, (FULL, LINEAR))
    if kind == FULL:
        part = s.section("rope_parameters") or s
        has_none = (part if part.has("rope_theta") else s).is_null("rope_theta")
        return olmo_block(s, None if has_none else rope(s))
    norm = rms(s)
    return BlockConfig(None, mlp(s), norm=norm, mlp_norm=norm, state=_olmo_delta(s))


def _olmo_delta(s: Settings) -> RecurrenceConfig:
    def size(key: str, otherwise: int) -> int:
        return s.optional_integer(key, least=1, most=MAX_WIDTH) or otherwise

    heads, key_heads = (size(f"linear_num_{which}_heads", s.heads) for which in ("value", "key"))
    key_dim = size("linear_key_head_dim", int(0.75 * s.hidden / key_heads))
    sizes = heads, key_heads, key_dim, size("linear_value_head_dim", 2 * key_dim)
    return delta(
        s, sizes, NormConfig(_OLMO_EPS), beta_scale=2.0 if s.flag("linear_allow_neg_eigval") else 1.0
    )


OLMO_HYBRID = Family(
    types=("olmo_hybrid",),
    architectures=("OlmoHybridForCausalLM",),
    defaults=usual(
        *(100352, 3840, 11008, 32, 30, None, 65536),
        attention_bias=False,
        linear_num_key_heads=None,
        linear_num_value_heads=None,
        linear_key_head_dim=None,
        linear_value_head_dim=None,
        linear_conv_kernel_dim=4,
        linear_allow_neg_eigval=True,
    ),
    block=_olmo_hybrid_block,
    client=rms_client,
    tensors={
        **POST,
        "self_attn.out_norm": ("post_attention_layernorm", "feedforward_layer_norm"),
        **either(
            {f"state.{name}_conv": f"linear_attn.{name}_conv1d" for name in "qkv"},
            fused("linear_attn.conv1d", *(f"state.{name}_conv" for name in "qkv")),
        ),
        **{f"state.{name}_proj": f"linear_attn.{name}_proj" for name in "qkv"},
        "state.gate_proj": "linear_attn.g_proj",
        "state.decay_proj": "linear_attn.a_proj",
        "state.beta_proj": "linear_attn.b_proj",
        "state.a_log": DELTA_LEARNED["state.a_log"],
        "state.decay_bias": DELTA_LEARNED["state.decay_bias"],
        "state.norm": "linear_attn.o_norm",
        "state.out_proj": "linear_attn.o_proj",
        "input_layernorm": ("attention_layer_norm", "input_layernorm"),
        "post_attention_layernorm": ("feedforward_layer_norm", "post_attention_layernorm"),
    },
)


_KIMI_SIZES = {
    "num_heads": ("linear_num_heads", MAX_WIDTH),
    "head_dim": ("linear_head_dim", MAX_WIDTH),
    "short_conv_kernel_size": ("linear_conv_kernel_dim", MAX_TAPS),
}


def _kimi_keys(s: Settings) -> dict[str, Any]:
    """What files on the hub say in ``linear_attn_config``, which counts blocks from 1."""
    part = s.section("linear_attn_config")
    if part is None:
        return {}
    if any(map(part.is_given, ("gate_lower_bound", "use_full_rank_gate"))):
        raise UnsupportedModelError(f"{part.named('gate_lower_bound')}: Kimi K3's gates are not supported")
    found: dict[str, Any] = {
        key: part.integer(inner, least=1, most=most)
        for inner, (key, most) in _KIMI_SIZES.items()
        if part.has(inner)
    }
    if not s.texts("layer_types") and (part.has("full_attn_layers") or part.has("kda_layers")):
        full, linear = (part.integers(f"{which}_layers", most=MAX_WIDTH) for which in ("full_attn", "kda"))
        kinds = {**dict.fromkeys(full, FULL), **dict.fromkeys(linear, LINEAR)}
        numbers = range(1, s.n_blocks + 1)
        if sorted((*full, *linear)) != [*numbers]:
            raise part.wrong("kda_layers", "with full_attn_layers, each block from 1 on, once")
        found["layer_types"] = [kinds[number] for number in numbers]
    return found


def _kimi_kind(s: Settings) -> str:
    if s.is_gguf:
        return kind_by_heads(s, LINEAR)
    return s.layer_type(lambda block: FULL if block and block % 4 == 0 else LINEAR, (FULL, LINEAR))


def _kda(s: Settings) -> RecurrenceConfig:
    heads = s.heads if s.is_gguf else s.integer("linear_num_heads", least=1, most=MAX_WIDTH)
    dim = s.integer("linear_head_dim", least=1, most=MAX_WIDTH)
    return delta(
        *(s, (heads, heads, dim, dim), rms(s)),
        gate="sigmoid",
        gate_rank=dim,
        decay="channel",
        decay_rank=dim,
    )


def _kimi_linear_block(s: Settings) -> BlockConfig:
    first = s.optional_integer("first_k_dense_replace", 1) or 0
    dense = is_dense(s, s.block < first)
    some = experts(s, corrected_router(s), count="num_local_experts", shared=shared(s))
    norm, linear = rms(s), _kimi_kind(s) == LINEAR
    attends, state = latent(s, has_head_dim=False, has_rope=False), _kda(s)
    return BlockConfig(
        None if linear else attends,
        mlp(s) if dense else None,
        None if dense else some,
        norm=norm,
        mlp_norm=norm,
        state=state if linear else None,
    )


_BY_KIMI: Names = {
    "mlp.router": "block_sparse_moe.gate",
    "mlp.router.correction": "block_sparse_moe.gate.e_score_correction_bias",
    **each_expert("block_sparse_moe.experts.{}", "w1", "w3", "w2"),
    **mlp_named("mlp.shared_experts", "block_sparse_moe.shared_experts"),
    **mlp_named("mlp", "block_sparse_moe"),
}
"""Dense blocks have their names so in files that transformers has written."""

KIMI_LINEAR = Family(
    types=("kimi_linear",),
    architectures=("KimiLinearForCausalLM",),
    defaults=usual(
        *(163840, 2304, 9216, 27, 32, 32, 1048576),
        rms_norm_eps=1e-5,
        bos_token_id=163584,
        attention_bias=False,
        moe_intermediate_size=1024,
        n_shared_experts=1,
        num_local_experts=256,
        num_experts_per_tok=8,
        routed_scaling_factor=2.446,
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        router_correction=True,
        linear_head_dim=128,
        linear_num_heads=32,
        linear_conv_kernel_dim=4,
    ),
    block=_kimi_linear_block,
    client=rms_client,
    tensors={
        **KDA,
        **LATENT,
        **either(
            _BY_KIMI,
            {**EXPERTS, **mlp_named("mlp.shared_experts", "mlp.shared_experts"), **mlp_named("mlp", "mlp")},
        ),
    },
    aliases={
        "model_max_length": "max_position_embeddings",
        "moe_renormalize": "norm_topk_prob",
        "num_expert_group": "n_group",
        "num_experts": "num_local_experts",
        "num_experts_per_token": "num_experts_per_tok",
        "num_shared_experts": "n_shared_experts",
    },
    derived=_kimi_keys,
    fixed={
        "mla_use_nope": (True,),
        "mla_use_output_gate": (False, None),
        "moe_layer_freq": (1,),
        "moe_router_activation_func": ("sigmoid",),
        "num_nextn_predict_layers": (0, None),
        "use_grouped_topk": (True,),
    },
    gguf=GGUFFamily(
        "kimi-linear",
        experts=True,
        settings={"scoring_func": "sigmoid", "norm_topk_prob": True},
        keys={
            "expert_count": "num_local_experts",
            "attention.value_length": "value_length",
            "rope.dimension_count": "qk_rope_head_dim",
            "kda.head_dim": "linear_head_dim",
            "ssm.conv_kernel": "linear_conv_kernel_dim",
        },
        tensors={**GGUF_LATENT, **GGUF_KDA},
    ),
)

ROWS = (QWEN3_NEXT, QWEN3_5, QWEN3_5_MOE, OLMO_HYBRID, KIMI_LINEAR)
