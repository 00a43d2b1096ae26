"""Gemma, of all generations. Gemma 3 and 4 that see are served as their text part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ....swarm.errors import UnsupportedModelError
from ...formats.blocks.attention import AttentionConfig, HeadNorm
from ...formats.blocks.block import BlockConfig, SideConfig
from ...formats.blocks.experts import ExpertsConfig, RouterConfig
from ...formats.blocks.mlp import MlpConfig
from ...formats.config import SidebandConfig
from ...formats.values.bounds import MAX_VOCAB, MAX_WIDTH, SOFTCAPS
from ...formats.values.fields import Fields
from ..experts import experts
from ..family import Family, GGUFFamily
from ..names import Names, fused, stack
from ..pieces import activation_of, attention, mlp, pre_norm, rms, usual
from ..rope import rope
from ..settings import FULL, SLIDING, Settings, every
from .llama import VISION

SANDWICH: Names = {
    "self_attn.out_norm": "post_attention_layernorm",
    "post_attention_layernorm": "pre_feedforward_layernorm",
    "mlp.out_norm": "post_feedforward_layernorm",
}
"""Norms before and after attention and MLP."""
OF_ANOTHER = rf"{VISION}|.*self_attn\.(k_proj|v_proj|k_norm)\..*"
"""What files have for nothing: those of blocks that read another's keys and values, too."""
THETA = {FULL: "rope_theta", SLIDING: "rope_local_base_freq"}
"""Where files without rope settings of each type have its theta."""
_BLOCKS_OF_27B = (46, 62)
"""Of Gemma 2 and 3: the models whose scale of attention is not that of a head's size."""


def _client(s: Settings, offset: float = 1.0) -> dict[str, Any]:
    return {
        "final_norm": rms(s, offset),
        "embedding_multiplier": s.hidden**0.5,
        "logit_softcap": _softcap(s, "final_logit_softcapping"),
    }


def _softcap(s: Settings, key: str) -> float:
    return s.optional_number(key, above=SOFTCAPS[0], below=SOFTCAPS[1]) or 0.0


def _scale(s: Settings) -> float:
    """``query_pre_attn_scalar``, which GGUF files leave to the number of blocks."""
    if not s.is_gguf:
        return s.number("query_pre_attn_scalar", above=0.0, below=MAX_WIDTH) ** -0.5
    return (s.hidden / s.heads if s.n_blocks in _BLOCKS_OF_27B else s.head_dim) ** -0.5


def sandwich(
    s: Settings, attention: AttentionConfig, mlp: MlpConfig, offset: float, **more: Any
) -> BlockConfig:
    norm = rms(s, offset)
    return BlockConfig(
        attention, mlp, norm=norm, mlp_norm=norm, attention_out_norm=norm, mlp_out_norm=norm, **more
    )


def _activation(s: Settings) -> MlpConfig:
    """Files of the first Gemma say "gelu" and mean its approximation."""
    found = mlp(s)
    return MlpConfig(found.inner, "gelu_tanh" if found.activation == "gelu" else found.activation)


GEMMA = Family(
    types=("gemma",),
    architectures=("GemmaForCausalLM",),
    defaults=usual(
        *(256000, 3072, 24576, 28, 16, 16, 8192),
        head_dim=256,
        hidden_act="gelu_pytorch_tanh",
        bos_token_id=2,
        tie_word_embeddings=True,
        attention_bias=False,
    ),
    block=lambda s: pre_norm(
        s,
        attention(s, bias=s.flag("attention_bias"), out_bias=s.flag("attention_bias")),
        _activation(s),
        norm=rms(s, 1.0),
    ),
    client=lambda s: {"final_norm": rms(s, 1.0), "embedding_multiplier": s.hidden**0.5},
    gguf=GGUFFamily("gemma"),
)


def _gemma2_block(s: Settings) -> BlockConfig:
    bias = s.flag("attention_bias")
    slides = s.layer_type(every(2)) == SLIDING
    return sandwich(
        s,
        attention(
            s,
            scale=_scale(s),
            window=s.window() if slides else 0,
            softcap=_softcap(s, "attn_logit_softcapping"),
            bias=bias,
            out_bias=bias,
        ),
        mlp(s, activation="hidden_activation"),
        1.0,
    )


