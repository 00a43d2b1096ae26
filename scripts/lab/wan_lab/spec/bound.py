"""How fast an answer can be at most, whoever guesses: each miss costs a trip, and each row its time.

A pass of one row takes ``trip_s`` over the whole route. Rows that follow each other without waiting come as
fast as the slowest stage lets them through: a hop, a line, the client's head, or all cores of a machine that
carries everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stages:
    """What one row more takes, in seconds: ``hops_s`` of each hop, ``client_s`` of the client, ``line_s`` of
    the bytes on the slowest line. ``cores`` are shared by hops and client."""

    hops_s: tuple[float, ...]
    client_s: float
    line_s: float
    cores: int

    @property
    def row_s(self) -> float:
        """The slowest stage's."""
        return max(*self.hops_s, self.client_s, self.line_s, (sum(self.hops_s) + self.client_s) / self.cores)


def line_s(row_bytes: int, rate: float | None) -> float:
    """``rate`` in bit/s; None: without limit."""
    return 0.0 if rate is None else row_bytes * 8 / rate


def least_s(tokens: int, trips: float, trip_s: float, row_s: float) -> float:
    """Seconds for ``tokens`` tokens, the first of which was there before, in ``trips`` trips at least."""
    return trips * trip_s + (tokens - 1 - trips) * row_s


def law(chances: Sequence[float], most: int | None = None) -> float:
    """Tokens a trip, on the average of a long answer: 1 / (1 - chance) where each guess is as likely; with
    chances by depth, 1 and the sum of what they multiply to. ``most``: guesses a trip at most; without it the
    last chance goes on for ever (infinite where that is 1)."""
    total, product = 1.0, 1.0
    for chance in chances[: len(chances) if most is None else most]:
        product *= chance
        total += product
    if most is not None:
        more = max(0, most - len(chances))
        return total + sum(product * chances[-1] ** (number + 1) for number in range(more))
    if chances[-1] >= 1:
        return float("inf")
    return total + product * chances[-1] / (1 - chances[-1])
