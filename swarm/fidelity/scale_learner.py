"""The scales of one boundary's channels, learned from the rows that pass it, so that nobody makes them for
others.

Each address group has one vote, whatever it sends. From three groups on there is one table for all, of each
channel's median: while fewer than half of the groups are hostile, every exponent lies between those of honest
ones. Of two groups one would decide, so before that a group gets the table of its own rows, or none.

A channel's step is made proportional to rms^0.6 / weight^0.4: between steps that are the same part of each
channel, which keep small channels, and steps that are the same after the reader's norm, which put the
precision where it is read first. Measured on two families, this loses a third less than rms alone. Rows count
by their own size each, so that the few that are thousands of times larger say no more than others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..codecs.scales import ScaleTable
from ..fairness.recent import RecentMap

LEAST_ROWS = 512
"""Rows that a table is made of at least: with 32 the error was a fifth larger."""
LEAST_OF_A_GROUP = 64
"""Rows of an address group before it has a say in the table for all."""
LEAST_GROUPS = 3
"""Groups with a say before there is a table for all: the fewest of which one can be hostile."""
ENOUGH_OF_A_GROUP = 4096
"""After this many rows of a group nothing more is learned of it."""
MOST_GROUPS = 32
RMS_POWER, WEIGHT_POWER = 0.6, 0.4
_SMALLEST = 1e-30


def channel_squares(rows: np.ndarray) -> np.ndarray:
    """(width,): the sums of the squares of ``rows`` (tokens, width), each in units of its mean magnitude.
    Finite for finite rows. A row's few largest values, which codecs keep exact, hardly change that mean."""
    sizes = np.maximum(np.abs(rows).mean(axis=1), np.float32(_SMALLEST))
    scaled = rows / sizes[:, None]  # of magnitudes up to the width
    return np.einsum("tc,tc->c", scaled, scaled).astype(np.float64)


def scale_table(squares: np.ndarray, weights: np.ndarray) -> ScaleTable:
    """For channels of these mean squares (width,), read with ``weights`` (``usable_weights``)."""
    return ScaleTable.from_rms(
        np.maximum(squares, _SMALLEST) ** (RMS_POWER / 2) / weights.astype(np.float64) ** WEIGHT_POWER
    )


@dataclass(slots=True)
class _Learned:
    """Of one group. ``squares`` (width,): of ``rows`` rows. ``table``: made of the first ``made_of``."""

    squares: np.ndarray
    rows: int = 0
    table: ScaleTable | None = None
    made_of: int = 0


class ScaleLearner:
    """``weights``: of the norm that reads the rows. Not for several threads at once."""

    def __init__(self, weights: np.ndarray) -> None:
        self._weights = weights
        self._groups: RecentMap[str, _Learned] = RecentMap(MOST_GROUPS)
        self._common: ScaleTable | None = None
        self._made_of: dict[str, int] = {}  # rows of each group

    @property
    def full(self) -> frozenset[str]:
        """Groups of which more rows would change nothing."""
        return frozenset(name for name, each in self._groups.items() if each.rows >= ENOUGH_OF_A_GROUP)

    def add(self, group: str, squares: np.ndarray, rows: int) -> None:
        """``squares`` (width,): ``channel_squares`` of ``rows`` rows of a session of ``group``."""
        known = self._groups.get(group) or _Learned(np.zeros(len(squares)))
        if known.rows < ENOUGH_OF_A_GROUP:
            known.rows += rows
            known.squares = known.squares + squares
        self._groups[group] = known

    def table_for(self, group: str) -> ScaleTable | None:
        """None until enough rows were seen. A table is made anew when twice as many were, as each new one
        costs every client a message and gives the pages of its conversations other names."""
        having = {name: each for name, each in self._groups.items() if each.rows >= LEAST_OF_A_GROUP}
        rows = {name: each.rows for name, each in having.items()}
        if len(having) >= LEAST_GROUPS and sum(rows.values()) >= LEAST_ROWS and self._is_old(rows):
            means = [each.squares / each.rows for each in having.values()]
            usual = np.median(np.log2(np.maximum(means, _SMALLEST)), axis=0)
            self._common, self._made_of = scale_table(np.exp2(usual), self._weights), rows
        if self._common is not None:
            return self._common
        own = self._groups.get(group)
        if own is None:
            return None
        if own.rows >= max(LEAST_ROWS, 2 * own.made_of):
            own.table, own.made_of = scale_table(own.squares / own.rows, self._weights), own.rows
        return own.table

    def _is_old(self, rows: Mapping[str, int]) -> bool:
        """Whether half of the ``rows`` of groups that have a say came after the table for all was made. Where
        groups have changed, at most LEAST_ROWS of each count: no few groups put a new table off by many."""
        if sum(rows.values()) >= 2 * sum(self._made_of.values()):
            return True
        now = {name: min(count, LEAST_ROWS) for name, count in rows.items()}
        return sum(now.values()) >= 2 * sum(min(now[name], self._made_of.get(name, 0)) for name in now)

    def asks_for(self, exponents: bytes) -> bool:
        """Whether somebody is told this table now."""
        tables = [self._common, *(each.table for each in self._groups.values())]
        return any(table is not None and table.exponents == exponents for table in tables)

    def forget(self) -> None:
        """Begin anew: the tables did more harm than good."""
        self._groups.clear()
        self._common, self._made_of = None, {}
