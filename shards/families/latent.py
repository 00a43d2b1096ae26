"""Latent attention, and an indexer before it, as most families name them: what rows are put together from."""

from __future__ import annotations

import math

from ..formats.blocks.attention import AttentionConfig, IndexerConfig, LatentConfig
from ..formats.blocks.norm import NormConfig
from ..formats.blocks.rope import RopeConfig
from ..formats.values.bounds import MAX_CONTEXT, MAX_WIDTH
from .names import Names, either, latent_heads
from .rope import rope
from .settings import Settings

LATENT: Names = {"self_attn.kv_a_proj": "self_attn.kv_a_proj_with_mqa", **latent_heads("self_attn.kv_b_proj")}
GGUF_LATENT: Names = either(
    {"self_attn.k_b_proj": "attn_k_b", "self_attn.v_b_proj": "attn_v_b"}, latent_heads("attn_kv_b")
)
"""Older files have one tensor for both."""
_INDEXER = "self_attn.indexer"
GGUF_INDEXER: Names = {
    f"{_INDEXER}.wq_b": "indexer.attn_q_b",
    f"{_INDEXER}.wk": "indexer.attn_k",
    f"{_INDEXER}.k_norm": "indexer.k_norm",
    f"{_INDEXER}.weights_proj": "indexer.proj",
}
_LATENT_EPS = 1e-6
"""Of the norms of latents and of an indexer's keys: transformers' classes have it from no key."""


def indexer(settings: Settings, *, interleaved: bool) -> IndexerConfig:
    """DeepSeek-V3.2's."""
    return IndexerConfig(
        settings.integer("index_n_heads", least=1, most=MAX_WIDTH),
        settings.integer("index_head_dim", least=1, most=MAX_WIDTH),
        settings.integer("index_topk", least=1, most=MAX_CONTEXT),
        NormConfig(_LATENT_EPS, "layer", bias=True),
        interleaved,
    )


def latent(
    settings: Settings,
    *,
    interleaved: bool = True,
    indexer: IndexerConfig | None = None,
    has_head_dim: bool = True,
    has_rope: bool = True,
) -> AttentionConfig:
    """DeepSeek's attention. ``has_head_dim``: the family reads ``head_dim``, and there it is the
    turned part's. ``has_rope``: that part is turned."""
    turned = settings.integer("qk_rope_head_dim", least=1, most=MAX_WIDTH)
    nope, value = (
        _gguf_sizes(settings, turned)
        if settings.is_gguf
        else (
            settings.integer("qk_nope_head_dim", least=1, most=MAX_WIDTH),
            settings.integer("v_head_dim", least=1, most=MAX_WIDTH),
        )
    )
    turns = rope(settings, interleaved=interleaved, head_dim=turned) if has_rope else None
    bias = settings.flag("attention_bias", False)
    settings.has("num_key_value_heads")  # it says nothing here
    is_read = settings.has("head_dim") and has_head_dim and not settings.is_gguf
    if is_read and settings.optional_integer("head_dim") != turned:
        raise settings.wrong("head_dim", f"{turned}, as qk_rope_head_dim is")
    return AttentionConfig(
        settings.heads,
        1,
        nope + turned,
        (nope + turned) ** -0.5 * _mscale(turns) ** 2,
        turns,
        bias=bias,
        out_bias=bias,
        latent=LatentConfig(
            settings.integer("kv_lora_rank", least=1, most=MAX_WIDTH),
            nope,
            turned,
            value,
            NormConfig(_LATENT_EPS),
            settings.optional_integer("q_lora_rank", most=MAX_WIDTH) or 0,
            indexer,
        ),
    )


def _gguf_sizes(settings: Settings, turned: int) -> tuple[int, int]:
    """Of a head's key without its turned part, and of its value. Older files have them as
    ``key_length`` and ``value_length``, which now are those of what is cached."""
    keys, cached = (settings.optional_integer(key, most=MAX_WIDTH) for key in ("qk_head_dim", "head_dim"))
    values, before = (
        settings.optional_integer(key, most=MAX_WIDTH) for key in ("v_head_dim", "value_length")
    )
    whole = keys or cached
    if whole is None or whole <= turned:
        raise settings.wrong("qk_head_dim", f"a whole number above {turned}, the turned dimensions")
    return whole - turned, values or before or settings.integer("v_head_dim", least=1)


def _mscale(turns: RopeConfig | None) -> float:
    """YaRN's factor on the scale of attention, where the file has ``mscale_all_dim``."""
    if turns is None:
        return 1.0
    by = turns.mscale_all_dim or 0.0
    return 0.1 * by * math.log(turns.factor) + 1.0 if by and turns.factor > 1 else 1.0
