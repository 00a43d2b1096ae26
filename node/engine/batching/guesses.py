"""How many guesses run when: certain rows are what others wait for, guesses may be for nothing.

The numbers are chosen by simulation (``scripts/study other_users --simulate``; decision 0073).
"""

from __future__ import annotations

from .row_time import RowTime

SHARE = 0.05
"""Steps with guesses may make a batch with certain rows longer by this part of it."""
PATIENCE_NS = 300_000_000
"""A step of guesses alone that was passed over for this many nanoseconds counts as certain, as its session
cannot go on behind it: about a token's way through a wide-area route. With a third of that, users who guess
too much take a fifth from plain ones on a busy node."""
UNKNOWN_ROWS = 8
"""Rows of a batch without certain ones, before it is known what a row takes."""


def rows_beside(certain: int, time: RowTime) -> int:
    """Rows of steps with guesses that a batch of ``certain`` rows has room for."""
    return int(SHARE * time.batch_us(certain) / time.row_us) if time.row_us else 0


def rows_alone(time: RowTime) -> int:
    """Rows of a batch where no certain row waits: one that comes meanwhile waits for its end. It takes twice
    as long as that of a row, at most, or as its only step."""
    return max(1, int(time.batch_us(1) / time.row_us)) if time.row_us else UNKNOWN_ROWS


def rows_late(certain: int, time: RowTime) -> int:
    """Rows of steps that were passed over for long enough, in a batch of ``certain`` other rows: it takes
    twice as long as without them, at most."""
    return int(time.batch_us(certain) / time.row_us) if certain and time.row_us else rows_alone(time)
