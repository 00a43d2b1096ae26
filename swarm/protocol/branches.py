"""The branches of a STEP, (row, count) each: what they cost, and how many a node computes.

A branch is computed by itself: the step's first ``row`` rows once more, and its own ``count`` rows behind
them. So a step of few rows on the wire may be many rows to compute. Most steps have none, and are asked for
them some ten times at each hop.
"""

from __future__ import annotations

from .field_types import Branches

MAX_CHAIN_ROWS = 8
"""Rows before the branches of a step, at most. A step with more of them is computed in slices at a hop, which
have no branches."""
MAX_COMPUTED_ROWS = 64
"""Rows that are computed for a step with branches, at most, the ones that are fed once more included. A batch
has eight for each of 64 sessions, so one session's guesses take as much as eight sessions' drafts."""


def rows_of(branches: Branches) -> int:
    """Rows that the branches have on the wire."""
    return sum(count for _, count in branches) if branches else 0


def computed_rows(branches: Branches) -> int:
    """Rows that are computed for the branches, the step's own not included."""
    return sum(row + count for row, count in branches) if branches else 0


def reach_of(branches: Branches) -> int:
    """How far behind the step's position the longest branch reaches, in tokens."""
    return max((row + count for row, count in branches), default=0)


def too_many(chain: int, branches: Branches) -> str:
    """Why a step of ``chain`` rows with these branches is not computed; empty: it is."""
    if not branches:
        return ""
    if chain > MAX_CHAIN_ROWS:
        return f"{chain} rows before branches; there may be {MAX_CHAIN_ROWS}"
    rows = chain + computed_rows(branches)
    if rows > MAX_COMPUTED_ROWS:
        return f"{rows} rows to compute with its branches; there may be {MAX_COMPUTED_ROWS}"
    return ""