GEMMA2 = Family(
    types=("gemma2",),
    architectures=("Gemma2ForCausalLM",),
    defaults=usual(
        *(256000, 2304, 9216, 26, 8, 4, 8192),
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
        bos_token_id=2,
        tie_word_embeddings=True,
        attention_bias=False,
        query_pre_attn_scalar=256,
        sliding_window=4096,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
    ),
    block=_gemma2_block,
    client=_client,
    tensors=SANDWICH,
    gguf=GGUFFamily(  # files of its first days have none of these
        "gemma2",
        settings={
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
)


def _gemma3_block(s: Settings) -> BlockConfig:
    pattern = s.integer("sliding_window_pattern", least=1)
    kind = s.layer_type(every(pattern))
    turned = rope(s, kind, theta_key=THETA[kind], scaled=kind == FULL)
    return sandwich(
        s,
        attention(
            s,
            scale=_scale(s),
            rope=turned,
            window=s.window() if kind == SLIDING else 0,
            qk_norm=HeadNorm(rms(s, 1.0)),
            bias=s.flag("attention_bias"),
            out_bias=s.flag("attention_bias"),
        ),
        mlp(s, activation="hidden_activation"),
        1.0,
    )


GEMMA3 = Family(
    types=("gemma3_text",),
    architectures=("Gemma3ForCausalLM",),
    defaults=usual(
        *(262208, 2304, 9216, 26, 8, 4, 131072),
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
        bos_token_id=2,
        tie_word_embeddings=True,
        attention_bias=False,
        query_pre_attn_scalar=256,
        sliding_window=4096,
        final_logit_softcapping=None,
        sliding_window_pattern=6,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
    ),
    block=_gemma3_block,
    client=_client,
    tensors=SANDWICH,
    ignored=VISION,
    wrappers=("gemma3",),
    gguf=GGUFFamily("gemma3", settings={"rope_local_base_freq": 1e4}),
)


def _gemma4_kind(s: Settings) -> str:
    last = s.block == s.n_blocks - 1
    return FULL if last else s.layer_type(every(6))


def _gemma4_block(s: Settings) -> BlockConfig:
    kind, kv_of = _gemma4_kind(s), kv_of_kind(s, _gemma4_kind)
    bias = s.flag("attention_bias")
    own: dict[str, Any] = {"window": s.window() if kind == SLIDING else 0}
    if kind == FULL:
        shares = s.flag("attention_k_eq_v")
        s = s.with_values(_of_full_layers(s, shares))
    if kv_of is None:
        own["v_norm"] = rms(s, weighted=False)
        own["keys_as_values"] = kind == FULL and s.flag("attention_k_eq_v")
    return sandwich(
        s,
        attention(
            s,
            scale=1.0,
            rope=rope(s, kind, theta_key=THETA[kind], scaled=kind == FULL, partial=True),
            qk_norm=HeadNorm(rms(s)),
            bias=bias,
            out_bias=bias,
            **own,
        ),
        _gemma4_mlp(s, kv_of),
        0.0,
        experts=_gemma4_experts(s),
        scalar=True,
        side=side(s),
        kv_of=kv_of,
    )


def _beside(s: Settings) -> int:
    """Values that a block reads of a token beside the residual; 0: none."""
    return s.optional_integer("hidden_size_per_layer_input", most=MAX_WIDTH) or 0


def side(s: Settings) -> SideConfig | None:
    beside = _beside(s)
    return SideConfig(beside, activation_of(s, "hidden_activation"), rms(s)) if beside else None


def kv_of_kind(s: Settings, kind_of: Callable[[Settings], str]) -> int | None:
    """Of the last ``num_kv_shared_layers``: the last block before them that is of this one's kind."""
    shared = s.optional_integer("num_kv_shared_layers", most=s.n_blocks) or 0
    first = s.n_blocks - shared
    if s.block < first:
        return None
    for block in reversed(range(first)):
        if kind_of(s.of(block)) == kind_of(s):
            return block
    raise UnsupportedModelError(
        f"{s.named('num_kv_shared_layers')} is {shared}: no block before these is like block {s.block}"
    )


def _gemma4_mlp(s: Settings, kv_of: int | None) -> MlpConfig:
    """GGUF files have each block's own inner size."""
    found = mlp(s, activation="hidden_activation")
    is_wide = s.flag("use_double_wide_mlp", False) and kv_of is not None
    return replace(found, inner=2 * found.inner) if is_wide else found


def _gemma4_experts(s: Settings) -> ExpertsConfig | None:
    """Beside the dense MLP, with norms of their own."""
    if not (s.optional_integer("num_experts") if s.is_gguf else s.flag("enable_moe_block", False)):
        return None
    norm = rms(s)
    return experts(
        s,
        RouterConfig(expert_scale=True, norm=rms(s, weighted=False)),
        used="top_k_experts",
        mlp=mlp(s, "moe_intermediate_size", "hidden_activation"),
        norm=norm,
        dense_out_norm=norm,
        out_norm=norm,
    )


def _of_full_layers(s: Settings, shares: bool) -> dict[str, Any]:
    """Head sizes of blocks without a window, of ``per_layer_config`` or of keys of their own."""
    if s.is_given("per_layer_config"):  # which is empty where blocks of both kinds are alike
        layers = s.section("per_layer_config") or Fields({}, s.where)
        own = (part for name, part in layers.inner() if name.isdecimal() and int(name) == s.block)
        return {
            key: part.integer(key, least=1, most=MAX_WIDTH)
            for part in own
            for key in ("head_dim", "num_key_value_heads")
            if part.has(key)
        }
    heads = s.optional_integer("num_global_key_value_heads", least=1, most=MAX_WIDTH) if shares else None
    size = s.integer("global_head_dim", least=1, most=MAX_WIDTH)
    return {"head_dim": size, **({} if heads is None else {"num_key_value_heads": heads})}


def _gemma4_client(s: Settings) -> dict[str, Any]:
    found = sideband_client(s)
    own, vocab = found.get("sideband"), s.integer("vocab_size", least=1, most=MAX_VOCAB)
    if own is not None and own.vocab_size < vocab:
        raise UnsupportedModelError(
            f"{s.named('vocab_size_per_layer_input')} is {own.vocab_size}, fewer than the {vocab} tokens"
        )
    return found


def sideband_client(s: Settings) -> dict[str, Any]:
    """A GGUF file has rows for each token."""
    found = _client(s, 0.0)
    if beside := _beside(s):
        key = "vocab_size" if s.is_gguf else "vocab_size_per_layer_input"
        found["sideband"] = SidebandConfig(
            values=beside,
            vocab_size=s.integer(key, least=1, most=MAX_VOCAB),
            norm=rms(s),
            projection_scale=s.hidden**-0.5,
            embedding_scale=beside**0.5,
            scale=0.5**0.5,
        )
    return found


_GEMMA4_EXPERTS: Names = {
    "mlp.router.weight": "router.proj.weight",
    "mlp.router.scale": "router.scale",
    "mlp.router.expert_scale": "router.per_expert_scale",
    **stack("experts.gate_up_proj", "experts.down_proj"),
    "mlp.experts_norm": "pre_feedforward_layernorm_2",
    "mlp.dense_out_norm": "post_feedforward_layernorm_1",
    "mlp.experts_out_norm": "post_feedforward_layernorm_2",
}

GEMMA4 = Family(
    types=("gemma4_text",),
    architectures=("Gemma4ForCausalLM",),
    defaults=usual(
        *(262144, 2304, 9216, 30, 8, 4, 131072),
        head_dim=256,
        global_head_dim=512,
        hidden_activation="gelu_pytorch_tanh",
        bos_token_id=2,
        tie_word_embeddings=True,
        attention_bias=False,
        sliding_window=512,
        final_logit_softcapping=None,
        hidden_size_per_layer_input=256,
        vocab_size_per_layer_input=262144,
        num_kv_shared_layers=0,
        use_double_wide_mlp=False,
        attention_k_eq_v=False,
        rope_parameters={
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        },
    ),
    block=_gemma4_block,
    client=_gemma4_client,
    tensors={**SANDWICH, "scalar.weight": "layer_scalar", **_GEMMA4_EXPERTS},
    ignored=OF_ANOTHER,
    wrappers=("gemma4",),
    gguf=GGUFFamily(
        "gemma4",
        settings={"rope_local_base_freq": 1e4},
        keys={
            "attention.key_length": "global_head_dim",
            "attention.key_length_swa": "head_dim",
            "embedding_length_per_layer_input": "hidden_size_per_layer_input",
            "attention.shared_kv_layers": "num_kv_shared_layers",
            "expert_used_count": "top_k_experts",
        },
        tensors=fused("ffn_gate_up_exps", "mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"),
    ),
)

ROWS = (GEMMA, GEMMA2, GEMMA3, GEMMA4)
