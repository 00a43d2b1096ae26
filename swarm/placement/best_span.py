"""The best span for one machine, all others staying as they are, and what it would be good for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import LocalProtocolError
from ..types import Span
from .span_costs import SpanCosts
from .swarm_view import Machine, SwarmView
from .throughput import PRECISION
from .types import Gain, gigabytes

NEARLY = 1.005
"""A route that takes up to this many times the best one's time counts as good. Among those the throughput
decides."""
WORTH = 0.03
"""A span must save this part of a token's time to be served for speed. Else it is chosen as a copy."""
GROWS = 0.005
"""A gain of throughput is reported from this part of it on."""
WORTH_WIDER = 1.02
"""A machine takes more blocks than the best route uses of it if the throughput grows by this factor."""
TOO_SLOW = 3.0
"""A machine through which a route takes this many times the best one's time is not used. Where it would be
the only copy beside another's, the limit is three times as high."""
_TRIED = 6
"""The throughput of at most this many spans is computed, among those that are otherwise equally good."""


@dataclass(frozen=True, slots=True)
class BestSpan:
    """``span`` for a machine, and the view with it."""

    span: Span
    gain: Gain
    after: SwarmView


@dataclass(frozen=True, slots=True)
class NoBetterSpan:
    """Why no span is worth it, in a few words."""

    why: str


def choose(view: SwarmView, machine: Machine, *, worth: float = WORTH) -> BestSpan | NoBetterSpan:
    """What ``machine``, which is not in ``view`` but known to it, should serve beside its nodes."""
    if machine.max_blocks < 1:
        need = view.shape.room_of(1)
        return NoBetterSpan(f"its free memory does not hold a block and its KV cache ({gigabytes(need)})")
    span_costs = SpanCosts(view, machine)
    ranked = span_costs.best()
    if not ranked:
        return NoBetterSpan("its free memory does not hold any of the spans into which the model may be cut")
    cost_s = ranked[0][0]
    if view.missing:
        after = _widened(view, machine, [s for c, s in ranked if c <= cost_s * NEARLY][:_TRIED])
        if after.n_missing < view.n_missing:
            return _choice(after, machine, Gain.COVER)
        return NoBetterSpan("it could close no hole")  # only if another serves the same peer id's blocks
    if cost_s <= view.cost_s * (1 - worth):
        good = [s for c, s in ranked if c <= cost_s * NEARLY]
        after = _widened(view, machine, good[:_TRIED])
        return _choice(after, machine, Gain.FASTER)
    replica = _replica(view, span_costs)
    if isinstance(replica, BestSpan) and cost_s >= view.cost_s:
        replica.after.keeps_route_of(view)
    return replica


def _replica(view: SwarmView, span_costs: SpanCosts) -> BestSpan | NoBetterSpan:
    """A further copy of the blocks that need one most."""
    machine = span_costs.machine
    after = _best(view, machine, _scarce(view, machine))
    times = span_costs.through(_span_in(after, machine)) / view.cost_s
    closes = after.singles < view.singles
    if times > TOO_SLOW * (3 if closes else 1):
        return NoBetterSpan(f"a route through it would take {times:.1f} times as long as the best one")
    grows = after.tokens_per_s >= view.tokens_per_s * (1 + GROWS)
    return _choice(after, machine, Gain.THROUGHPUT if grows else Gain.SPARE)


def _choice(after: SwarmView, machine: Machine, gain: Gain) -> BestSpan:
    return BestSpan(_span_in(after, machine), gain, after)


def _span_in(view: SwarmView, machine: Machine) -> Span:
    return view.nodes[machine.peer_id].span


def _widened(view: SwarmView, machine: Machine, spans: Sequence[Span]) -> SwarmView:
    """The view with the one of ``spans`` that gives most throughput, or with a longer span around it where
    that gives more still or copies of blocks that have one only."""
    exact = _best(view, machine, spans)
    span = _span_in(exact, machine)
    around = [each for each in view.shape.spans_of(machine.max_blocks) if each.covers(span) and each != span]
    if not around:
        return exact
    wider = _best(view, machine, _thinnest(view, around))
    better = wider.tokens_per_s >= WORTH_WIDER * exact.tokens_per_s or wider.singles < exact.singles
    if wider.missing:
        better = wider.n_missing < exact.n_missing
    return wider if better else exact


def _best(view: SwarmView, machine: Machine, spans: Sequence[Span]) -> SwarmView:
    """The view with the one of ``spans`` that closes most of a hole, then gives most throughput, then leaves
    least shortage."""
    best: SwarmView | None = None
    for span in spans:
        after = view.with_node(machine.serving(span, view.shape.n_blocks))
        if best is None or _is_better(after, best):
            best = after
    if best is None:
        raise LocalProtocolError("no span to choose from")
    return best


def _is_better(one: SwarmView, other: SwarmView) -> bool:
    if one.n_missing != other.n_missing:
        return one.n_missing < other.n_missing
    if one.missing:
        return one.singles < other.singles
    if one.reaches(other.tokens_per_s * (1 + 2 * PRECISION)):
        return True
    return one.shortage < other.shortage * (1 - 1e-9) and one.reaches(other.tokens_per_s * (1 - PRECISION))


def _scarce(view: SwarmView, machine: Machine) -> list[Span]:
    """The spans where another copy should add most throughput."""
    return _thinnest(view, view.shape.spans_of(machine.max_blocks))


def _thinnest(view: SwarmView, spans: Sequence[Span]) -> list[Span]:
    """Up to _TRIED of ``spans``: those where least is computed, each node's work spread evenly over its span,
    and those around the scarcest block."""
    density = view.density
    sums = [0.0]
    for each in density:
        sums.append(sums[-1] + each)

    def mean(span: Span) -> tuple[float, int]:
        return (sums[span.end] - sums[span.start]) / len(span), span.start

    by_scarcest = sorted(spans, key=lambda span: (min(density[span.start : span.end]), mean(span)))
    by_mean = sorted(spans, key=mean)
    around = by_scarcest[: 1 + _TRIED // 2] + by_scarcest[-1:] if len(spans) <= _TRIED else by_scarcest
    return [*dict.fromkeys([*by_mean[: _TRIED // 2], *around[: _TRIED // 2]])]
