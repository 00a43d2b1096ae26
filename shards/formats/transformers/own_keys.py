"""config.json before transformers sees it: what it may say, and how much.

Its keys are those of the family's own configuration class. What every class of transformers takes besides,
such as the attention to use, kernels, or code of a checkpoint, chooses code, so it never arrives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ....swarm.errors import UnsupportedModelError
from ..values.bounds import MAX_VOCAB
from ..values.shown import shown

LONGEST = 1 << 17
"""Tokens of the longest sequence: some models make a table of so many rows, or a bias at each step."""
CONTEXTS = (
    *("max_position_embeddings", "max_seq_len", "max_sequence_length", "n_positions", "n_ctx", "seq_length"),
)
"""What configurations call the longest sequence's length."""
_COUNT = re.compile(r"(^|_)(n|num|depth)(_|$).*(layer|block|expert)|expert.*(num|count)|layers?$|blocks$")
"""Keys that say how many modules there are."""
_MAX_COUNT = 1 << 15
"""At most this many modules of a kind are asked for."""
_BASE = re.compile(r"theta|base")
"""Keys of rotary bases, which may be larger than other numbers and cost nothing."""
_MAX_BASE = 1 << 53
_ROPES = ("default", "linear", "llama3", "proportional", "yarn")
"""Rotations that depend on a token's position alone. Those of "dynamic" and "longrope" depend on how many
tokens are computed by then, so on how a text is cut."""
_OLDER = {
    *("first_k_dense_replace", "global_attn_every_n_layers", "global_head_dim", "global_rope_theta"),
    *("linear_attn_config", "local_rope_theta", "moe_layer_freq", "n_embed", "num_experts"),
    *("num_global_key_value_heads", "partial_rotary_factor", "rope_local_base_freq", "rope_scaling"),
    *("rope_theta", "rotary_emb_base", "rotary_pct", "sliding_window_pattern", "sliding_window_size"),
    *("sparse_attention_config", "swa_rope_theta", "tie_embedding", "use_sliding_window"),
    *("tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"),
}
"""Keys of older files that the classes of several families still read, or that mean the same in all."""
_CHOOSES_CODE = re.compile(r"(_impl|_implementation|_kernels)$")


def own_keys(document: dict[str, Any], where: str) -> dict[str, Any]:
    """``document``, config.json of a type that transformers knows, with its family's own keys alone, and no
    longer sequence than ``LONGEST``. UnsupportedModelError for numbers without end, and for rotations that
    depend on how a text is cut."""
    family = document["model_type"]
    own = _own(document, CONFIG_MAPPING[family], where)
    for key, value in numbers(own):
        most = _MAX_BASE if _BASE.search(key) else _MAX_COUNT if _COUNT.search(key) else MAX_VOCAB
        if abs(value) > most:
            raise UnsupportedModelError(f"{key} in {where} is {shown(value)}, expected at most {most}")
    _check_ropes(own, where)
    return own | {"model_type": family}


def _own(values: dict[str, Any], kind: Any, where: str) -> dict[str, Any]:
    every = {field.name for field in fields(PreTrainedConfig)}
    known = {field.name for field in fields(kind)} - every | kind.attribute_map.keys() | _OLDER
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known or _CHOOSES_CODE.search(key):
            continue
        if key in CONTEXTS and isinstance(value, int):
            value = min(value, LONGEST)
        elif key in kind.sub_configs and isinstance(value, dict):
            value = _part(value, kind.sub_configs[key], f"{key} of {where}")
        found[key] = value
    return found


def _part(values: dict[str, Any], kind: Any, where: str) -> dict[str, Any]:
    """Of a configuration inside another; some say their own type."""
    kind, name = getattr(kind, "config_class", kind), values.get("model_type")
    if isinstance(kind, type) and issubclass(kind, PreTrainedConfig):
        return _own(values, kind, where)
    if not isinstance(name, str) or name not in CONFIG_MAPPING:
        raise UnsupportedModelError(f"transformers knows no model of the type {shown(name)} in {where}")
    return _own(values, CONFIG_MAPPING[name], where) | {"model_type": name}


def _check_ropes(value: Any, where: str, key: str = "") -> None:
    """In all layers' settings, and in those of each type of layers."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        if "rope" in key and name in ("rope_type", "type") and inner not in _ROPES:
            raise UnsupportedModelError(
                f"{key} in {where} asks for rotations of the type {shown(inner)}, which depend on how a text "
                "is cut",
                hint=f"A family without a row needs one of {', '.join(_ROPES)}. For short texts alone, the "
                "setting may be removed from config.json.",
            )
        _check_ropes(inner, where, f"{key}.{name}" if key else name)


def numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number within ``value``, and the key that is nearest to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner, key)
    elif isinstance(value, int):
        yield key, value
