"""What files of a family call a model's tensors, and what one tensor of them holds of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file. ``parts``: those of ours that it holds, one below the other; none: the one it is
    named for. ``groups``: "" for each part whole, "rows" for a row of each in turn, "heads" for each head's
    rows of every part in turn, "keys" for those of each key head of a recurrence. ``transposed``: the file
    has columns as rows; ``turned``: so do these parts, head by head. ``log``: the file's vector is -exp of
    ours. Of an expert, a name without ``{}`` is a stack of all experts'."""

    name: str
    parts: tuple[str, ...] = ()
    groups: str = ""
    transposed: bool = False
    turned: tuple[str, ...] = ()
    log: bool = False


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
        key: tuple(chain.from_iterable(options(each[key]) for each in names if key in each))
        for key in chain(*names)
    }


def options(stored: str | Stored | tuple[str | Stored, ...]) -> list[Stored]:
    """The alternatives that a name of ours has."""
    several = stored if isinstance(stored, tuple) else (stored,)
    return [Stored(each) if isinstance(each, str) else each for each in several]
