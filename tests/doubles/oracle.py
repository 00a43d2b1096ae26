"""A draft model that knows the answer, and is wrong where a test wants it: in place of ``DraftModel``. And
a session that computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from swarm_node.client.decoding.head_batch import Branches
from swarm_node.client.drafting.source import Guess
from swarm_node.client.drafting.worth import Choice, Worth
from swarm_node.client.hops.trace import HopTimings


class Oracle:
    """``answer``: what follows the prompt. ``wrong(n)``: whether to miss token n of it. ``second(n)``:
    whether the other guess is right then; None: there are no others."""

    def __init__(
        self,
        answer: Sequence[int],
        wrong: Callable[[int], bool] = lambda number: False,
        second: Callable[[int], bool] | None = None,
        miss: int = 1,
    ) -> None:
        self.miss = miss  # bits by which a wrong guess is wrong
        self.answer = list(answer)
        self.wrong = wrong
        self.second = second
        self.sequences: list[OracleSequence] = []

    def begin(self, prompt: Sequence[int], max_tokens: int) -> OracleSequence:
        self.sequences.append(OracleSequence(self))
        return self.sequences[-1]

    def close(self) -> None:
        pass


class OracleSequence:
    """A ``Source``."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._came = 0
        self.closed = False

    def came(self, tokens: Sequence[int], hidden: np.ndarray) -> None:
        assert len(tokens) == len(hidden)
        self._came += len(tokens)

    async def guess(self, after: Sequence[int]) -> Guess:
        number = self._came + len(after)
        answer = self._oracle.answer
        token = answer[number] if number < len(answer) else 0
        wrong, right = self._oracle.wrong(number), self._oracle.second
        other = None
        if right is not None:
            other = (token if wrong and right(number) else token ^ 2, 0.15)
        return Guess(token ^ self._oracle.miss if wrong else token, 0.8, ("oracle", 0), other)

    def close(self) -> None:
        self.closed = True


class Recorded:
    """In a ``SwarmSession``'s place: what was sent to it, and where it went back to."""

    most_ahead = 128
    takes_branches = True
    predicted = None
    repaired = ()
    line_row_s = 0.0
    hops: Sequence[HopTimings] = ()

    def __init__(self) -> None:
        self._under_way: list[int] = []
        self.sent: list[list[int]] = []
        self.back: list[int] = []
        self.length = 0

    def send(self, ids: Sequence[int], x: np.ndarray | None = None, branches: Branches = ()) -> None:
        assert not branches
        self.sent.append([*ids])
        self._under_way.append(len(ids))
        self.length += len(ids)

    async def receive(self) -> np.ndarray:
        return np.zeros((self._under_way.pop(0), 1), np.float32)

    def rollback(self, length: int) -> None:
        self.back.append(length)
        self.length = length

    async def look_around(self) -> None:
        pass


def send_all(monkeypatch: pytest.MonkeyPatch, ahead: int = 7, together: int = 3) -> None:
    """Every guess is sent, whatever it costs: ``ahead`` at a time, ``together`` of them with the certain
    token."""

    def choose(self: Worth, chances: Sequence[float]) -> Choice:
        first = min(together, len(chances))
        return Choice(first, len(chances) - first)

    monkeypatch.setattr(Worth, "choose", choose)
    monkeypatch.setattr(Worth, "least", 0.0)
    monkeypatch.setattr(Worth, "trip_s", 1000.0)
    monkeypatch.setattr(Worth, "room", lambda self, under_way: max(0, ahead - under_way))


def send_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is guessed."""
    monkeypatch.setattr(Worth, "choose", lambda self, chances: Choice())
    monkeypatch.setattr(Worth, "room", lambda self, under_way: 0)
