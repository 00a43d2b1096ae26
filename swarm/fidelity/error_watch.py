"""Judges codecs by the errors of sampled rows, so that no single peer decides for all.

Each address group has one vote: the median of its peers. The verdict is the median of the groups. Of two that
disagree the worse one counts, because a finer codec costs bytes and a coarse one costs answers. Memory is
bounded, and what is old is forgotten, so a codec that was dropped gets another chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import median_high

import numpy as np

from ..fairness.recent import RecentMap

GOOD_ERROR = 0.01
"""A mean error up to this is good for any model: over single cuts the divergence was at most ten times the
error's square."""
LARGEST_ERROR = 0.025
"""A mean error above this is too much even for a model whose certificate says that the codec passed."""
HARMFUL_ERROR = 0.1
"""No honest table of scales makes such a mean error of anybody's rows: its reader asks for it no more,
whoever says that it is good."""
LARGEST_P99 = 0.05
"""An error that more than one row in a hundred may not exceed."""
LEAST_ROWS = 8
"""Sampled rows of a peer before it has a say."""
MOST_ROWS = 512
"""After this many rows a peer's older ones count half, again and again."""
MOST_GROUPS = 64
MOST_PEERS = 8
"""Address groups that are remembered for each codec, and peers of each group."""
REMEMBERED_S = 3600.0
"""Seconds after a peer's last row until it has no say any more."""


class Verdict(IntEnum):
    """``FAIR``: only for a model whose certificate says that the codec passed."""

    UNKNOWN = 0
    GOOD = 1
    FAIR = 2
    COARSE = 3


@dataclass(frozen=True, slots=True)
class Loss:
    """``mean``: of the errors. ``beyond``: the share of rows above LARGEST_P99. ``groups``: that had a
    say."""

    mean: float = 0.0
    beyond: float = 0.0
    groups: int = 0

    @property
    def verdict(self) -> Verdict:
        if not self.groups:
            return Verdict.UNKNOWN
        if self.mean > LARGEST_ERROR or self.beyond > 0.01:
            return Verdict.COARSE
        return Verdict.GOOD if self.mean <= GOOD_ERROR else Verdict.FAIR


@dataclass(slots=True)
class Tally:
    """Of the errors of somebody's rows. ``last``: when ``add`` was called, in its ``now``."""

    rows: float = 0.0
    total: float = 0.0
    beyond: float = 0.0
    last: float = 0.0

    @property
    def mean(self) -> float:
        return self.total / self.rows if self.rows else 0.0

    def add(self, errors: np.ndarray, now: float = 0.0) -> None:
        errors = np.minimum(errors, 1.0)  # one row cannot count for hundreds
        self.rows += len(errors)
        self.total += float(errors.sum())
        self.beyond += int((errors > LARGEST_P99).sum())
        self.last = now
        while self.rows > MOST_ROWS:
            self.rows /= 2
            self.total /= 2
            self.beyond /= 2


class ErrorWatch:
    """``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[str, RecentMap[str, RecentMap[str, Tally]]] = {}

    def add(self, kind: str, group: str, peer: str, errors: np.ndarray) -> None:
        """``errors`` (rows,) of rows that ``peer`` of the address ``group`` had in a codec of ``kind``."""
        groups = self._kinds.setdefault(kind, RecentMap(MOST_GROUPS))
        peers = groups.get(group) or RecentMap(MOST_PEERS)
        tally = peers.get(peer) or Tally()
        tally.add(errors, self._clock())
        peers[peer] = tally
        groups[group] = peers

    def loss(self, kind: str) -> Loss:
        """What a codec of ``kind`` costs here, by the say of all who are remembered."""
        said = [each for peers in self._kinds.get(kind, {}).values() if (each := self._said(peers))]
        if not said:
            return Loss()
        return Loss(*_medians(said), len(said))

    def worst(self, kind: str) -> float:
        """The largest mean error of anybody who has a say; 0 where nobody has."""
        said = (each.mean for peers in self._kinds.get(kind, {}).values() for each in self._having(peers))
        return max(said, default=0.0)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of which rows were seen."""
        return tuple(self._kinds)

    def _said(self, peers: RecentMap[str, Tally]) -> tuple[float, float] | None:
        """(mean, share beyond) of one group; None where no peer has a say."""
        said = [(each.mean, each.beyond / each.rows) for each in self._having(peers)]
        return _medians(said) if said else None

    def _having(self, peers: RecentMap[str, Tally]) -> list[Tally]:
        """Those with a say."""
        now = self._clock()
        return [each for each in peers.values() if each.rows >= LEAST_ROWS and now - each.last < REMEMBERED_S]


def _medians(said: Sequence[tuple[float, float]]) -> tuple[float, float]:
    means, beyond = zip(*said, strict=True)
    return median_high(means), median_high(beyond)
