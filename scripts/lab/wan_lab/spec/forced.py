"""A guide that leaves no choice and does not tell: the model says a given text, and only drafts know it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class ForcedText:
    """A TokenRule that lets only ``ids`` follow, one after the other."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)
        self._next = 0

    @property
    def is_over(self) -> bool:
        return self._next == len(self._ids)

    def allows(self, token: int) -> bool:
        return not self.is_over and self._ids[self._next] == token

    def allowed(self) -> np.ndarray:
        return np.array(self._ids[self._next : self._next + 1])

    def accept(self, token: int) -> None:
        self._next += 1

    def forced(self) -> tuple[int, ...]:
        """Not told, though there is no choice."""
        return ()

    def copy(self) -> ForcedText:
        made = ForcedText(self._ids)
        made._next = self._next
        return made
