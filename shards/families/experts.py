"""Blocks of experts and latent attention as most families name them: what rows are put together from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ..formats.blocks.attention import AttentionConfig, IndexerConfig, LatentConfig
from ..formats.blocks.block import BlockConfig
from ..formats.blocks.experts import MAX_EXPERTS, ExpertsConfig, RouterConfig
from ..formats.blocks.mlp import MlpConfig
from ..formats.blocks.norm import NormConfig
from ..formats.blocks.rope import RopeConfig
from ..formats.values.bounds import MAX_CONTEXT, MAX_WIDTH
from .names import Names, either, latent_heads, mlp_named, stack
from .pieces import mlp, pre_norm, scalar
from .rope import rope
from .settings import Settings

_EACH = "mlp.experts.{}"


def each_expert(theirs: str, *names: str) -> dict[str, str]:
    """``mlp_named`` of experts' matrices alone, as what ``stack`` gives."""
    return {f"{name}.weight": f"{own}.weight" for name, own in mlp_named(_EACH, theirs, *names).items()}


EXPERTS: Names = {
    "mlp.router": "mlp.gate",
    "mlp.router.correction": "mlp.gate.e_score_correction_bias",
    **either(
        each_expert(_EACH),
        stack("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        each_expert("mlp.switch_mlp"),
    ),
}
"""Each expert's matrices, as on the hub; all experts' in one tensor, as transformers has them; MLX's way."""
LATENT: Names = {"self_attn.kv_a_proj": "self_attn.kv_a_proj_with_mqa", **latent_heads("self_attn.kv_b_proj")}
GGUF_LATENT: Names = either(
    {"self_attn.k_b_proj": "attn_k_b", "self_attn.v_b_proj": "attn_v_b"}, latent_heads("attn_kv_b")
)
"""Older files have one tensor for both."""
INDEXER = "self_attn.indexer"
GGUF_INDEXER: Names = {
    f"{INDEXER}.wq_b": "indexer.attn_q_b",
    f"{INDEXER}.wk": "indexer.attn_k",
    f"{INDEXER}.k_norm": "indexer.k_norm",
    f"{INDEXER}.weights_proj": "indexer.proj",
}
LATENT_EPS = 1e-6
"""Of the norms of latents and of an indexer's keys: transformers' classes have it from no key."""


def experts(
    settings: Settings,
    router: RouterConfig,
    *,
    count: str = "num_experts",
    used: str = "num_experts_per_tok",
    inner: str = "moe_intermediate_size",
    **more: Any,
) -> ExpertsConfig:
    """``count``, ``used``, ``inner``: the keys that say them; ``more``: other fields."""
    return ExpertsConfig(
        settings.integer(count, least=1, most=MAX_EXPERTS),
        settings.integer(used, least=1, most=MAX_EXPERTS),
        more.pop("mlp", None) or mlp(settings, inner),
        router,
        **more,
    )


def shared(
    settings: Settings, count: str = "n_shared_experts", inner: str = "moe_intermediate_size", **more: Any
) -> MlpConfig | None:
    """Experts for all tokens, which are one MLP of as many times the inner size; None for none."""
    number = settings.optional_integer(count, most=MAX_EXPERTS) or 0
    one = mlp(settings, inner, **more)
    return replace(one, inner=number * one.inner) if number else None


def sparse_or_dense(
    settings: Settings, attention: AttentionConfig, experts: ExpertsConfig | None, **more: Any
) -> BlockConfig:
    """Llama's block, with experts where there are any in place of its MLP. ``more``: of the MLP."""
    dense = mlp(settings, **more)
    return pre_norm(settings, attention, None if experts else dense, experts=experts)


def softmax_router(settings: Settings) -> RouterConfig:
    """Shares of all experts, of which ``norm_topk_prob`` may make a sum of 1 for those used."""
    return RouterConfig(renormalise=settings.flag("norm_topk_prob", False))


def corrected_router(settings: Settings) -> RouterConfig:
    """DeepSeek-V3's (arXiv 2412.19437) and, of GGUF files, DeepSeek-V2's, too."""
    scores = settings.text("scoring_func", "sigmoid") if settings.is_gguf else "sigmoid"
    return RouterConfig(
        scores,
        correction=settings.flag("router_correction"),
        groups=groups(settings, "n_group"),
        used_groups=groups(settings, "topk_group"),
        group_scores="top2" if scores == "sigmoid" else "max",
        renormalise=settings.flag("norm_topk_prob", False),
        sum_floor=1e-20,
        scaling=scalar(settings, "routed_scaling_factor"),
    )


def groups(settings: Settings, key: str) -> int:
    """1 where the file says nothing; of GGUF files 0 means the same."""
    return settings.optional_integer(key, least=0 if settings.is_gguf else 1, most=MAX_EXPERTS) or 1


def indexer(settings: Settings, *, interleaved: bool) -> IndexerConfig:
    """DeepSeek-V3.2's."""
    return IndexerConfig(
        settings.integer("index_n_heads", least=1, most=MAX_WIDTH),
        settings.integer("index_head_dim", least=1, most=MAX_WIDTH),
        settings.integer("index_topk", least=1, most=MAX_CONTEXT),
        NormConfig(LATENT_EPS, "layer", bias=True),
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
            NormConfig(LATENT_EPS),
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
