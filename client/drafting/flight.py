"""What is under way of an answer: tokens that are certain, and guesses behind them, sent through the route in
short steps ahead of their results.

Results are judged as they come, and further guesses follow. At the first wrong one all that is under way
behind it is void, and the next certain tokens go out at once. In the place of some guesses there are
branches. The hops forget their tokens, so those that were right are fed once more, as certain ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..decoding.head_batch import Branches
from .source import Guess
from .tree import Branch, computed

STEP_TOKENS = 8
"""A step has at most this many tokens: with more it would count as a prompt's at a hop."""


class Stream(Protocol):
    """What takes tokens ahead of their results: a ``SwarmSession``."""

    @property
    def length(self) -> int: ...

    def send(self, ids: Sequence[int], x: np.ndarray | None = None, branches: Branches = ()) -> None: ...

    async def receive(self) -> np.ndarray: ...

    def rollback(self, length: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Sent:
    """A guess under way. ``depth``: so many tokens behind what was certain when it was sent."""

    guess: Guess
    depth: int


@dataclass(frozen=True, slots=True)
class Came:
    """Rows to choose from: ``hidden`` (rows, hidden), with the tokens fed behind each, perhaps none behind
    the last, and ``branches``, as ``HeadBatcher.choose`` takes them."""

    hidden: np.ndarray
    draft: Sequence[int] = ()
    branches: Branches = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """``guesses`` that were looked at, each with the token that was chosen in its place. ``rows`` (tokens,
    hidden): those that the tokens were chosen from. ``missed``: what is under way is of no use any more."""

    guesses: Sequence[tuple[Sent, int]]
    rows: np.ndarray
    missed: bool = False


@dataclass(frozen=True, slots=True)
class _Step:
    """Under way: ``certain`` tokens and guesses, ``tokens`` in all; ``branches`` in places of the guesses."""

    tokens: int
    certain: int = 0
    branches: tuple[Branch, ...] = ()


class Flight:
    """``stream`` holds the answer up to before its last ``token``. ``guesses``: under way, behind what was
    judged."""

    def __init__(self, stream: Stream, token: int) -> None:
        self.guesses: list[Sent] = []
        self._stream = stream
        self._certain = [token]  # tokens of the answer that hops do not hold
        self._judged = stream.length  # tokens before the row that is chosen from next
        self._steps: deque[_Step] = deque()
        self._came = np.empty((0, 0), np.float32)  # rows of the sequence that came last
        self._forks: dict[int, tuple[Branch, np.ndarray]] = {}  # row there → the branch behind it, its rows
        self._turned: tuple[Branch, int] | None = (
            None  # of the next step, that the answer goes on with; depth
        )

    @property
    def is_over(self) -> bool:
        """Nothing is under way: the answer's last tokens are to be sent."""
        return self._stream.length == self._judged

    @property
    def has_turned(self) -> bool:
        """A branch under way is right, and nothing else is; nothing can be sent behind it."""
        return self._turned is not None

    @property
    def tokens(self) -> list[int]:
        """Of the guesses under way."""
        return [sent.guess.token for sent in self.guesses]

    @property
    def certain(self) -> int:
        """How many certain tokens are sent next."""
        return len(self._certain)

    @property
    def rows(self) -> int:
        """Of guesses, under way: those of branches as they are computed."""
        return len(self.guesses) + sum(computed(step.branches) for step in self._steps)

    @property
    def nodes(self) -> int:
        """Guesses of branches, under way."""
        return sum(len(branch.guesses) for step in self._steps for branch in step.branches)

    def begin(self, x: np.ndarray | None, guesses: Sequence[Guess]) -> None:
        """Send the certain tokens in one step with ``guesses``, STEP_TOKENS in all at most. ``x`` (1,
        hidden): the embedding of the last certain one."""
        certain = self._certain
        self._judged = self._stream.length + len(certain) - 1
        ids = [*certain, *self._note(guesses)]
        self._steps.append(_Step(len(ids), len(certain)))
        self._stream.send(ids, x if len(ids) == 1 else None)

    def extend(self, guesses: Sequence[Guess], branches: Sequence[Branch] = ()) -> None:
        """Send a step of ``guesses``, at most STEP_TOKENS, behind those under way, with ``branches``."""
        # That of the first place is last: its rows are looked at apart from the others'.
        forks = tuple(sorted(branches, key=lambda branch: -branch.place))
        ids = self._note(guesses)
        self._steps.append(_Step(len(ids), branches=forks))
        told = tuple((branch.place, branch.tokens) for branch in forks)
        self._stream.send(ids, None, told) if told else self._stream.send(ids)

    def _note(self, guesses: Sequence[Guess]) -> list[int]:
        depth = len(self.guesses) + 1
        self.guesses += [Sent(guess, number) for number, guess in enumerate(guesses, depth)]
        return [guess.token for guess in guesses]

    async def receive(self) -> Came | None:
        """The rows of the oldest step; None for a branch that hops had no room for: ``void`` is next."""
        hidden = await self._stream.receive()
        step = self._steps.popleft()
        # Certain tokens follow the rows of those before them.
        self._came, self._forks = hidden[max(0, step.certain - 1) : step.tokens], {}
        start = step.tokens
        for branch in step.branches if start < len(hidden) else ():
            end = start + len(branch.guesses)
            self._forks[branch.place] = branch, hidden[start:end]
            start = end
        first = self._forks.pop(0, None)
        if self._turned is not None:
            branch, self._came = first or (self._turned[0], self._came[:0])
            return Came(self._came, branch.tokens[1:]) if first else None
        draft = self.tokens[: len(self._came)]
        if not self._forks:
            return Came(self._came, draft)
        rows = [rows for _, rows in self._forks.values()]
        told = [(row, branch.tokens) for row, (branch, _) in self._forks.items()]
        return Came(np.concatenate([self._came, *rows]), draft, told)

    def judge(self, tokens: Sequence[int]) -> Judged:
        """From the rows that came ``tokens`` were chosen, as ``HeadBatcher.choose`` does. Where one is
        another than was guessed, ``void`` is next, unless the flight ``has_turned``."""
        if self._turned is not None:
            (branch, depth), self._turned = self._turned, None
            self._certain += tokens
            judged = _paired(branch.guesses[1:], tokens, depth + 1)
            return Judged(judged, self._came[: len(tokens)], missed=True)
        pairs = enumerate(zip(self.tokens, tokens, strict=False))
        right = next((number for number, (guess, token) in pairs if guess != token), None)
        if right is None and len(tokens) <= len(self.guesses):
            return self._all_right(tokens)
        return self._miss(tokens, min(len(self.guesses), len(tokens)) if right is None else right)

    def _all_right(self, tokens: Sequence[int]) -> Judged:
        judged, self.guesses = self.guesses[: len(tokens)], self.guesses[len(tokens) :]
        self._judged += len(tokens)
        return Judged([*zip(judged, tokens, strict=True)], self._came[: len(tokens)])

    def _miss(self, tokens: Sequence[int], right: int) -> Judged:
        """Of ``tokens`` the first ``right`` are as guessed in the chain; in the place of the next, nothing
        was, or something else."""
        self._judged += right + 1
        self._certain = list(tokens[right:])
        judged = [*zip(self.guesses, tokens[: right + 1], strict=False)]
        rows, missed = self._came[: right + 1], right < len(self.guesses)
        if (found := self._branch(right + 1)) is not None:
            branch, own = found
            depth = self.guesses[right].depth
            judged += _paired(branch.guesses, tokens[right:], depth)
            rows = np.concatenate([rows, own[: len(tokens) - right - 1]])
            if not len(own) and branch.guesses[0].token == tokens[right]:
                self._turned = branch, depth
        self.guesses.clear()
        return Judged(judged, rows, missed)

    def _branch(self, row: int) -> tuple[Branch, np.ndarray] | None:
        """That in the place of the guess which was wrong behind ``row`` rows of those that came; and its
        rows, none if they are still to come."""
        if row < len(self._came) or not self._steps:
            return self._forks.get(row)
        behind = next((each for each in self._steps[0].branches if not each.place), None)
        return None if behind is None else (behind, self._came[:0])

    def void(self) -> None:
        """What is under way is of no use any more."""
        self.guesses.clear()
        self._steps.clear()
        self._turned = None
        self._stream.rollback(self._judged)


def _paired(guesses: Sequence[Guess], tokens: Sequence[int], depth: int) -> list[tuple[Sent, int]]:
    """Guesses of a branch and what was chosen in their places; the first is ``depth`` deep."""
    return [
        (Sent(guess, number), token)
        for number, (guess, token) in enumerate(zip(guesses, tokens, strict=False), depth)
    ]
