"""Which faults come when: a seeded schedule, in which every kind comes about equally often."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault. ``hold_s``: how long it lasts, shortest and longest; (0, 0) for what is over at
    once. ``role``: the place in a route of the node that has it: any, first or last."""

    name: str
    hold_s: tuple[float, float] = (0.0, 0.0)
    role: str = "any"


KINDS = (
    Kind("kill -9"),
    Kind("SIGTERM"),
    Kind("frozen", (3.0, 4.0)),
    Kind("p2pd of a node"),
    Kind("p2pd of a client"),
    Kind("partition", (3.0, 4.0)),
    Kind("hostile garbage", (0.5, 1.0), "first"),
    Kind("hostile garbage, last hop", (0.5, 1.0), "last"),
    Kind("hostile size", (0.5, 1.0), "first"),
    Kind("hostile size, last hop", (0.5, 1.0), "last"),
    Kind("hostile nan", (0.5, 1.0), "first"),
    Kind("hostile nan, last hop", (0.5, 1.0), "last"),
    Kind("hostile rows", (0.5, 1.0), "first"),
    Kind("hostile rows, last hop", (0.5, 1.0), "last"),
    Kind("clock skew", (1.5, 3.0)),
    Kind("full cache", (1.0, 2.0)),
)
KILL = KINDS[0]
SKEW_S = (2.0, 4.0)
"""A wrong clock is off by so much, either way."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault to come ``pause_s`` after the one before. ``pick`` in [0, 1) chooses among those that could
    have it, ``amount`` in [0, 1) is for what else the kind needs to choose."""

    kind: Kind
    pause_s: float
    hold_s: float
    pick: float
    amount: float


def schedule(kinds: Sequence[Kind], pause_s: tuple[float, float], seed: int) -> Iterator[Planned]:
    """Endless; every kind once, in random order, then every kind again. The same for the same seed."""
    rng = random.Random(seed)
    while True:
        for kind in rng.sample(kinds, len(kinds)):
            yield Planned(kind, rng.uniform(*pause_s), rng.uniform(*kind.hold_s), rng.random(), rng.random())


def chosen(names: str) -> tuple[Kind, ...]:
    """The kinds whose names begin with one of ``names``, separated by commas. Raises ValueError."""
    found: list[Kind] = []
    for name in (each.strip() for each in names.split(",")):
        matching = [kind for kind in KINDS if name and kind.name.startswith(name)]
        if not matching:
            known = ", ".join(kind.name for kind in KINDS)
            raise ValueError(f"{name!r} is no kind of fault; there are: {known}")
        found += [kind for kind in matching if kind not in found]
    return tuple(found)
