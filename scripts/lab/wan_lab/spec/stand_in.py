"""Drafts whose chances are known: guesses of an answer that was made before, right as often as asked.

Whether a guess is right is decided for each place of the answer by itself, by a seed, whatever was guessed
before: so the same places are hard under every policy, and the least number of trips can be counted.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from swarm_node.client.drafting.source import Guess

DECK = 100
"""Of so many places in a row, exactly the share that was asked for is right, not about that share."""


Guessed = Callable[[int], bool]
"""Whether the token of an answer that has this number can be guessed."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """``chances``: that the first guess is right, for the first token behind a certain one, the second, and
    so on; the last of them for all further ones. ``second``: that the second guess is, of all places (it is
    never right where the first is). ``most``: tokens that are guessed behind a certain one at most; None:
    as many as are asked for. ``guess_s``: what guessing a token takes."""

    chances: tuple[float, ...]
    second: float = 0.0
    most: int | None = None
    guess_s: float = 0.0
    seed: int = 1

    def chance(self, depth: int) -> float:
        """``depth``: 0 for the first token behind a certain one."""
        return self.chances[min(depth, len(self.chances) - 1)]

    def is_right(self, number: int, depth: int = 0) -> bool:
        """The first guess of token ``number`` of the answer."""
        return luck(self.seed, number) < self.chance(depth)

    def is_second_right(self, number: int, depth: int = 0) -> bool:
        first = self.chance(depth)
        return first <= luck(self.seed, number) < first + self.second

    def is_among_two(self, number: int, depth: int = 0) -> bool:
        return self.is_right(number, depth) or self.is_second_right(number, depth)

    def as_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in StandIn.__slots__}

    @classmethod
    def of(cls, fields: dict[str, object]) -> StandIn:
        """What ``as_dict`` has become as JSON."""
        chances = fields["chances"]
        assert isinstance(chances, Sequence)
        return cls(**{**fields, "chances": tuple(chances)})  # type: ignore[arg-type]


def luck(seed: int, number: int) -> float:
    """From 0 to 1, evenly among DECK places in a row."""
    return (_deck(seed, number // DECK)[number % DECK] + 0.5) / DECK


@cache
def _deck(seed: int, block: int) -> tuple[int, ...]:
    cards = list(range(DECK))
    random.Random(seed * 1_000_003 + block).shuffle(cards)
    return tuple(cards)


def trips_needed(tokens: int, guessed: Guessed) -> int:
    """Trips of an answer of ``tokens`` tokens at the least. The first token comes with the prompt. A trip
    begins with a token that is known, and brings the one behind it, and each further one whose predecessor
    was ``guessed``."""
    trips = known = 0
    while known < tokens - 1:
        trips += 1
        known += 1
        while known < tokens - 1 and guessed(known):
            known += 1
    return trips


class KnownAnswer:
    """In a draft model's place: guesses ``answer`` as ``stand_in`` says, and nothing beyond its end."""

    def __init__(self, answer: Sequence[int], stand_in: StandIn) -> None:
        self._answer = answer
        self._stand_in = stand_in

    def begin(self, prompt: Sequence[int], max_tokens: int) -> KnownGuesses:
        return KnownGuesses(self._answer, self._stand_in)

    def close(self) -> None:
        pass


class KnownGuesses:
    """A Source."""

    def __init__(self, answer: Sequence[int], stand_in: StandIn) -> None:
        self._answer = answer
        self._stand_in = stand_in
        self._came = 0

    def came(self, tokens: Sequence[int], hidden: np.ndarray) -> None:
        self._came += len(tokens)

    async def guess(self, after: Sequence[int]) -> Guess | None:
        stand_in, depth = self._stand_in, len(after)
        number = self._came + depth
        if number >= len(self._answer) or (stand_in.most is not None and depth >= stand_in.most):
            return None
        if stand_in.guess_s:
            await asyncio.sleep(stand_in.guess_s)
        token, chance = self._answer[number], stand_in.chance(depth)
        wrong = [each for each in range(3) if each != token]
        first = token if stand_in.is_right(number, depth) else wrong[0]
        second = token if stand_in.is_second_right(number, depth) else wrong[1]
        kind = ("stand-in", min(depth, len(stand_in.chances) - 1))
        return Guess(first, chance, kind, (second, stand_in.second) if stand_in.second else None)

    def close(self) -> None:
        pass
