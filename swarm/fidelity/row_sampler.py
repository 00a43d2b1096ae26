"""Which rows a reader keeps to look at later, so that looking costs the way of a token nothing.

The thread that computes calls ``took``, which keeps the bytes of every 64th row; another one takes them away
every few seconds. What comes faster than that is not kept, and no address group has more than its share, so
that nobody keeps the rows of others out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ..codecs.codec import Codec, Payload
from .scale_learner import channel_squares

EVERY = 64
"""A row is kept if its position is a multiple of this."""
MOST_SAMPLES = 512
MOST_BYTES = 4 << 20
"""Rows kept between two looks, and bytes of them."""
SHARE = 4
"""One address group gets a part in this many of that room."""
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


Sample = TypeVar("Sample", RowSample, SizesSample)


class _Kept(Generic[Sample]):
    """At most ``most`` samples, of one group a share. One thread adds, another takes."""

    def __init__(self, most: int) -> None:
        self._most = max(SHARE, most)
        self._samples: deque[Sample] = deque()
        self._by_group: dict[str, int] = {}

    def add(self, sample: Sample) -> None:
        by_group = self._by_group
        of_group = by_group.get(sample.group, 0)
        if len(self._samples) < self._most and of_group < self._most // SHARE:
            by_group[sample.group] = of_group + 1
            self._samples.append(sample)

    def take(self) -> list[Sample]:
        self._by_group = {}
        return [self._samples.popleft() for _ in range(len(self._samples))]


def is_sampled(position: int, tokens: int) -> bool:
    """Whether one of ``tokens`` rows, the first at ``position``, is one of those that are kept."""
    return -position % EVERY < tokens


class RowSampler:
    """``learning``: rows are also kept for ``ScaleLearner``, but for those of groups that are ``full``."""

    def __init__(self, width: int, *, learning: bool) -> None:
        self.full: frozenset[str] = frozenset()
        self._learning = learning
        self._width = width
        self._rows: _Kept[RowSample] = _Kept(min(MOST_SAMPLES, MOST_BYTES // (2 * width)))
        self._sizes: _Kept[SizesSample] = _Kept(min(MOST_SAMPLES, MOST_BYTES // (8 * width)))

    def took(self, codec: Codec, payload: Payload, position: int, tokens: int, group: str, peer: str) -> None:
        """``payload``: of ``tokens`` rows, the first at ``position``."""
        if not codec.is_coarse:
            return
        size = codec.row_bytes(self._width)
        for index in range(-position % EVERY, tokens, EVERY):
            row = bytes(memoryview(payload)[index * size : (index + 1) * size])
            self._rows.add(RowSample(codec, row, group, peer))

    def learns_from(self, group: str) -> bool:
        return self._learning and group not in self.full

    def learn(self, rows: np.ndarray, known: int, group: str) -> int:
        """``rows`` (tokens, width) of a session of which ``known`` were learned from; how many are now."""
        taken = min(len(rows), MOST_OF_A_SESSION - known)
        if len(rows) < LEAST_TOGETHER or taken <= 0 or not self.learns_from(group):
            return known
        self._sizes.add(SizesSample(channel_squares(rows[:taken]), taken, group))
        return known + taken

    def take(self) -> tuple[list[RowSample], list[SizesSample]]:
        """All that was kept since the last call."""
        return self._rows.take(), self._sizes.take()


class FewAtATime:
    """Rows of one session that come one by one, as answers do, gathered until they can be learned from."""

    def __init__(self, sampler: RowSampler) -> None:
        self._sampler = sampler
        self._waiting: list[np.ndarray] = []
        self._group = ""
        self._learned = 0

    def came(self, rows: np.ndarray, group: str) -> None:
        """``rows`` (tokens, width), which stay as they are."""
        if self._learned >= MOST_OF_A_SESSION or not self._sampler.learns_from(group):
            return
        if group != self._group:  # another node sends them now
            self._waiting, self._group = [], group
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= LEAST_TOGETHER:
            self._learned = self._sampler.learn(np.concatenate(self._waiting), self._learned, group)
            self._waiting = []
