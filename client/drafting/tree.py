"""Second guesses: what else may come in the place of a guess, and behind it.

A chain of guesses is sent in steps. A branch takes the place of one of them, and of those behind it in its
step; it is computed in the same step, and the hops forget it. Where the chain is wrong and the branch is
right, its tokens are certain: they are fed once more, before the next guesses.

Hops compute each branch by itself, so the rows of its step before it are computed for it once more. Such
rows cost what others do: a branch is sent if its guesses are worth all of its rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from .source import Guess, Kind

MOST_NODES = 32
"""The branches of one round have at most this many guesses."""
STEP_GUESSES = 3
"""Guesses of a chain in a step with branches: little is computed once more, and each hop is at work on one
such step while the hop behind it is on the one before."""
MOST_DEPTH = 7
"""Guesses of one branch, at most: if they are all right, they are fed once more in one step."""
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

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(guess.token for guess in self.guesses)


@dataclass(frozen=True, slots=True)
class Soil:
    """What branches grow from. ``reach``: the chance that all before the chain is right; ``chance``: of a
    guess, those before it being right. ``least``: the chance that is worth a row; ``held_up``: that is worth
    holding up a step by one; ``least_asked``: that is worth asking what follows. ``most`` guesses are taken,
    ``rows`` with what is computed once more, and ``room`` behind each other from the chain's first on.
    ``ask``: what follows the first guesses of the chain and those of a branch. ``allows``: whether the last
    of such a line of tokens may come there."""

    reach: float
    chance: Callable[[Guess], float]
    least: float
    least_asked: float
    held_up: float
    room: int
    rows: int
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


def is_second(kind: Kind) -> bool:
    return kind[0].endswith(SECOND)


def computed(branches: Iterable[Branch]) -> int:
    """Rows that hops compute for branches of one step."""
    return sum(branch.place + len(branch.guesses) for branch in branches)


async def grow(chain: Sequence[Guess], cut: Sequence[int], soil: Soil) -> tuple[Branch, ...]:
    """The branches that are worth their rows, of a ``chain`` that is cut into steps of so many guesses. The
    likeliest guesses come first."""
    places = _places(chain, cut, soil)
    left = [MOST_ROWS - size for size in cut]  # rows that each step may have besides
    taken: dict[int, list[Guess]] = {}
    worth: dict[int, float] = {}
    next_: list[tuple[float, int, Guess]] = []  # a heap: -chance, place, guess

    def offer(place: int, guess: Guess | None, before: float) -> None:
        if guess is None or place + len(taken.get(place, ())) >= soil.room:
            return
        chance = before * soil.chance(guess)
        if chance >= places[place].least and soil.allows([*line(place), guess.token]):
            heapq.heappush(next_, (-chance, place, guess))

    def line(place: int) -> list[int]:
        return [guess.token for guess in (*chain[:place], *taken.get(place, ()))]

    for place, guess in enumerate(chain):
        offer(place, second(guess), places[place].reach)
    count, all_left = 0, soil.rows
    while next_ and count < soil.most:
        negative, place, guess = heapq.heappop(next_)
        cost = 1 if place in taken else 1 + places[place].row
        if min(left[places[place].step], all_left) < cost:
            continue
        left[places[place].step] -= cost
        all_left -= cost
        taken.setdefault(place, []).append(guess)
        worth[place] = worth.get(place, 0.0) - negative
        count += 1
        if count < soil.most and -negative >= soil.least_asked and len(taken[place]) < MOST_DEPTH:
            offer(place, await soil.ask(line(place)), -negative)
    return tuple(
        Branch(place, tuple(guesses))
        for place, guesses in sorted(taken.items())
        if worth[place] >= places[place].least * (places[place].row + len(guesses))
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Of a guess of the chain: its ``step`` and the rows before it there, the chance that all before it are
    right, and the ``least`` chance of another guess there that is worth a row."""

    step: int
    row: int
    reach: float
    least: float


def _places(chain: Sequence[Guess], cut: Sequence[int], soil: Soil) -> list[_Place]:
    places: list[_Place] = []
    reach, guesses = soil.reach, iter(chain)
    for step, size in enumerate(cut):
        # If all before the step is right, its results are waited for.
        least = max(soil.least, soil.held_up * reach)
        for row, guess in enumerate(islice(guesses, size)):
            places.append(_Place(step, row, reach, least))
            reach *= soil.chance(guess)
    return places
