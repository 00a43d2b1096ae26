"""Llama, and families that differ from it in little."""

from __future__ import annotations

from typing import Any

from ...formats.blocks.attention import AttentionConfig, HeadNorm, QueryScale
from ...formats.blocks.block import BlockConfig
from ...formats.blocks.rope import RopeConfig
from ...formats.values.bounds import MAX_CONTEXT
from ..family import Family, GGUFFamily
from ..pieces import attention, has_rope, mlp, pre_norm, rms, rms_client, scalar, usual
from ..rope import rope
from ..settings import FULL, SLIDING, Settings

VISION = (
    r"(model\.)?(vision_tower|vision_model|multi_modal_projector|embed_vision|audio_tower|embed_audio)\..*"
)
"""Tensors of the parts that see and hear."""


def _block(s: Settings, **more: Any) -> BlockConfig:
    bias = s.flag("attention_bias")
    return pre_norm(s, attention(s, bias=bias, out_bias=bias), mlp(s, bias=s.flag("mlp_bias"), **more))


LLAMA = Family(
    types=("llama",),
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),  # the latter of 2023
    defaults=usual(
        *(32000, 4096, 11008, 32, 32, None, 2048), bos_token_id=1, attention_bias=False, mlp_bias=False
    ),
    block=_block,
    client=rms_client,
    gguf=GGUFFamily("llama", neighbours=True),
)

MISTRAL = Family(
    types=("mistral",),
    architectures=("MistralForCausalLM",),
    defaults=usual(*(32000, 4096, 14336, 32, 32, 8, 131072), bos_token_id=1, sliding_window=4096),
    block=lambda s: pre_norm(s, attention(s, window=s.window()), mlp(s)),
    client=rms_client,
    wrappers=("mistral3",),
    ignored=VISION,
)


def _query_scale(s: Settings) -> QueryScale | None:
    """``llama_4_scaling_beta``: beside the rope settings that its period is from."""
    part = s.section("rope_parameters") or s
    home = part if part.has("llama_4_scaling_beta") else s
    beta = home.optional_number("llama_4_scaling_beta", above=0.0)
    period = part.integer("original_max_position_embeddings", s.positions, least=1, most=MAX_CONTEXT)
    return None if beta is None else QueryScale(beta, period)


MINISTRAL3 = Family(
    types=("ministral3",),
    architectures=("Ministral3ForCausalLM",),
    defaults=usual(
        *(131072, 4096, 14336, 34, 32, 8, 262144),
        head_dim=128,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16384,
            "llama_4_scaling_beta": 0.1,
        },
    ),
    block=lambda s: pre_norm(s, attention(s, window=s.window(), query_scale=_query_scale(s)), mlp(s)),
    client=rms_client,
    ignored=VISION,
    gguf=GGUFFamily("mistral3", neighbours=True, mscale=1.0),
)

ARCEE = Family(
    types=("arcee",),
    architectures=("ArceeForCausalLM",),
    defaults=usual(
        *(32000, 2560, 18432, 32, 32, None, 4096),
        hidden_act="relu2",
        rms_norm_eps=1e-5,
        bos_token_id=128000,
        attention_bias=False,
        mlp_bias=False,
    ),
    block=lambda s: _block(s, gated=False),
    client=rms_client,
    gguf=GGUFFamily("arcee", neighbours=True),
)

SEED_OSS = Family(
    types=("seed_oss",),
    architectures=("SeedOssForCausalLM",),
    defaults=usual(
        *(155136, 4096, 27648, 64, 80, 8, 524288),
        head_dim=128,
        bos_token_id=0,
        attention_bias=True,
        attention_out_bias=False,
        mlp_bias=False,
    ),
    block=lambda s: pre_norm(
        s,
        attention(s, bias=s.flag("attention_bias"), out_bias=s.flag("attention_out_bias")),
        mlp(s, bias=s.flag("mlp_bias")),
    ),
    client=rms_client,
    gguf=GGUFFamily("seed_oss", tensors={"post_attention_layernorm": "post_attention_norm"}),
)


def granite_attention(s: Settings, **more: Any) -> AttentionConfig:
    bias = s.flag("attention_bias")
    scale = scalar(s, "attention_multiplier", s.head_dim**-0.5)
    return attention(s, scale=scale, bias=bias, out_bias=bias, **more)


