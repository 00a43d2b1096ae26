"""A round of an answer: a token that is certain, and guesses behind it, sent through the route in short steps
ahead of their results.

Results are judged as they come. At the first wrong guess the round is over: what is under way behind it is
void, and the next round begins there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

STEP_TOKENS = 8
"""A step has at most this many tokens: with more it would count as a prompt's at a hop."""


class Stream(Protocol):
    """What takes tokens ahead of their results: a ``SwarmSession``."""

    @property
    def length(self) -> int: ...

    def send(self, ids: Sequence[int], x: np.ndarray | None = None) -> None: ...

    async def receive(self) -> np.ndarray: ...

    def rollback(self, length: int) -> None: ...


class Flight:
    """``stream`` holds the answer up to its last token."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._judged = stream.length  # tokens before the oldest row under way
        self._guesses: list[int] = []  # behind that row's token

    @property
    def is_over(self) -> bool:
        """Nothing is under way."""
        return self._stream.length == self._judged

    def begin(self, token: int, x: np.ndarray | None, guesses: Sequence[int]) -> None:
        """Send a round. ``x`` (1, hidden): the embedding of ``token``, the last of the answer."""
        self._judged, self._guesses = self._stream.length, list(guesses)
        if not guesses:
            self._stream.send((token,), x)
            return
        sent = (token, *guesses)
        for start in range(0, len(sent), STEP_TOKENS):
            self._stream.send(sent[start : start + STEP_TOKENS])

    async def receive(self) -> np.ndarray:
        """The next rows (tokens, hidden) of the round."""
        return await self._stream.receive()

    def following(self, rows: int) -> Sequence[int]:
        """The guesses behind each of the ``rows`` that came, none behind the last row of all."""
        return self._guesses[:rows]

    def judged(self, tokens: Sequence[int], rows: int) -> None:
        """Of ``rows`` that came, ``tokens`` were chosen. One that was not guessed, or an answer's end, is the
        end of the round."""
        right = 0
        while right < min(len(tokens), len(self._guesses)) and tokens[right] == self._guesses[right]:
            right += 1
        self._judged += len(tokens)
        del self._guesses[:right]
        if right < rows:
            self._guesses.clear()
            self._stream.rollback(self._judged)
