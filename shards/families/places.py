"""Where a model's tensors are in a file of its family."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from ..formats.blocks.attention import AttentionConfig
from ..formats.blocks.block import BlockConfig
from ..formats.blocks.rope import RopeConfig
from ..formats.blocks.state import RecurrenceConfig
from ..formats.config import ModelConfig
from ..formats.tensors import NEXT_PROJECTION, block_tensors, client_tensors, next_tensors
from .family import NextFamily
from .names import Names, Stored, options

_EXPERT = re.compile(r"(?<=mlp\.experts\.)[0-9]+(?=\.)")
_KIND = re.compile(r"\.(weight|bias)$")


class Pairs(NamedTuple):
    """Neighbours that turn together in the file, and halves with us: ``heads`` of ``size`` rows, of which
    ``rotated`` rows from ``start`` on are such pairs."""

    heads: int
    size: int
    start: int
    rotated: int


class Place(NamedTuple):
    """Where one of our tensors, of ``shape``, lies in the file: tensor ``stored`` of shape ``whole``. Of a
    stack this ``number``, of that the ``rows`` (or of each group of ``rows[2]`` rows ``rows[1]`` from
    ``rows[0]`` on), put in order by ``pairs``. ``transposed`` or, each of ``turned`` groups of its rows,
    turned. ``log``: as of ``Stored``. ``wrapped``: the file has each value in a dimension of its own;
    ``less``: what is taken off the values."""

    stored: str
    shape: tuple[int, ...]
    whole: tuple[int, ...]
    number: int | None = None
    rows: slice | tuple[int, int, int] | None = None
    pairs: Pairs | None = None
    transposed: bool = False
    turned: int = 0
    log: bool = False
    wrapped: bool = False
    less: float = 0.0

    def of(self, expert: str) -> Place:
        """The same of the expert with this number: experts of a block are alike."""
        number = None if self.number is None else int(expert)
        return self._replace(stored=self.stored.replace("{}", expert), number=number)


class _Scope(NamedTuple):
    """The tensors of one block, or of the client (``settings`` None): ``shapes`` by their names in it.
    ``begin``: what the file's names of them begin with."""

    shapes: Mapping[str, tuple[int, ...]]
    begin: str = ""
    settings: BlockConfig | None = None

    @property
    def experts(self) -> int:
        experts = self.settings.experts if self.settings else None
        return experts.count if experts else 1

    def groups(self, kind: str) -> int:
        """How many groups ``Stored.groups`` means."""
        attention = self.settings.attention if self.settings else None
        state = self.settings.state if self.settings else None
        if kind == "heads" and attention is not None:
            return attention.heads
        return state.key_heads if kind == "keys" and isinstance(state, RecurrenceConfig) else 1


def places(config: ModelConfig, names: Names, in_block: str, present: Container[str]) -> dict[str, Place]:
    """Our name → its place, of every tensor of the model. ``in_block``: what the names in block ``{}`` begin
    with. ``present``: what the file has."""
    client = _Scope(client_tensors(config))
    found = {name: _place(name, client, names, present) for name in client.shapes}
    for number in range(config.n_blocks):
        found |= _in_block(config, number, names, in_block.format(number), present)
    return found


def next_places(
    config: ModelConfig, row: NextFamily, names: Names, present: Container[str]
) -> dict[str, Place]:
    """The same of the blocks that guess further tokens, and of what is beside each: under the name of its
    block, too. Nothing where the file does not have them. ``names``: as in other blocks."""
    beside = next_tensors(config)
    if not beside:
        return {}
    found: dict[str, Place] = {}
    for number in range(config.n_blocks, config.n_blocks + config.next_blocks):
        theirs = number - config.n_blocks if row.apart else number
        found |= _in_block(config.with_next, number, names, row.in_block.format(theirs), present)
        scope = _Scope(beside, row.beside.format(theirs))
        for name in beside:
            found[f"model.layers.{number}.{name}"] = _place(name, scope, row.tensors, present)
    first = f"model.layers.{config.n_blocks}.{NEXT_PROJECTION}.weight"
    return found if first in found and found[first].stored in present else {}


