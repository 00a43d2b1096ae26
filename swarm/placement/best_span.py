"""The best span for one machine, all others staying as they are, and what it would be good for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import LocalProtocolError
from ..types import Span
from .span_costs import Spots
from .swarm_view import Machine, Picture
from .throughput import PRECISION
from .types import Gain, gigabytes

NEARLY = 1.005
"""Times the best route's time that another may take to count as good: among these the throughput decides."""
WORTH = 0.03
"""Part of a token's time that a span must save to be served for that; else it is chosen as a copy."""
GROWS = 0.005
"""Part of the throughput that is told as a gain."""
WORTH_WIDER = 1.02
"""Times the throughput for which a machine takes more blocks than the best route uses of it."""
TOO_SLOW = 3.0
"""A route through a machine that takes so many times the best one's time is no service to anybody; where it
would be the only copy beside another's, three times as much."""
_TRIED = 6
"""Spans whose throughput is reckoned, of those that are equally good otherwise."""


@dataclass(frozen=True, slots=True)
class Choice:
    """``span`` for a machine, and the picture with it."""

    span: Span
    gain: Gain
    after: Picture


@dataclass(frozen=True, slots=True)
class NoChoice:
    """Why no span is worth it, in a few words."""

    why: str


def choose(picture: Picture, machine: Machine, *, worth: float = WORTH) -> Choice | NoChoice:
    """What ``machine``, which is not in ``picture`` but known to it, should serve beside its nodes."""
    if machine.max_blocks < 1:
        need = picture.shape.room_per_block
        return NoChoice(f"its free memory does not hold a block and its KV cache ({gigabytes(need)})")
    spots = Spots(picture, machine)
    ranked = spots.best()
    cost_s = ranked[0][0]
    if picture.missing:
        after = _widened(picture, machine, [s for c, s in ranked if c <= cost_s * NEARLY][:_TRIED])
        if after.n_missing < picture.n_missing:
            return _choice(after, machine, Gain.COVER)
        return NoChoice("it could close no hole")  # only if another serves the same peer id's blocks
    if cost_s <= picture.cost_s * (1 - worth):
        good = [s for c, s in ranked if c <= cost_s * NEARLY]
        after = _widened(picture, machine, good[:_TRIED])
        return _choice(after, machine, Gain.FASTER)
    replica = _replica(picture, spots)
    if isinstance(replica, Choice) and cost_s >= picture.cost_s:
        replica.after.keeps_route_of(picture)
    return replica


def _replica(picture: Picture, spots: Spots) -> Choice | NoChoice:
    """A further copy of the blocks that need one most."""
    machine = spots.machine
    after = _best(picture, machine, _scarce(picture, machine))
    times = spots.through(_span_in(after, machine)) / picture.cost_s
    closes = after.singles < picture.singles
    if times > TOO_SLOW * (3 if closes else 1):
        return NoChoice(f"a route through it would take {times:.1f} times as long as the best one")
    grows = after.tokens_per_s >= picture.tokens_per_s * (1 + GROWS)
    return _choice(after, machine, Gain.THROUGHPUT if grows else Gain.SPARE)


def _choice(after: Picture, machine: Machine, gain: Gain) -> Choice:
    return Choice(_span_in(after, machine), gain, after)


def _span_in(picture: Picture, machine: Machine) -> Span:
    return picture.nodes[machine.peer_id].span


def _widened(picture: Picture, machine: Machine, spans: Sequence[Span]) -> Picture:
    """The picture with the one of ``spans`` that gives most throughput, or with a longer span around it where
    that gives more still or copies of blocks that have one only."""
    n = picture.shape.n_blocks
    exact = _best(picture, machine, spans)
    span = _span_in(exact, machine)
    length = min(machine.max_blocks, n)
    if length == len(span):
        return exact
    starts = range(max(0, span.end - length), min(span.start, n - length) + 1)
    wider = _best(picture, machine, _thinnest(picture, machine, length, starts))
    better = wider.tokens_per_s >= WORTH_WIDER * exact.tokens_per_s or wider.singles < exact.singles
    if wider.missing:
        better = wider.n_missing < exact.n_missing
    return wider if better else exact


def _best(picture: Picture, machine: Machine, spans: Sequence[Span]) -> Picture:
    """The picture with that one of ``spans`` that closes most of a hole, then gives most throughput, then
    leaves least shortage."""
    best: Picture | None = None
    for span in spans:
        after = picture.with_node(machine.serving(span, picture.shape.n_blocks))
        if best is None or _is_better(after, best):
            best = after
    if best is None:
        raise LocalProtocolError("no span to choose from")
    return best


def _is_better(one: Picture, other: Picture) -> bool:
    if one.n_missing != other.n_missing:
        return one.n_missing < other.n_missing
    if one.missing:
        return one.singles < other.singles
    if one.reaches(other.tokens_per_s * (1 + 2 * PRECISION)):
        return True
    return one.shortage < other.shortage * (1 - 1e-9) and one.reaches(other.tokens_per_s * (1 - PRECISION))


def _scarce(picture: Picture, machine: Machine) -> list[Span]:
    """Spans where another copy should add most throughput."""
    n = picture.shape.n_blocks
    length = min(machine.max_blocks, n)
    return _thinnest(picture, machine, length, range(n - length + 1))


def _thinnest(picture: Picture, machine: Machine, length: int, starts: range) -> list[Span]:
    """Up to _TRIED spans of ``length``: those where least is computed, each node's work spread evenly over
    its span, and those around the scarcest block."""
    density = picture.density
    sums = [0.0]
    for each in density:
        sums.append(sums[-1] + each)

    def thickness(start: int) -> tuple[float, float, int]:
        return min(density[start : start + length]), sums[start + length] - sums[start], start

    by_scarcest = sorted(starts, key=thickness)
    by_sum = sorted(starts, key=lambda start: (sums[start + length] - sums[start], start))
    around = by_scarcest[: 1 + _TRIED // 2] + by_scarcest[-1:] if len(starts) <= _TRIED else by_scarcest
    chosen = dict.fromkeys([*by_sum[: _TRIED // 2], *around[: _TRIED // 2]])
    return [Span(start, start + length) for start in chosen]
