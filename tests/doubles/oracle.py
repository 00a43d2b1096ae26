"""A draft model that knows the answer, and is wrong where a test wants it: in place of ``DraftModel``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from swarm_node.client.drafting.draft_length import DraftPlan
from swarm_node.client.drafting.source import Guess


class Oracle:
    """``answer``: what follows the prompt. ``wrong(n)``: whether to miss token n of it."""

    def __init__(self, answer: Sequence[int], wrong: Callable[[int], bool] = lambda number: False) -> None:
        self.answer = list(answer)
        self.wrong = wrong
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
        return Guess(token ^ 1 if self._oracle.wrong(number) else token, 0.8, ("oracle", 0))

    def close(self) -> None:
        self.closed = True


def send_all(self: object, draft: Sequence[object], costs: Sequence[float] = ()) -> DraftPlan:
    """In place of ``Speculation.plan``: every draft, whatever it costs; a draft model's before the text's."""
    return DraftPlan(min(len(draft), 7), 1.0)
