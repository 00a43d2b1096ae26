"""Guesses that cost nothing: what the text itself says, and a guide that leaves no choice.

They are compared with the tokens that come even when they were not sent, so that their chances are learned
for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from .chances import Chances
from .prompt_lookup import SOURCE as TEXT
from .prompt_lookup import PromptLookup
from .resume import SOURCE as RESUME
from .resume import Resume
from .source import Guess, Kind

FORCED: Kind = ("guide", 0)
FORCED_CHANCE = 0.97
"""A text may be cut into other tokens than the guide would cut it into."""
READ_AT_ONCE = 4096
"""This many tokens of a prompt are read at once, which takes a millisecond of the event loop."""
LEARNED_AS_THEY_COME = (TEXT, RESUME)


class Rules(Protocol):
    """What may follow: a ``Sampler``."""

    @property
    def forced(self) -> Sequence[int]: ...

    def fitting(self) -> Callable[[Sequence[int]], int]: ...


class AtHand:
    """Those for one answer, which ends with one of ``stop_ids``; and which guesses may follow it at all."""

    def __init__(self, chances: Chances, stop_ids: frozenset[int]) -> None:
        self._chances = chances
        self._stop_ids = stop_ids
        self._lookup = PromptLookup()
        self._resume = Resume(self._lookup)
        self._rules: Rules | None = None
        self._fitting: Callable[[Sequence[int]], int] = len  # how many of some guesses may come next
        self._since: list[int] = []  # tokens of the answer that were chosen since that was asked for

    async def read(self, prompt: Sequence[int]) -> None:
        """Index the prompt; a long one in parts, as others wait meanwhile."""
        for start in range(0, len(prompt), READ_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            self._lookup.came(prompt[start : start + READ_AT_ONCE])

    def follow(self, rules: Rules | None) -> None:
        """What ``rules`` say now, of what comes behind the answer so far."""
        self._rules = rules
        if rules is not None:
            self._fitting, self._since = rules.fitting(), []

    def came(self, tokens: Sequence[int]) -> None:
        """``tokens`` were chosen, the next of the answer."""
        self._since += tokens
        for token in tokens:
            for source in (self._lookup, self._resume):
                for guess in source.guesses((), 1):
                    self._chances.judged(guess.kind, guess.token == token)
            self._lookup.came((token,))
            self._resume.came(token)

    def chain(self, after: Sequence[int], most: int) -> list[Guess]:
        """The chain behind the answer so far and ``after`` that promises the most tokens; ``most`` guesses at
        most."""
        if most <= 0:
            return []
        forced = _behind(after, self._rules.forced) if self._rules is not None else ()
        chain = [Guess(token, FORCED_CHANCE, FORCED) for token in forced[:most]]
        behind = [*after, *(guess.token for guess in chain)]
        others = [source.guesses(behind, most - len(chain)) for source in (self._lookup, self._resume)]
        return self.possible(after, chain + max(others, key=self._chances.promised))

    def possible(self, after: Sequence[int], guesses: list[Guess]) -> list[Guess]:
        """Those that may follow ``after``. Nothing that comes after an answer's end would be used."""
        ends = (number for number, guess in enumerate(guesses) if guess.token in self._stop_ids)
        guesses = guesses[: next(ends, len(guesses))]
        return guesses[: max(0, self._fits([*after, *(guess.token for guess in guesses)]) - len(after))]

    def allows(self, guesses: Sequence[int]) -> bool:
        """Whether all ``guesses`` may follow the answer so far, and it does not end with the last of them."""
        return guesses[-1] not in self._stop_ids and self._fits(guesses) == len(guesses)

    def _fits(self, guesses: Sequence[int]) -> int:
        """How many of ``guesses`` may follow the answer so far, one after the other."""
        return self._fitting([*self._since, *guesses]) - len(self._since)


def _behind(after: Sequence[int], forced: Sequence[int]) -> Sequence[int]:
    """What is left of ``forced`` behind ``after``, if that begins so."""
    return forced[len(after) :] if list(forced[: len(after)]) == list(after) else ()