def _in_block(
    config: ModelConfig, number: int, names: Names, begin: str, present: Container[str]
) -> dict[str, Place]:
    """Of block ``number``, in which the file's names begin with ``begin``."""
    own = f"model.layers.{number}."
    shapes = {name.removeprefix(own): shape for name, shape in block_tensors(config, number).items()}
    block = _Scope(shapes, begin, config.blocks[number])
    found: dict[str, Place] = {}
    known: dict[str, Place] = {}
    for name in shapes:
        expert = _EXPERT.search(name)
        pattern = name if expert is None else f"{name[: expert.start()]}{{}}{name[expert.end() :]}"
        if pattern not in known:
            known[pattern] = _place(name, block, names, present)
        found[own + name] = known[pattern] if expert is None else known[pattern].of(expert[0])
    return found


def _place(name: str, scope: _Scope, names: Names, present: Container[str]) -> Place:
    """Of an expert, ``{}`` stands for its number in ``stored``."""
    expert = _EXPERT.search(name)
    number = expert[0] if expert else ""
    stem, end = _EXPERT.sub("{}", name), ""
    if stem not in names and (kind := _KIND.search(name)):
        stem, end = stem.removesuffix(kind[0]), kind[0]

    def in_file(stored: Stored) -> str:
        return scope.begin + stored.name.replace("{}", number) + end

    alternatives = options(names.get(stem, stem))
    stored = next((each for each in alternatives if in_file(each) in present), alternatives[0])
    shape = scope.shapes[name]
    place = Place(scope.begin + stored.name + end, shape, shape, log=stored.log)
    if stored.parts:
        shapes = {part: scope.shapes.get((part + end).replace("{}", number)) for part in stored.parts}
        known = {part: theirs for part, theirs in shapes.items() if theirs is not None}  # v may be k
        place = _part(place, stem, stored, known, scope.groups(stored.groups))
    if stored.transposed and len(shape) > 1:
        place = place._replace(whole=place.whole[::-1], transposed=True)
    if expert is not None and "{}" not in stored.name:
        place = place._replace(whole=(scope.experts, *place.whole), number=int(number))
    attention = None if scope.settings is None else scope.settings.attention
    return place if attention is None else place._replace(pairs=_pairs(name, attention))


def _part(
    place: Place, mine: str, stored: Stored, shapes: Mapping[str, tuple[int, ...]], groups: int
) -> Place:
    """``place`` among the other parts of ``stored``, which have ``shapes``."""
    sizes: dict[str, int] = {}
    cols: tuple[int, ...] = ()
    for part, shape in shapes.items():
        if part in stored.turned:  # (groups * a, b) of ours is (groups * b, a) of theirs
            sizes[part], cols = shape[1], (shape[0] // groups,)
        else:
            sizes[part], cols = shape[0] // groups, shape[1:]
    each, before = sum(sizes.values()), [*sizes].index(mine)
    start = sum([*sizes.values()][:before])
    place = place._replace(whole=(each * groups, *cols))
    if stored.groups == "rows":
        return place._replace(rows=slice(before, None, len(sizes)))
    if groups == 1:
        return place._replace(rows=slice(start, start + sizes[mine]))
    return place._replace(rows=(start, sizes[mine], each), turned=groups if mine in stored.turned else 0)


def _pairs(name: str, attention: AttentionConfig) -> Pairs | None:
    """Rows to be put in order: of q and k, and of norms of their rows."""
    rope = attention.rope
    if rope is not None and name.startswith("self_attn.indexer."):
        return _index_pairs(name.split(".")[2], attention, rope)
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


def _index_pairs(part: str, attention: AttentionConfig, rope: RopeConfig) -> Pairs | None:
    """Those of an indexer's q, and of its k and the norm of that."""
    indexer = attention.latent.indexer if attention.latent else None
    if indexer is None or not indexer.interleaved or part not in ("wq_b", "wk", "k_norm"):
        return None
    return Pairs(indexer.heads if part == "wq_b" else 1, indexer.head_dim, 0, rope.rotary_dim)


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
    return (prod(shape[:-1]), shape[-1]) if shape else (1, 1)
