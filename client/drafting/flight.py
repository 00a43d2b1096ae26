"""What is under way of an answer: a token that is certain, and guesses behind it, sent through the route in
short steps ahead of their results.

Results are judged as they come, and further guesses follow. At the first wrong one all that is under way
behind it is void, and the next certain token goes out at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .source import Guess

STEP_TOKENS = 8
"""A step has at most this many tokens: with more it would count as a prompt's at a hop."""


class Stream(Protocol):
    """What takes tokens ahead of their results: a ``SwarmSession``."""

    @property
    def length(self) -> int: ...

    def send(self, ids: Sequence[int], x: np.ndarray | None = None) -> None: ...

    async def receive(self) -> np.ndarray: ...

    def rollback(self, length: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Sent:
    """A guess under way. ``depth``: so many tokens behind what was certain when it was sent."""

    guess: Guess
    depth: int


class Flight:
    """``stream`` holds the answer up to its last token. ``guesses``: under way, behind what was judged."""

    def __init__(self, stream: Stream) -> None:
        self.guesses: list[Sent] = []
        self._stream = stream
        self._judged = stream.length  # tokens before the oldest row under way

    @property
    def is_over(self) -> bool:
        """Nothing is under way: the answer's last token is to be sent."""
        return self._stream.length == self._judged

    @property
    def tokens(self) -> list[int]:
        """Of the guesses under way."""
        return [sent.guess.token for sent in self.guesses]

    def begin(self, token: int, x: np.ndarray | None, guesses: Sequence[Guess]) -> None:
        """Send the answer's last ``token`` in one step with ``guesses``, fewer than STEP_TOKENS. ``x``
        (1, hidden): the embedding of ``token``."""
        self._note(guesses)
        self._stream.send((token, *(guess.token for guess in guesses)), None if guesses else x)

    def extend(self, guesses: Sequence[Guess]) -> None:
        """Send a step of ``guesses``, at most STEP_TOKENS, behind those under way."""
        self._note(guesses)
        self._stream.send([guess.token for guess in guesses])

    def _note(self, guesses: Sequence[Guess]) -> None:
        depth = len(self.guesses) + 1
        self.guesses += [Sent(guess, number) for number, guess in enumerate(guesses, depth)]

    async def receive(self) -> np.ndarray:
        """The rows (tokens, hidden) of the oldest step."""
        return await self._stream.receive()

    def following(self, rows: int) -> Sequence[int]:
        """The guesses behind each of the ``rows`` that came, perhaps none behind the last."""
        return [sent.guess.token for sent in self.guesses[:rows]]

    def judge(self, tokens: Sequence[int]) -> list[Sent]:
        """From rows that came ``tokens`` were chosen, all but the last as guessed. Returns the guesses at
        their places; where the last is another than was guessed, ``void`` is next."""
        judged = self.guesses[: len(tokens)]
        del self.guesses[: len(tokens)]
        self._judged += len(tokens)
        return judged

    def void(self) -> None:
        """What is under way is of no use any more."""
        self.guesses.clear()
        self._stream.rollback(self._judged)
