"""The rotary position settings of a ``config.json``, read as transformers does."""

from __future__ import annotations

from ....swarm.errors import UnsupportedModelError
from ..bounds import MAX_CONTEXT, SCALES
from ..fields import Fields
from ..rope_config import THETAS, RopeConfig

_SCALED = ("linear", "dynamic", "llama3", "yarn")
_WITH_ORIGINAL = ("llama3", "yarn")
"""Types that know how long the context was before it was stretched; for the others it is the model's own."""


def hf_rope(read: Fields, positions: int, rotary_dim: int) -> RopeConfig:
    """``read``: the whole configuration, with ``rope_parameters`` (transformers 5) or ``rope_scaling`` and
    ``rope_theta`` beside it (before). ``positions``: its max_position_embeddings."""
    rope = read.section("rope_scaling") or read.section("rope_parameters") or Fields({}, "")
    home = rope if rope.has("rope_theta") else read
    theta = home.number("rope_theta", 10_000.0, above=THETAS[0], below=THETAS[1])
    for part in (rope, read):
        if part.optional_number("partial_rotary_factor") not in (None, 1.0):
            raise UnsupportedModelError(
                f"{part.named('partial_rotary_factor')} is {part.shown('partial_rotary_factor')}: rotary "
                "embedding over part of a head is not supported"
            )
    kind = rope.text("rope_type", rope.text("type", "default"))
    for name, _ in rope.inner():
        raise UnsupportedModelError(f"{rope.named(name)}: rope settings of some layers are not supported")
    if kind not in _SCALED:
        return RopeConfig(rotary_dim, theta=theta, type=kind, original_max_position_embeddings=positions)
    original = positions
    if kind in _WITH_ORIGINAL:
        original = rope.integer("original_max_position_embeddings", positions, least=1, most=MAX_CONTEXT)
        # The one beside the rope settings comes first.
        original = read.integer("original_max_position_embeddings", original, least=1, most=MAX_CONTEXT)
    is_implied = kind == "yarn" and rope.is_null("factor")
    factor = positions / original if is_implied else _scale(rope, "factor")
    if kind == "llama3":
        return RopeConfig(
            rotary_dim,
            theta=theta,
            type=kind,
            factor=factor,
            low_freq_factor=_scale(rope, "low_freq_factor"),
            high_freq_factor=_scale(rope, "high_freq_factor"),
            original_max_position_embeddings=original,
        )
    if kind != "yarn":
        return RopeConfig(
            rotary_dim, theta=theta, type=kind, factor=factor, original_max_position_embeddings=original
        )
    return RopeConfig(
        rotary_dim,
        theta=theta,
        type=kind,
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=rope.optional_number("beta_fast") or 32.0,
        beta_slow=rope.optional_number("beta_slow") or 1.0,
        attention_factor=rope.optional_number("attention_factor"),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
    )


def _scale(rope: Fields, key: str) -> float:
    return rope.number(key, above=SCALES[0], below=SCALES[1])
