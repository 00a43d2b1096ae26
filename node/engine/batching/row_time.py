"""What a batch of decode steps takes, and what one row more adds to it. Plain numbers, no clock.

The time of a batch is known by its size, in classes of rows. A line through the classes gives what a row
takes: the median of the slopes between any two of them, so that one spoilt class says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from statistics import median

CLASSES = 8
"""1 row, 2, up to 4, up to 8 and so on; the last class has all that is larger."""
COLD = 2
"""The first batches of a class count only together, by the quickest: the first one of all is the slowest."""
LATELY = 128
"""A class that had none of this many batches says nothing any more: there may be fewer threads, or longer
texts. If less than two classes say something, the last estimate stays."""
EVERY = 8
"""The line is drawn anew after this many batches."""
MAX_BATCH_US = 60_000_000
"""A batch that seems to take longer was not computed all the time: the machine slept."""


@dataclass(slots=True)
class _Class:
    """``us``: what a batch of ``rows`` takes. ``number``: of the newest one."""

    rows: int
    us: float
    seen: int
    number: int


class RowTime:
    """Learns from the batches of one node. ``row_us``: microseconds that one row more takes, ``base_us``:
    those of a batch without its rows; both 0.0 as long as nothing is known."""

    def __init__(self) -> None:
        self.row_us = 0.0
        self.base_us = 0.0
        self._classes: list[_Class | None] = [None] * CLASSES
        self._batches = 0

    def batch_us(self, rows: int) -> float:
        """Microseconds of a batch of ``rows``; before anything is known as many as there are rows, so that
        batches can be compared."""
        return self.base_us + rows * self.row_us if self.row_us else float(rows)

    def observe(self, rows: int, elapsed_us: int) -> None:
        """A batch of ``rows`` rows, all of decode steps, took ``elapsed_us``."""
        if rows < 1 or not 0 < elapsed_us <= MAX_BATCH_US:
            return
        self._batches += 1
        number = min((rows - 1).bit_length(), CLASSES - 1)
        known = self._classes[number]
        is_new = known is None or self._batches - known.number > LATELY
        if known is None or is_new:
            self._classes[number] = _Class(rows, float(elapsed_us), 1, self._batches)
        else:
            self._learn(known, rows, elapsed_us)
        if is_new or self._batches % EVERY == 0:
            self._draw()

    def _learn(self, known: _Class, rows: int, elapsed_us: int) -> None:
        usual_us = known.us + self.row_us * (rows - known.rows)  # of as many rows
        known.rows, known.number, known.seen = rows, self._batches, known.seen + 1
        off = elapsed_us - usual_us
        if known.seen <= COLD:
            known.us = min(usual_us, elapsed_us)
        else:  # down fast, up slowly: a spoilt batch is always a slow one
            known.us = usual_us + (min(off, usual_us / 16 + 1) if off > 0 else off / 4)

    def _draw(self) -> None:
        fresh = [each for each in self._classes if each and self._batches - each.number <= LATELY]
        slopes = [
            (larger.us - smaller.us) / (larger.rows - smaller.rows)
            for smaller, larger in combinations(fresh, 2)
            if larger.rows > smaller.rows
        ]
        if slopes:
            self.row_us = max(0.0, median(slopes)) or self.row_us
            self.base_us = max(0.0, median(each.us - each.rows * self.row_us for each in fresh))
