"""The rotary position settings of a block, read as transformers does."""

from __future__ import annotations

from typing import Any

from ...swarm.errors import UnsupportedModelError
from ..formats.blocks.rope import THETAS, RopeConfig
from ..formats.values.bounds import MAX_CONTEXT, SCALES
from ..formats.values.fields import Fields
from .settings import Settings

_SCALED = ("linear", "dynamic", "llama3", "yarn", "longrope", "proportional")
_WITH_ORIGINAL = ("llama3", "yarn", "longrope")
"""Types that know how long the context was before it was stretched; for the others it is the model's own."""


def rope(
    settings: Settings,
    kind: str = "",
    *,
    theta_key: str = "rope_theta",
    scaled: bool = True,
    partial: bool = False,
    interleaved: bool = False,
    head_dim: int | None = None,
    stretched: float | None = None,
) -> RopeConfig:
    """Of ``rope_parameters`` (transformers 5) or ``rope_scaling`` and ``rope_theta`` beside it (before).

    ``kind``: the type of layer, of a family whose settings may differ between types; in files of before,
    ``theta_key`` has that type's theta, and ``scaled`` says whether ``rope_scaling`` is for it. ``partial``:
    the family knows ``partial_rotary_factor``. ``interleaved``: it turns neighbours. ``head_dim``: dimensions
    that rotation is for, where that is not the head. ``stretched``: theta is so far as to make the slowest
    wave this many times as long, in place of what the type says.
    """
    part, is_own = _section(settings, kind, scaled)
    home = part if part.has("rope_theta") else settings
    theta = home.number(
        "rope_theta" if home is part else theta_key, 10_000.0, above=THETAS[0], below=THETAS[1]
    )
    size = head_dim or settings.head_dim
    name = part.text("rope_type", part.text("type", "default"))
    rotary_dim, turned = _rotary_dim(settings, part, size, partial, name)
    if stretched is not None:
        name, theta = "default", theta * stretched ** (rotary_dim / max(rotary_dim - 2, 1))
    common: dict[str, Any] = {
        "rotary_dim": rotary_dim,
        "turned_dim": turned,
        "theta": theta,
        "type": name,
        "interleaved": interleaved if settings.interleaved is None else settings.interleaved,
        "frequency_factors": settings.frequency_factors if scaled else (),
    }
    return _scaled(settings, part, common, is_own)


def _section(settings: Settings, kind: str, scaled: bool) -> tuple[Fields, bool]:
    """The rope settings for layers of a type, and whether they are for these alone."""
    found = settings.section("rope_scaling") or settings.section("rope_parameters") or Fields({}, "")
    for name, inner in found.inner():
        if name == kind:
            return inner, True
    for name in (name for name, _ in found.inner() if name not in ("rope_type", "type")):
        raise UnsupportedModelError(
            f"{found.named(name)}: rope settings of some layers"
            + (f", and none of {kind}" if kind else " are not supported for this family")
        )
    return (found if scaled else Fields({}, "")), False


def _rotary_dim(settings: Settings, part: Fields, size: int, partial: bool, kind: str) -> tuple[int, int]:
    """Dimensions that are rotated, and of the type "proportional" those among them that turn."""
    beside = settings.has("partial_rotary_factor")
    home = settings if beside and not part.has("partial_rotary_factor") else part
    factor = home.optional_number("partial_rotary_factor", above=0.0, below=1.0 + 1e-9)
    if factor is None or factor == 1.0:
        return size, size if kind == "proportional" else 0
    if not partial:
        raise UnsupportedModelError(
            f"{home.named('partial_rotary_factor')} is {factor}: this family has no rotary embedding over "
            "part of a head"
        )
    turned = int(size * factor)
    return (size, int(size * factor // 2) * 2) if kind == "proportional" else (turned, 0)


def _scaled(settings: Settings, part: Fields, common: dict[str, Any], is_own: bool) -> RopeConfig:
    kind, positions = common["type"], settings.positions
    common["original_max_position_embeddings"] = positions
    if part.has("attention_factor") and (settings.is_gguf or kind in ("yarn", "longrope")):
        common["attention_factor"] = part.optional_number("attention_factor")
    if kind not in _SCALED:
        return RopeConfig(**common)
    if kind in _WITH_ORIGINAL:
        original = part.integer("original_max_position_embeddings", positions, least=1, most=MAX_CONTEXT)
        if not is_own:  # the one beside the rope settings comes first
            original = settings.integer(
                "original_max_position_embeddings", original, least=1, most=MAX_CONTEXT
            )
        common["original_max_position_embeddings"] = original
    original = common["original_max_position_embeddings"]
    is_implied = kind in ("yarn", "longrope") and (
        part.is_null("factor") or (kind == "longrope" and not part.has("factor"))
    )
    if is_implied:
        common["factor"] = positions / original
    elif kind != "proportional" or part.has("factor"):
        common["factor"] = _scale(part, "factor")
    common |= {name: part.optional_number(name) for name in ("mscale", "mscale_all_dim")}
    if kind == "llama3":
        common |= {name: _scale(part, name) for name in ("low_freq_factor", "high_freq_factor")}
    elif kind == "yarn":
        common |= {
            "beta_fast": part.optional_number("beta_fast") or 32.0,
            "beta_slow": part.optional_number("beta_slow") or 1.0,
            "truncate": part.flag("truncate", True),
        }
    elif kind == "longrope":
        common |= {
            f"{name}_factors": part.numbers(f"{name}_factor", above=SCALES[0], below=SCALES[1])
            for name in ("short", "long")
        }
    return RopeConfig(**common)


def _scale(rope: Fields, key: str) -> float:
    return rope.number(key, above=SCALES[0], below=SCALES[1])
