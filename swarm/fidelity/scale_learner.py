"""The scales of one boundary's channels, learned from the rows that pass it, so that no single peer makes
them.

A channel's step is made proportional to rms^0.6 / weight^0.4: between steps that are the same part of each
channel, which keep small channels, and steps that are the same after the reader's norm, which put the
precision where it is read first. Measured on two families, this loses a third less than rms alone. Rows count
by their own size each, so that the few that are thousands of times larger say no more than others.
"""

from __future__ import annotations

import numpy as np

from ..codecs.scales import ScaleTable
from ..fairness.recent import RecentMap

LEAST_ROWS = 512
"""Rows of all groups together before there is a table: with 32 the error was a fifth larger."""
LEAST_OF_A_GROUP = 64
"""Rows of an address group before it has a say."""
ENOUGH_ROWS = 8192
"""After this many rows of all groups nothing more is learned."""
MOST_OF_A_GROUP = 4096
"""After this many rows a group's older ones count half."""
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


class ScaleLearner:
    """``weights``: of the norm that reads the rows. Not for several threads at once."""

    def __init__(self, weights: np.ndarray) -> None:
        self._weights = weights
        self._groups: RecentMap[str, tuple[int, np.ndarray]] = RecentMap(MOST_GROUPS)
        self.rows = 0
        self._made_of = 0
        self._table: ScaleTable | None = None

    @property
    def is_done(self) -> bool:
        """Whether more rows would change nothing."""
        return self.rows >= ENOUGH_ROWS and self._table is not None

    def add(self, group: str, squares: np.ndarray, rows: int) -> None:
        """``squares`` (width,): ``channel_squares`` of ``rows`` rows of a session of ``group``."""
        known, total = self._groups.get(group) or (0, np.zeros(len(squares)))
        known, total = known + rows, total + squares
        while known > MOST_OF_A_GROUP:
            known, total = known // 2, total / 2
        self._groups[group] = known, total
        self.rows += rows

    def table(self) -> ScaleTable | None:
        """None until enough rows were seen. It is made anew when twice as many were, as each new one costs
        every client a message."""
        if self.rows >= max(LEAST_ROWS, 2 * self._made_of):
            said = [total / known for known, total in self._groups.values() if known >= LEAST_OF_A_GROUP]
            if said:
                usual = np.median(np.log2(np.maximum(said, _SMALLEST)), axis=0)
                self._table, self._made_of = scale_table(np.exp2(usual), self._weights), self.rows
        return self._table

    def forget(self) -> None:
        """Begin anew: the table did more harm than good."""
        self._groups.clear()
        self.rows = self._made_of = 0
        self._table = None
