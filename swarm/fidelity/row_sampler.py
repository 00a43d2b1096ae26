"""Which rows a reader keeps to look at later, so that looking costs the way of a token nothing.

The thread that computes calls ``took``, which keeps the bytes of every 64th row; another one takes them away
every few seconds. What comes faster than that is not kept.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from ..codecs.codec import Codec, Payload
from .scale_learner import channel_squares

EVERY = 64
"""A row is kept if its position is a multiple of this."""
MOST_SAMPLES = 512
MOST_BYTES = 4 << 20
"""Rows kept between two looks, and bytes of them."""
MOST_OF_A_SESSION = 512
"""Rows of one session that scales are learned from."""
LEAST_TOGETHER = 8
"""Rows of fewer tokens are not learned from: the steps of single tokens are the ones that must be quick."""


@dataclass(frozen=True, slots=True)
class RowSample:
    """One row as it came from ``peer`` of the address ``group``."""

    codec: Codec
    payload: bytes
    group: str
    peer: str


@dataclass(frozen=True, slots=True)
class SizesSample:
    """``squares`` (width,): ``channel_squares`` of ``rows`` rows."""

    squares: np.ndarray
    rows: int
    group: str


class RowSampler:
    """``learning``: rows are also kept for ``ScaleLearner``."""

    def __init__(self, width: int, *, learning: bool) -> None:
        self.learning = learning
        self._width = width
        # deque: appended by one thread, emptied by another.
        self._rows: deque[RowSample] = deque(maxlen=max(1, min(MOST_SAMPLES, MOST_BYTES // (2 * width))))
        self._sizes: deque[SizesSample] = deque(maxlen=max(1, min(MOST_SAMPLES, MOST_BYTES // (8 * width))))

    def took(self, codec: Codec, payload: Payload, position: int, tokens: int, group: str, peer: str) -> None:
        """``payload``: of ``tokens`` rows, the first at ``position``."""
        if not codec.is_coarse:
            return
        size = codec.row_bytes(self._width)
        for index in range(-position % EVERY, tokens, EVERY):
            row = bytes(memoryview(payload)[index * size : (index + 1) * size])
            self._rows.append(RowSample(codec, row, group, peer))

    def learn(self, rows: np.ndarray, known: int, group: str) -> int:
        """``rows`` (tokens, width) of a session of which ``known`` were learned from; how many are now."""
        taken = min(len(rows), MOST_OF_A_SESSION - known)
        if not self.learning or len(rows) < LEAST_TOGETHER or taken <= 0:
            return known
        self._sizes.append(SizesSample(channel_squares(rows[:taken]), taken, group))
        return known + taken

    def take(self) -> tuple[list[RowSample], list[SizesSample]]:
        """All that was kept since the last call."""
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        return rows, [self._sizes.popleft() for _ in range(len(self._sizes))]
