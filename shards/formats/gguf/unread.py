"""Keys of a GGUF file's architecture that a family's row does not read: each has to mean nothing, or what the
model computes anyway."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ....swarm.errors import UnsupportedModelError
from ...families.settings import Settings
from ..blocks.attention import AttentionConfig
from ..blocks.experts import ExpertsConfig, RouterConfig
from ..config import ModelConfig
from ..values.fields import Fields

HARMLESS = frozenset(
    ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "pooling_type", "decoder_start_token_id")
    + ("attention.layer_norm_epsilon", "attention.group_norm_epsilon", "rope.dimension_count")
    + ("use_parallel_residual", "rope.dimension_sections")
)
"""Keys that change nothing: those of other heads than a language model's, of norms that a family does not
have, of positions in pictures (a text's are the same in all sections), and of parallel blocks, which
llama.cpp's converter of early 2024 wrote for any model. Keys of experts and windows change nothing if there
are none: llama.cpp writes them for any model."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attention.causal",), (True,)),
    **dict.fromkeys(
        ("attention.clamp_kqv", "attention.max_alibi_bias", "attn_logit_softcapping")
        + ("final_logit_softcapping", "expert_shared_count")
        + ("rope.scaling.yarn_log_multiplier", "attention.shared_kv_layers", "expert_count"),
        (0,),
    ),
    **dict.fromkeys(
        ("logit_scale", "residual_scale", "embedding_scale", "expert_weights_scale", "expert_group_count"),
        (0, 1),
    ),
    **dict.fromkeys(("rope.scaling.yarn_ext_factor",), (1, -1)),
    **dict.fromkeys(("rope.scaling.yarn_attn_factor",), (1,)),
}
"""Keys that a family's row may not read, and the values with which they change nothing."""
GATING = {1: "softmax", 2: "sigmoid", 3: "softmax_of_used"}
"""llama.cpp's numbers of what makes scores of the router's outputs; 0 is what the family has."""
_OF_ATTENTION: dict[str, Callable[[AttentionConfig], float | None]] = {
    "attention.scale": lambda attention: attention.scale,
    "attention.sliding_window": lambda attention: attention.window,
    "attention.key_length_swa": lambda attention: attention.head_dim,
    "attention.value_length_swa": lambda attention: attention.head_dim,
    "rope.dimension_count_swa": lambda attention: attention.rope.rotary_dim if attention.rope else None,
    "rope.freq_base_swa": lambda attention: attention.rope.theta if attention.rope else None,
}
_OF_EXPERTS: dict[str, Callable[[ExpertsConfig], float | None]] = {
    "expert_feed_forward_length": lambda experts: experts.mlp.inner,
    "expert_shared_feed_forward_length": lambda experts: experts.shared.inner if experts.shared else None,
    "expert_group_used_count": lambda experts: experts.router.used_groups,
    "expert_weights_norm": lambda experts: (
        experts.router.renormalise or experts.router.scores == "softmax_of_used"
    ),
}
"""Keys that a family's row may not read, and what a block computes, which they have to say."""


def check_unread(own: Fields, settings: Settings, translated: Mapping[str, str], config: ModelConfig) -> None:
    """UnsupportedModelError unless the model has everything that we compute, and nothing else. ``own``: the
    architecture's keys; ``translated``: those that its family may read, with transformers' names."""
    attention = next((block.attention for block in config.blocks if block.attention), None)
    keys = own.integer("attention.key_length", attention.head_dim if attention else 1)
    if attention and attention.latent is None and own.integer("attention.value_length", keys) != keys:
        raise UnsupportedModelError(
            f"{own.named('attention.value_length')} is {own.shown('attention.value_length')} in heads of "
            f"{keys}: keys and values of different sizes are not supported"
        )
    unread = {*settings.unread()}
    for key in own.all_keys():
        # A row that reads a window may give it to no block.
        doubtful = key == "attention.sliding_window" or translated.get(key) in unread
        if doubtful or not own.was_read(key):
            _check_neutral(own, key, config)


def _check_neutral(own: Fields, key: str, config: ModelConfig) -> None:
    """Zero means off: some tools write every key that llama.cpp has, for any architecture."""
    if key not in NEUTRAL and own.is_one_of(key, (0,)):
        return
    experts = [block.experts for block in config.blocks if block.experts]
    attentions = [block.attention for block in config.blocks if block.attention]
    windowed = [each for each in attentions if each.window]
    is_windowed = bool(windowed) or not own.is_one_of("attention.sliding_window", (0,))
    of_none = not is_windowed if key.endswith("_swa") else key.startswith("expert_") and not experts
    if of_none and key != "expert_count":
        return
    known = True
    if key in NEUTRAL:
        neutral = own.is_one_of(key, NEUTRAL[key])
    elif key == "attention.sliding_window" and own.integer(key) >= config.max_position_embeddings:
        neutral = True
    elif key in _OF_ATTENTION:
        some = windowed or attentions if key.endswith("_swa") else attentions
        neutral = _is_among(own.number(key), map(_OF_ATTENTION[key], some))
    elif key in _OF_EXPERTS:
        neutral = _is_among(own.value(key), map(_OF_EXPERTS[key], experts))
    elif key == "expert_gating_func":
        neutral = all(GATING.get(own.integer(key)) in _gatings(each.router) for each in experts)
    else:
        is_of_none = key == "feed_forward_length" and all(block.mlp is None for block in config.blocks)
        neutral, known = key in HARMLESS or is_of_none, False
    if neutral:
        return
    raise UnsupportedModelError(
        f"{own.named(key)} is {own.shown(key)}"
        + (", which is not supported" if known else ": what it means is not known here"),
        hint="" if known else "Use a file that a current converter of llama.cpp has made.",
    )


def _is_among(value: Any, computed: Iterable[float | None]) -> bool:
    """Whether some block computes with the value. Numbers of a file are float32."""
    return type(value) in (bool, int, float) and any(
        each is not None and math.isclose(value, each, rel_tol=1e-6) for each in computed
    )


def _gatings(router: RouterConfig) -> set[str]:
    """What a file may name it. Softmax of all, divided by the sum of those chosen, is softmax of these."""
    is_whole = router.scores == "softmax" and router.renormalise and not router.correction
    is_whole = is_whole or router.scores == "softmax_of_used"
    return {"softmax", "softmax_of_used"} if is_whole else {router.scores}
