"""How often guesses were right, by their kind: what the next ones' chances are estimated from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..hops.trace import DEPTHS_TOLD, GuessCounts
from .source import Guess, Kind

FORGET = 0.96
"""Weight of a trial after the next one of its kind: the last 25 or so count, since texts change."""
PRIOR_TRIALS = 3.0
"""Trials that a kind's first estimate weighs as much as."""
ANY: Kind = ("any", 0)
"""A token that the source has not guessed yet."""
ANY_CHANCE = 0.6


class Chances:
    """Of one answer's guesses, those before each of them being right."""

    def __init__(self) -> None:
        self._hits: dict[Kind, float] = {}
        self._trials: dict[Kind, float] = {}
        self._counts: dict[str, tuple[list[int], list[int]]] = {}  # source → judged, right by depth

    def of(self, kind: Kind, first: float) -> float:
        """``first``: an estimate from before any of ``kind`` was judged."""
        trials = self._trials.get(kind, 0.0)
        return (self._hits.get(kind, 0.0) + first * PRIOR_TRIALS) / (trials + PRIOR_TRIALS)

    def along(self, guesses: Iterable[Guess]) -> list[float]:
        """For each of a chain of guesses: that it and all before it are right."""
        chance, chances = 1.0, []
        for guess in guesses:
            chance *= self.of(guess.kind, guess.chance)
            chances.append(chance)
        return chances

    def promised(self, guesses: Iterable[Guess]) -> float:
        """How many of a chain should be right."""
        return sum(self.along(guesses))

    @property
    def of_next(self) -> float:
        """Of what a source, which takes a while, guesses next."""
        return self.of(ANY, ANY_CHANCE)

    def judged(self, kind: Kind, right: bool) -> None:
        self._hits[kind] = self._hits.get(kind, 0.0) * FORGET + right
        self._trials[kind] = self._trials.get(kind, 0.0) * FORGET + 1

    def count(self, source: str, depth: int, right: bool) -> None:
        """For people to read: a guess that was sent, ``depth`` tokens behind what was certain then."""
        judged, rights = self._counts.setdefault(source, ([0] * DEPTHS_TOLD, [0] * DEPTHS_TOLD))
        place = min(depth, DEPTHS_TOLD) - 1
        judged[place] += 1
        rights[place] += right

    @property
    def counts(self) -> tuple[GuessCounts, ...]:
        return tuple(
            GuessCounts(source, _told(judged), _told(rights, len(_told(judged))))
            for source, (judged, rights) in self._counts.items()
        )


def _told(counts: Sequence[int], length: int | None = None) -> tuple[int, ...]:
    """Without what nothing was counted for at the end."""
    if length is None:
        length = max((number for number, count in enumerate(counts, 1) if count), default=0)
    return tuple(counts[:length])
