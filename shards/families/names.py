"""Where a model's tensors are in a file of its family: names, and what one tensor of it holds of ours."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from math import prod
from typing import NamedTuple

import numpy as np

from ..formats.block_config import AttentionConfig
from ..formats.config import ModelConfig
from ..formats.tensors import block_tensors, client_tensors

_EXPERT = re.compile(r"(?<=mlp\.experts\.)[0-9]+(?=\.)")
_KIND = re.compile(r"\.(weight|bias)$")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file. ``parts``: those of ours that it holds, one below the other; none: the one it is
    named for. ``groups``: "" for each part whole, "rows" for a row of each in turn, "heads" for each head's
    rows of every part in turn. ``transposed``: the file has columns as rows; ``turned``: so do these parts,
    head by head. Of an expert, a name without ``{}`` is a stack of all experts'."""

    name: str
    parts: tuple[str, ...] = ()
    groups: str = ""
    transposed: bool = False
    turned: tuple[str, ...] = ()


Names = Mapping[str, str | Stored | tuple[str | Stored, ...]]
"""Our name → the file's; of several, the first that the file has. An expert's number is ``{}`` in both. A
name without ``.weight`` or ``.bias`` is for both."""


def fused(name: str, *parts: str, groups: str = "", transposed: bool = False) -> dict[str, Stored]:
    """The file's tensor ``name`` holds ``parts`` of ours."""
    return {part: Stored(name, parts, groups, transposed) for part in parts}


