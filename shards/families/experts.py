"""Blocks of experts as most families name them: what rows are put together from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..formats.blocks.attention import AttentionConfig
from ..formats.blocks.block import BlockConfig
from ..formats.blocks.experts import MAX_EXPERTS, ExpertsConfig, RouterConfig
from ..formats.blocks.mlp import MlpConfig
from .names import Names, either, mlp_named, stack
from .pieces import mlp, pre_norm, scalar
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
