"""A ``ModelConfig`` from a family's row and the settings of a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...swarm.errors import CheckpointError, UnsupportedModelError
from ...swarm.types import MAX_BLOCKS
from ..formats.blocks.block import BlockConfig
from ..formats.blocks.rope import lengthened
from ..formats.config import ModelConfig, NextConfig
from ..formats.values.bounds import MAX_VOCAB
from .family import Family
from .settings import FULL, Settings

NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("is_causal",), (True,)),
    **dict.fromkeys(("use_bidirectional_attention",), (False, None, "vision")),
    **dict.fromkeys(("is_encoder_decoder", "attention_bias", "mlp_bias"), (False,)),
    **dict.fromkeys(
        ("use_qk_norm", "qk_layernorm", "alibi", "use_alibi")
        + ("attn_temperature_tuning", "add_cross_attention", "use_bias", "use_qkv_bias", "qkv_bias")
        + ("lm_head_bias", "use_parallel_residual", "parallel_attn"),
        (False, None),
    ),
    **dict.fromkeys(
        ("attention_chunk_size", "attn_logit_softcapping", "final_logit_softcapping", "clip_qkv")
        + ("query_pre_attn_scalar", "attention_multiplier", "transformers_weights", "fusion_config")
        + ("compression_config", "kv_lora_rank"),
        (None,),
    ),
    **dict.fromkeys(
        ("logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier", "rotary_pct")
        + ("partial_rotary_factor",),
        (1, None),
    ),
    **dict.fromkeys(
        ("num_local_experts", "num_experts", "n_routed_experts", "num_kv_shared_layers"), (0, None)
    ),
    **dict.fromkeys(("no_rope_layers", "per_layer_config"), ([], {}, None)),
}
"""Keys that change what some families compute, and the values with which they change nothing. A family whose
row does not read them ignores them, in transformers as well: but a file that has them means another
computation."""


def model_config(
    family: Family, settings: Settings, *, eos_token_ids: tuple[int, ...], native_dtype: str
) -> ModelConfig:
    """CheckpointError for values of the wrong type, UnsupportedModelError for models we cannot run."""
    try:
        return _model_config(family, settings, eos_token_ids, native_dtype)
    except (CheckpointError, UnsupportedModelError) as error:
        if settings.where in error.message:
            raise
        # Of values that do not go together: what checks them knows no file.
        raise type(error)(f"{settings.where}: {error.message}", hint=error.hint) from None


def _model_config(
    family: Family, settings: Settings, eos_token_ids: tuple[int, ...], native_dtype: str
) -> ModelConfig:
    blocks = tuple(_blocks(family, settings))
    context = _context(settings.positions, blocks)
    _check_reach(family, settings, context)
    return ModelConfig(
        family=family.name,
        blocks=tuple(_without_vain_windows(blocks, context)),
        hidden_size=settings.hidden,
        vocab_size=settings.integer("vocab_size", least=1, most=MAX_VOCAB),
        max_position_embeddings=context,
        bos_token_id=settings.optional_integer("bos_token_id", most=MAX_VOCAB - 1),
        eos_token_ids=eos_token_ids,
        native_dtype=native_dtype,
        next_blocks=(behind := _next_blocks(family, settings)),
        next=_next(family, settings) if behind else None,
        tie_word_embeddings=settings.flag("tie_word_embeddings", False),
        **family.client(settings),
    )


def _next_blocks(family: Family, settings: Settings) -> int:
    """0 for a family without any: blocks behind the last then belong to another model."""
    key = "num_nextn_predict_layers"
    return (settings.optional_integer(key, most=MAX_BLOCKS) or 0) if key in family.defaults else 0


def _next(family: Family, settings: Settings) -> NextConfig | None:
    if family.next is None:
        return None
    own = settings.of(settings.n_blocks)
    return NextConfig(family.next.block(own), family.next.norm(own))


def _blocks(family: Family, settings: Settings) -> list[BlockConfig]:
    """Equal ones are one object."""
    known: dict[BlockConfig, BlockConfig] = {}
    found = []
    for number in range(settings.n_blocks):
        block = family.block(settings.of(number))
        found.append(known.setdefault(block, block))
    return found


def _context(positions: int, blocks: tuple[BlockConfig, ...]) -> int:
    ropes = {block.rope for block in blocks}
    return max((lengthened(positions, rope) for rope in ropes if rope is not None), default=positions)


def _without_vain_windows(blocks: tuple[BlockConfig, ...], context: int) -> list[BlockConfig]:
    """A window or a chunk as long as the context hides nothing."""
    known: dict[BlockConfig, BlockConfig] = {}
    for block in blocks:
        if block not in known:
            attention = block.attention
            if attention is not None and attention.reach >= context:
                known[block] = replace(block, attention=replace(attention, window=0, chunk=0))
            else:
                known[block] = block
    return [known[block] for block in blocks]


def _check_reach(family: Family, settings: Settings, context: int) -> None:
    """Of a family without windows: that the file asks for none. One that has them may have a file in which no
    block has one."""
    unread = settings.unread()
    if "layer_types" in unread and any(settings.of(n).layer_type() != FULL for n in range(settings.n_blocks)):
        raise UnsupportedModelError(
            f"{settings.named('layer_types')} has other types than {FULL}, which this family does not have"
        )
    has_none = "sliding_window" in unread and "sliding_window" not in family.defaults
    window = settings.window() if has_none else 0
    if 0 < window < context:
        raise UnsupportedModelError(
            f"{settings.named('sliding_window')} is {window}: this family has no sliding-window attention"
        )


def refuse_unknown(family: Family, settings: Settings) -> None:
    """UnsupportedModelError for a key that changes the result and that the family does not have. One that it
    has, and that was not read, is of a part that no block of the file has."""
    others = {*settings.unread()} - family.defaults.keys()
    neutral = {key: allowed for key, allowed in NEUTRAL.items() if key in others}
    for key, allowed in {**neutral, **family.fixed}.items():
        if not settings.is_one_of(key, allowed):
            raise UnsupportedModelError(
                f"{settings.named(key)} is {settings.shown(key)}, which is not supported"
            )
