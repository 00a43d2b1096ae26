"""Files that mlx-lm's converter wrote of families with convolutions: it turns the weights of these, so that a
channel's taps are (taps, 1), and adds to norms what is added to their weights elsewhere when they are used.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..formats.config import ModelConfig
from ..formats.tensors import FINAL_NORM
from .places import Place


def written_by_mlx(
    config: ModelConfig, found: dict[str, Place], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Place]:
    """``found``, with what such a file has otherwise. ``shapes``: of the file's tensors."""
    convs = [
        name
        for name, place in found.items()
        if name.endswith("conv.weight")
        and place.whole[-1] > 1
        and shapes.get(place.stored) == (*place.whole, 1)
    ]
    if not convs:
        return found
    offsets = {name: offset for name, offset in _offsets(config).items() if offset and name in found}
    return (
        found
        | {name: found[name]._replace(wrapped=True) for name in convs}
        | {name: found[name]._replace(less=offset) for name, offset in offsets.items()}
    )


def _offsets(config: ModelConfig) -> dict[str, float]:
    """Of norms, by the names of their weights."""
    offsets = {FINAL_NORM: config.final_norm.offset}
    for number, block in enumerate(config.blocks):
        heads = block.attention.qk_norm if block.attention else None
        qk_norm = None if heads is None else heads.norm
        norms = {
            "input_layernorm": block.norm,
            "post_attention_layernorm": block.mlp_norm,
            "self_attn.q_norm": qk_norm,
            "self_attn.k_norm": qk_norm,
        }
        for name, norm in norms.items():
            if norm is not None:
                offsets[f"model.layers.{number}.{name}.weight"] = norm.offset
    return offsets