def granite_client(s: Settings) -> dict[str, Any]:
    return {
        "final_norm": rms(s),
        "embedding_multiplier": scalar(s, "embedding_multiplier"),
        "logit_multiplier": 1.0 / scalar(s, "logits_scaling"),
    }


GRANITE_FACTORS: dict[str, Any] = dict.fromkeys(
    ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"), 1.0
)

GRANITE = Family(
    types=("granite",),
    architectures=("GraniteForCausalLM",),
    defaults=usual(
        *(32000, 4096, 11008, 32, 32, None, 2048),
        bos_token_id=1,
        attention_bias=False,
        mlp_bias=False,
        **GRANITE_FACTORS,
    ),
    block=lambda s: pre_norm(
        s,
        granite_attention(s),
        mlp(s, bias=s.flag("mlp_bias")),
        residual_multiplier=scalar(s, "residual_multiplier"),
    ),
    client=granite_client,
    gguf=GGUFFamily("granite", neighbours=True, keys={"logit_scale": "logits_scaling"}),
)


def _smollm3_block(s: Settings) -> BlockConfig:
    """Some blocks have no rope: those alone may have a window."""
    turns = has_rope(s)
    slides = s.flag("use_sliding_window") and s.layer_type(FULL if turns else SLIDING) == SLIDING
    window = s.window()
    bias = s.flag("attention_bias")
    return pre_norm(
        s,
        attention(
            s,
            rope=rope(s) if turns else None,
            window=window if slides else 0,
            bias=bias,
            out_bias=bias,
        ),
        mlp(s, bias=s.flag("mlp_bias")),
    )


SMOLLM3 = Family(
    types=("smollm3",),
    architectures=("SmolLM3ForCausalLM",),
    defaults=usual(
        *(128256, 2048, 11008, 36, 16, 4, 32768),
        bos_token_id=128000,
        rope_theta=2e6,
        no_rope_layer_interval=4,
        tie_word_embeddings=True,
        use_sliding_window=False,
        attention_bias=False,
        mlp_bias=False,
        sliding_window=None,
    ),
    block=_smollm3_block,
    client=rms_client,
    gguf=GGUFFamily("smollm3", neighbours=True),
)

ERNIE4_5 = Family(
    types=("ernie4_5",),
    architectures=("Ernie4_5ForCausalLM",),
    defaults=usual(
        *(103424, 1024, 3072, 18, 16, 2, 131072),
        head_dim=128,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        rope_theta=500000.0,
        tie_word_embeddings=True,
        use_bias=False,
    ),
    block=lambda s: pre_norm(
        s,
        attention(s, rope=rope(s, interleaved=True), bias=s.flag("use_bias"), out_bias=s.flag("use_bias")),
        mlp(s, bias=s.flag("use_bias")),
    ),
    client=rms_client,
    gguf=GGUFFamily("ernie4_5", neighbours=True),
)


def hunyuan_rope(s: Settings) -> RopeConfig:
    """Its files call "dynamic" what only stretches theta, by ``alpha``; that q and k have norms, they say."""
    s.has("use_qk_norm")
    found = s.section("rope_scaling") or s.section("rope_parameters")
    alpha = None if found is None else found.optional_number("alpha", above=0.0)
    return rope(s, stretched=alpha)


HUNYUAN_V1_DENSE = Family(
    types=("hunyuan_v1_dense",),
    architectures=("HunYuanDenseV1ForCausalLM",),
    defaults=usual(
        *(290943, 4096, 11008, 32, 32, None, 2048), rms_norm_eps=1e-5, bos_token_id=1, attention_bias=False
    ),
    block=lambda s: pre_norm(
        s,
        attention(
            s,
            rope=hunyuan_rope(s),
            qk_norm=HeadNorm(rms(s), after_rope=True),
            bias=s.flag("attention_bias"),
            out_bias=s.flag("attention_bias"),
        ),
        mlp(s),
    ),
    client=rms_client,
    tensors={"self_attn.q_norm": "self_attn.query_layernorm", "self_attn.k_norm": "self_attn.key_layernorm"},
    gguf=GGUFFamily("hunyuan-dense"),
)

ROWS = (*(LLAMA, MISTRAL, MINISTRAL3, ARCEE, SEED_OSS, GRANITE, SMOLLM3, ERNIE4_5, HUNYUAN_V1_DENSE),)
