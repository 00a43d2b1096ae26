"""Parts of a block as most families name them: what a row is put together from."""

from __future__ import annotations

from typing import Any

from ...swarm.errors import UnsupportedModelError
from ..formats.blocks.attention import AttentionConfig
from ..formats.blocks.block import BlockConfig
from ..formats.blocks.mlp import MlpConfig
from ..formats.blocks.norm import NormConfig
from ..formats.values.bounds import MAX_WIDTH, SCALES
from ..formats.values.shown import shown
from .names import fused
from .rope import rope
from .settings import Settings

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""transformers' names of activations, and ours."""


def rms(settings: Settings, offset: float = 0.0, **more: Any) -> NormConfig:
    """``offset``: of HuggingFace files; llama.cpp's converter has added it."""
    return NormConfig(eps(settings, "rms_norm_eps"), offset=0.0 if settings.is_gguf else offset, **more)


def layer_norm(
    settings: Settings, key: str = "layer_norm_eps", offset: float = 0.0, **more: Any
) -> NormConfig:
    return NormConfig(eps(settings, key), "layer", offset=0.0 if settings.is_gguf else offset, **more)


def eps(settings: Settings, key: str) -> float:
    return settings.number(key, above=0.0, below=SCALES[1])


def attention(settings: Settings, **more: Any) -> AttentionConfig:
    """Of the usual keys; ``more``: fields that the family has otherwise, ``rope`` too."""
    head_dim = settings.head_dim
    own = {"scale": head_dim**-0.5, **more}
    if "rope" not in own:
        own["rope"] = rope(settings)
    return AttentionConfig(settings.heads, settings.kv_heads, head_dim, **own)


def mlp(
    settings: Settings, inner: str = "intermediate_size", activation: str = "hidden_act", **more: Any
) -> MlpConfig:
    """``inner``, ``activation``: the keys that say them."""
    return MlpConfig(
        settings.integer(inner, least=1, most=MAX_WIDTH), activation_of(settings, activation), **more
    )


def activation_of(settings: Settings, key: str = "hidden_act") -> str:
    name = settings.text(key)
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"{settings.named(key)}: activation {shown(name)} is not supported",
            hint=f"Supported: {', '.join(_ACTIVATIONS)}.",
        )
    return _ACTIVATIONS[name]


def scalar(settings: Settings, key: str, default: float = 1.0) -> float:
    """A factor, positive."""
    return settings.number(key, default, above=0.0, below=SCALES[1])


def pre_norm(
    settings: Settings, attention: AttentionConfig, mlp: MlpConfig | None, **more: Any
) -> BlockConfig:
    """Llama's block: a norm before attention and one before the MLP."""
    norm = more.pop("norm", None) or rms(settings)
    return BlockConfig(attention, mlp, norm=norm, mlp_norm=norm, **more)


def has_rope(settings: Settings) -> bool:
    """Of families in which every so many blocks have none: ``no_rope_layers`` has 1 for those that do."""
    given = settings.numbers("no_rope_layers")
    interval = settings.integer("no_rope_layer_interval", least=1)
    if given and len(given) != settings.n_blocks:
        raise settings.wrong("no_rope_layers", f"a number for each of {settings.n_blocks} blocks")
    return bool(given[settings.block]) if given else (settings.block + 1) % interval != 0


def usual(
    vocab: int,
    hidden: int,
    inner: int,
    blocks: int,
    heads: int,
    kv_heads: int | None,
    positions: int,
    **more: Any,
) -> dict[str, Any]:
    """Defaults of a configuration class, under transformers' names; ``more``: the others, under their own."""
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        **more,
    }


def rms_client(settings: Settings) -> dict[str, Any]:
    """Of most families: a final norm, and nothing else."""
    return {"final_norm": rms(settings)}


GATE_UP = fused("mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj")
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GGUF_GATE_UP = fused("ffn_up", "mlp.gate_proj", "mlp.up_proj")
GGUF_QKV = {
    part: (name, fused("attn_qkv", *QKV)[part])
    for part, name in zip(QKV, ("attn_q", "attn_k", "attn_v"), strict=True)
}
"""What several families have in one tensor; of GGUF files q, k and v alone, too."""
