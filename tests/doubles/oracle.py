"""A draft model that knows the answer, and is wrong where a test wants it: in place of ``DraftModel``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from swarm_node.client.drafting.draft_length import DraftPlan


class Oracle:
    """``answer``: what follows the prompt. ``wrong(n)``: whether to miss token n of it."""

    def __init__(self, answer: Sequence[int], wrong: Callable[[int], bool] = lambda number: False) -> None:
        self.answer = list(answer)
        self.wrong = wrong
        self.sequences: list[OracleSequence] = []

    def begin(self, prompt: Sequence[int], max_tokens: int) -> OracleSequence:
        self.sequences.append(OracleSequence(self, len(prompt)))
        return self.sequences[-1]

    def close(self) -> None:
        pass


class OracleSequence:
    ready = True

    def __init__(self, oracle: Oracle, prompt: int) -> None:
        self._oracle = oracle
        self._prompt = prompt
        self.closed = False

    async def run(self, work: Callable[[], Any]) -> Any:
        return work()

    def settle(self, ids: Sequence[int]) -> None:
        pass

    def behind(self, ids: Sequence[int]) -> int:
        return 1

    def guess(self, ids: Sequence[int]) -> tuple[int, float]:
        number = len(ids) - self._prompt
        answer = self._oracle.answer
        token = answer[number] if number < len(answer) else 0
        return (token ^ 1 if self._oracle.wrong(number) else token), 0.8

    def close(self) -> None:
        self.closed = True


def send_all(self: object, draft: Sequence[object], costs: Sequence[float] = ()) -> DraftPlan:
    """In place of ``Speculation.plan``: every draft, whatever it costs; a draft model's before the text's."""
    return DraftPlan(min(len(draft), 7), 1.0)
