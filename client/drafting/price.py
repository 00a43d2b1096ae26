"""What a row costs the others on its route, in tokens: a guess that is less likely right should not be sent.

A row takes some time of every hop. As many sessions as are computed together there come that much later, and
each of them misses that part of a token. So a guess whose chance is above the price brings more tokens than
it takes, whoever gets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from ..hops.trace import HopTimings

NO_PRICE = 1.0
"""At this price nothing is sent: no guess is surer than certain."""


def price(hops: Sequence[tuple[float, float]], trip_s: float) -> float:
    """Tokens, 0.0 to NO_PRICE, that one row more takes from all sessions on ``hops``: (row_s, sessions) of
    each, the seconds that a row takes there and the number of sessions, the own one too. ``trip_s``: seconds
    of a plain token. What is not known counts as nothing, and what makes no sense as dear: a hop that lies
    only ends the guesses on its own route."""
    if not trip_s > 0:
        return 0.0
    lost = sum(row_s * max(1.0, sessions) for row_s, sessions in hops) / trip_s
    return min(NO_PRICE, max(0.0, lost)) if isfinite(lost) else NO_PRICE


def price_on(hops: Sequence[HopTimings], trip_s: float) -> float:
    """The price on a route, as its ``hops`` tell (``SwarmSession.hops``)."""
    return price([(hop.load.row_s, hop.load.sessions) for hop in hops], trip_s)
