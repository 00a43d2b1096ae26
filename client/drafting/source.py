"""What guesses tokens of an answer before they are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Kind = tuple[str, int]
"""What a guess's chance depends on: its source, and how sure that is of it, as a small number."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A token that may come next. ``chance``: a first estimate, before any of its ``kind`` was judged; 0: it
    is not sent before others of its kind, which were only compared with what came, were right. ``second``:
    the next likely token, and its chance."""

    token: int
    chance: float
    kind: Kind
    second: tuple[int, float] | None = None


class Source(Protocol):
    """Guesses for one answer, which may take a while each: by a model. All is called in the event loop."""

    def came(self, tokens: Sequence[int], hidden: np.ndarray) -> None:
        """``tokens`` were chosen, the next of the answer, from the rows ``hidden`` (tokens, hidden) float32,
        which are after all blocks. A guess may be under way."""

    async def guess(self, after: Sequence[int]) -> Guess | None:
        """What follows the answer so far and ``after``, which was guessed behind it; None: nothing is known,
        or not yet. One call at a time; any ``after`` may follow any other. Raises RuntimeError or MemoryError
        where it cannot go on."""

    def close(self) -> None:
        """Nothing is asked any more. A guess may be under way. Idempotent."""


class Guesser(Protocol):
    """What has a source for each answer."""

    def begin(self, prompt: Sequence[int], max_tokens: int) -> Source | None:
        """For an answer to ``prompt``, both together of up to ``max_tokens``; None where that is more than it
        can hold."""

    def close(self) -> None:
        """Waits for what is computed now. Idempotent."""


def two_likeliest(logits: np.ndarray) -> tuple[tuple[int, float], tuple[int, float]] | None:
    """Of ``logits`` (vocab,), at least two, the likeliest token and the one after it, each with its
    probability; None where they are not numbers."""
    first = int(logits.argmax())
    relative = np.exp(logits - logits[first], dtype=np.float32)
    total = float(relative.sum())
    if not math.isfinite(total):
        return None
    relative[first] = -1.0
    other = int(relative.argmax())
    return (first, 1 / total), (other, float(relative[other]) / total)