def mlp_named(
    ours: str, theirs: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> dict[str, str | Stored]:
    """An MLP, or with ``{}`` each expert's, that the file calls ``theirs``, and its matrices ``gate`` …"""
    return {
        f"{ours}.gate_proj": f"{theirs}.{gate}",
        f"{ours}.up_proj": f"{theirs}.{up}",
        f"{ours}.down_proj": f"{theirs}.{down}",
    }


def stack(
    gate_up: str, down: str, kind: str = "weight", *, groups: str = "", transposed: bool = False
) -> dict[str, Stored]:
    """The file has all experts' gates and ups in tensor ``gate_up`` and their downs in ``down``, as it calls
    them whole. ``kind``: "weight" or "bias"."""
    gate, up, own = (f"mlp.experts.{{}}.{part}_proj.{kind}" for part in ("gate", "up", "down"))
    return {
        **fused(gate_up, gate, up, groups=groups, transposed=transposed),
        own: Stored(down, transposed=transposed),
    }


def latent_heads(name: str) -> dict[str, Stored]:
    """The file's tensor ``name`` has what makes a head's keys and its values of the latent, head by head."""
    keys = "self_attn.k_b_proj"
    return {
        part: replace(each, groups="heads", turned=(keys,))
        for part, each in fused(name, keys, "self_attn.v_b_proj").items()
    }


def either(*names: Names) -> dict[str, tuple[str | Stored, ...]]:
    """What some files have in one way, and others in another."""
    return {
        key: tuple(chain.from_iterable(_options(each[key]) for each in names if key in each))
        for key in chain(*names)
    }


class Pairs(NamedTuple):
    """Neighbours that turn together in the file, and halves with us: ``heads`` of ``size`` rows, of which
    ``rotated`` rows from ``start`` on are such pairs."""

    heads: int
    size: int
    start: int
    rotated: int


class Place(NamedTuple):
    """Where one of our tensors, of ``shape``, lies in the file: tensor ``stored`` of shape ``whole``. Of a
    stack this ``number``, of that the ``rows``, put in order by ``pairs``. ``transposed`` or, each of
    ``turned`` groups of its rows, turned."""

    stored: str
    shape: tuple[int, ...]
    whole: tuple[int, ...]
    number: int | None = None
    rows: slice | tuple[int, int, int] | None = None
    pairs: Pairs | None = None
    transposed: bool = False
    turned: int = 0


def places(config: ModelConfig, names: Names, in_block: str, present: Container[str]) -> dict[str, Place]:
    """Our name → its place, of every tensor of the model. ``in_block``: what the names in block ``{}`` begin
    with. ``present``: what the file has."""
    found: dict[str, Place] = {}
    client = client_tensors(config)
    for name in client:
        found[name] = _place(config, None, name, client, names, "", present)
    for block in range(config.n_blocks):
        begin = f"model.layers.{block}."
        inside = {name.removeprefix(begin): shape for name, shape in block_tensors(config, block).items()}
        for name in inside:
            found[begin + name] = _place(config, block, name, inside, names, in_block.format(block), present)
    return found


def _place(
    config: ModelConfig,
    block: int | None,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    names: Names,
    begin: str,
    present: Container[str],
) -> Place:
    shape = shapes[name]
    expert = _EXPERT.search(name)
    pattern = _EXPERT.sub("{}", name) if expert else name
    kind = match[0] if (match := _KIND.search(name)) else ""
    known = names.get(pattern)
    if known is None:
        known, end = names.get(pattern.removesuffix(kind), pattern.removesuffix(kind)), kind
    else:
        end = ""
    options = [Stored(each) if isinstance(each, str) else each for each in _options(known)]
    number = expert[0] if expert else ""
    stored = next(
        (each for each in options if begin + each.name.replace("{}", number) + end in present), options[0]
    )
    attention = None if block is None else config.blocks[block].attention
    is_stack = expert is not None and "{}" not in stored.name
    rows, whole, turned = _rows(pattern, end, stored, shapes, number, attention)
    if stored.transposed and len(whole) > 1:
        whole = whole[::-1]
    if is_stack:
        whole = (_experts(config, block), *whole)
    return Place(
        begin + stored.name.replace("{}", number) + end,
        shape,
        whole,
        number=int(number) if is_stack else None,
        rows=rows,
        pairs=None if attention is None else _pairs(name, attention),
        transposed=stored.transposed and len(shape) > 1,
        turned=turned,
    )


def _options(known: str | Stored | tuple[str | Stored, ...]) -> tuple[str | Stored, ...]:
    return known if isinstance(known, tuple) else (known,)


def _experts(config: ModelConfig, block: int | None) -> int:
    experts = None if block is None else config.blocks[block].experts
    return experts.count if experts else 1


def _rows(
    pattern: str,
    end: str,
    stored: Stored,
    shapes: Mapping[str, tuple[int, ...]],
    number: str,
    attention: AttentionConfig | None,
) -> tuple[slice | tuple[int, int, int] | None, tuple[int, ...], int]:
    """Which rows of the stored matrix (of one expert) are ours; its shape; and groups to be turned, or 0."""
    shape = shapes[pattern.replace("{}", number)]
    if not stored.parts:
        return None, shape, 0
    groups = attention.heads if stored.groups == "heads" and attention is not None else 1
    mine = pattern.removesuffix(end) if end else pattern
    sizes: dict[str, int] = {}
    cols: tuple[int, ...] = ()
    for part in stored.parts:
        theirs = shapes.get((part + end).replace("{}", number))
        if theirs is None:
            continue  # such as v where values are keys
        if part in stored.turned:  # (groups * a, b) of ours is (groups * b, a) of theirs
            sizes[part], cols = theirs[1], (theirs[0] // groups,)
        else:
            sizes[part], cols = theirs[0] // groups, theirs[1:]
    each = sum(sizes.values())
    start = 0
    for part, size in sizes.items():
        if part == mine:
            break
        start += size
    whole = (each * groups, *cols)
    if stored.groups == "rows":
        return slice([*sizes].index(mine), None, len(sizes)), whole, 0
    if groups == 1:
        return slice(start, start + sizes[mine]), whole, 0
    return (start, sizes[mine], each), whole, groups if mine in stored.turned else 0


def _pairs(name: str, attention: AttentionConfig) -> Pairs | None:
    """Rows to be put in order: of q and k, and of norms of their rows."""
    rope = attention.rope
    if rope is None or not rope.interleaved or not name.startswith("self_attn."):
        return None
    part = name.split(".")[1]
    if (latent := attention.latent) is not None:
        if part == "kv_a_proj":
            return Pairs(1, latent.kv_rank + latent.rope_dim, latent.kv_rank, rope.rotary_dim)
        if part == ("q_b_proj" if latent.q_rank else "q_proj"):
            return Pairs(attention.heads, attention.head_dim, latent.nope_dim, rope.rotary_dim)
        return None
    heads = {"q": attention.heads, "k": attention.kv_heads}.get(part[0])
    if heads is None or part[1:] not in ("_proj", "_norm"):
        return None
    norm = attention.qk_norm
    if part[1:] == "_norm" and norm is not None and norm.over == "head" and not norm.per_head:
        heads = 1
    return Pairs(heads, attention.head_dim, 0, rope.rotary_dim)


@lru_cache(maxsize=32)
def row_order(pairs: Pairs) -> np.ndarray:
    """Which row of the file is our row i. Whole rows move, so quantized ones need no decoding."""
    head = np.arange(pairs.size)
    end = pairs.start + pairs.rotated
    head[pairs.start : end] = head[pairs.start : end].reshape(-1, 2).T.reshape(-1)
    order = (np.arange(pairs.heads)[:, None] * pairs.size + head).reshape(-1)
    order.flags.writeable = False
    return order


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, cols) as a tensor lies in a file."""
    return prod(shape[:-1]), shape[-1]
