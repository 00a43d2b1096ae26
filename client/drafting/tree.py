"""Second guesses: what else may come in the place of a guess, and behind it.

A chain of guesses is sent in steps. A branch takes the place of one of them, and of those behind it in its
step; it is computed in the same step, and the hops forget it. Where the chain is wrong and the branch is
right, its tokens are certain: they are fed once more, before the next guesses.

Hops compute each branch by itself, so the rows of its step before it are computed for it once more. Such
rows cost what others do: a branch is sent if its guesses are worth all of its rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from .source import Guess

MOST_NODES = 32
"""The branches of one round have at most this many guesses."""
STEP_GUESSES = 3
"""Guesses of a chain in a step with branches: little is computed once more, and each hop is at work on one
such step while the hop behind it is on the one before."""
MOST_ROWS = 48
"""Rows that hops compute for a step with branches, at most: its own, and those of each branch with what it
needs once more."""
SECOND = " second"
"""Behind a source's name: second guesses are kinds of their own, whose chances are learned."""


@dataclass(frozen=True, slots=True)
class Branch:
    """``guesses`` in the place of the one at ``place`` of a chain, and behind it."""

    place: int
    guesses: tuple[Guess, ...]


@dataclass(frozen=True, slots=True)
class Soil:
    """What branches grow from. ``reach``: the chance that all before the chain is right; ``chance``: of a
    guess, those before it being right. ``least``: the chance that is worth a row. ``most`` guesses, and
    ``room`` of them behind each other from the chain's first on, are taken. ``ask``: what follows the first
    guesses of the chain and those of a branch. ``allows``: whether such a line of tokens is possible."""

    reach: float
    chance: Callable[[Guess], float]
    least: float
    room: int
    ask: Callable[[Sequence[int]], Awaitable[Guess | None]]
    allows: Callable[[Sequence[int]], bool]
    most: int = MOST_NODES


def second(guess: Guess) -> Guess | None:
    """The other guess of the same place; None: there is none."""
    if guess.second is None or guess.second[0] == guess.token:
        return None
    token, chance = guess.second
    source, number = guess.kind
    return Guess(token, chance, (source + SECOND, number))


def sizes(chain: Sequence[Guess], soil: Soil, first: int, most: int) -> list[int]:
    """How many guesses of ``chain`` go into each step: ``first``, which may be none, into one that has
    certain tokens before them; then few, for as long as there may be branches; then ``most``."""
    ends, reach = 0, soil.reach
    for place, guess in enumerate(chain, start=1):
        other = second(guess)
        if other is not None and reach * soil.chance(other) >= soil.least:
            ends = place
        reach *= soil.chance(guess)
    cut, sent = [first], first
    while sent < len(chain):
        size = min(STEP_GUESSES if sent < ends else most, len(chain) - sent)
        cut.append(size)
        sent += size
    return cut


async def branches(
    chain: Sequence[Guess], cut: Sequence[int], certain: int, soil: Soil
) -> tuple[Branch, ...]:
    """The branches that are worth their rows, of a ``chain`` that is cut into steps of so many guesses, the
    first of them behind ``certain`` tokens. The likeliest guesses come first."""
    rows, left = _places(cut, certain)
    taken: dict[int, list[Guess]] = {}
    worth: dict[int, float] = {}
    next_: list[tuple[float, int, Guess]] = []  # a heap: -chance, place, guess

    def offer(place: int, guess: Guess | None, before: float) -> None:
        if guess is None or place + len(taken.get(place, ())) >= soil.room:
            return
        chance = before * soil.chance(guess)
        if chance >= soil.least and soil.allows([*line(place), guess.token]):
            heapq.heappush(next_, (-chance, place, guess))

    def line(place: int) -> list[int]:
        return [guess.token for guess in (*chain[:place], *taken.get(place, ()))]

    reach = soil.reach
    for place, guess in enumerate(chain):
        offer(place, second(guess), reach)
        reach *= soil.chance(guess)
    count = 0
    while next_ and count < soil.most:
        negative, place, guess = heapq.heappop(next_)
        step, row = rows[place]
        cost = 1 if place in taken else 1 + row
        if left[step] < cost:
            continue
        left[step] -= cost
        taken.setdefault(place, []).append(guess)
        worth[place] = worth.get(place, 0.0) - negative
        count += 1
        if count < soil.most:
            offer(place, await soil.ask(line(place)), -negative)
    return tuple(
        Branch(place, tuple(guesses))
        for place, guesses in sorted(taken.items())
        if worth[place] >= soil.least * (rows[place][1] + len(guesses))
    )


def _places(cut: Sequence[int], certain: int) -> tuple[list[tuple[int, int]], list[int]]:
    """For each guess its step and the rows before it there; for each step how many rows more it may have."""
    rows, left = [], []
    for step, size in enumerate(cut):
        before = 0 if step else certain
        rows += [(step, before + number) for number in range(size)]
        left.append(MOST_ROWS - before - size)
    return rows, left
