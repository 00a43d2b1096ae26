"""Embeddings of a prompt, made part by part as they are fed.

Of a whole long prompt they would take seconds of the event loop, and gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np


class Rows(Protocol):
    """(tokens, hidden): an array, or what makes one of a slice."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class EmbeddedLater:
    """``embed(start, end)`` gives the embeddings of the tokens [start, end) of a sequence."""

    def __init__(self, embed: Callable[[int, int], np.ndarray], start: int, end: int) -> None:
        self._embed = embed
        self._start = start
        self._end = end

    def __len__(self) -> int:
        return self._end - self._start

    def __getitem__(self, part: slice, /) -> np.ndarray:
        first, last, _ = part.indices(len(self))
        return self._embed(self._start + first, self._start + last)
