"""Spans for many machines at once: the best found, not proven.

The fastest chain first, then every other machine where it helps most; then machines are taken out and placed
again, as long as that makes the whole better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..types import NodeInfo, Span
from .best_span import BestSpan, choose
from .chain_search import fastest_chain
from .swarm_view import Machine, MeasuredLinks, SwarmView
from .types import ModelShape

FINE = 0.002
"""While planning, a machine is placed elsewhere if that saves this part of a token's time: nothing is loaded
yet, so a move costs nothing."""
FEW = 8
"""Up to this many machines are placed again up to ROUNDS times."""
ROUNDS = 4
SEVERAL = 16
"""Up to this many machines are each placed again once, which takes a fraction of a second. With more, each is
placed only once."""


def assign_machines(
    machines: Sequence[Machine], fixed: Sequence[NodeInfo], shape: ModelShape, links: MeasuredLinks
) -> dict[str, Span]:
    """Spans by peer id beside the spans of ``fixed``; a machine that would not help is left out. The same for
    any order of ``machines``. ``links`` knows all of them."""
    fit = sorted(
        (machine for machine in machines if machine.max_blocks > 0),
        key=lambda machine: (machine.decode_ms_per_block, -machine.max_blocks, machine.peer_id),
    )
    plan = _Plan(fit, fixed, shape, links)
    best = plan.insert({}, fit)
    chain = fastest_chain(fit, fixed, plan.view({}), plan.view(best).cost_s)
    if chain is not None:
        best = plan.insert(chain, fit)
    return plan.improve(best)


def better(one: SwarmView, other: SwarmView, worth: float = FINE) -> bool:
    """Whether ``one`` has fewer holes, or a faster best route, or one as fast and more throughput."""
    if one.n_missing != other.n_missing:
        return one.n_missing < other.n_missing
    if one.cost_s < other.cost_s * (1 - worth):
        return True
    if one.cost_s > other.cost_s * (1 + worth / 10):
        return False
    if one.missing:
        return one.singles < other.singles
    if not one.reaches(other.tokens_per_s * (1 - worth)):
        return False
    return one.reaches(other.tokens_per_s * (1 + 5 * worth)) or one.shortage < other.shortage * (
        1 - 5 * worth
    )


class _Plan:
    def __init__(
        self, machines: Sequence[Machine], fixed: Sequence[NodeInfo], shape: ModelShape, links: MeasuredLinks
    ) -> None:
        self._machines = {machine.peer_id: machine for machine in machines}
        self._fixed = fixed
        self._shape = shape
        self._links = links

    def view(self, spans: dict[str, Span], without: Iterable[str] = ()) -> SwarmView:
        out = set(without)
        served = [
            self._machines[peer_id].serving(span, self._shape.n_blocks)
            for peer_id, span in spans.items()
            if peer_id not in out
        ]
        return SwarmView([*self._fixed, *served], self._shape, self._links, self._machines)

    def insert(self, spans: dict[str, Span], machines: Iterable[Machine]) -> dict[str, Span]:
        """``spans``, and those of ``machines`` that are not in them placed one after another."""
        spans = dict(spans)
        for machine in machines:
            if machine.peer_id not in spans:
                choice = choose(self.view(spans), machine)
                if isinstance(choice, BestSpan):
                    spans[machine.peer_id] = choice.span
        return spans

    def improve(self, spans: dict[str, Span]) -> dict[str, Span]:
        rounds = ROUNDS if len(spans) <= FEW else int(len(spans) <= SEVERAL)
        for _ in range(rounds):
            changed = False
            for peer_id in sorted(spans):
                again = self._again(spans, peer_id)
                if again != spans:
                    changed, spans = True, again
            if not changed:
                break
        return spans

    def _again(self, spans: dict[str, Span], peer_id: str) -> dict[str, Span]:
        """One machine placed again, where that is better."""
        others = {other: span for other, span in spans.items() if other != peer_id}
        choice = choose(self.view(others), self._machines[peer_id], worth=FINE)
        if not isinstance(choice, BestSpan) or choice.span == spans[peer_id]:
            return spans
        return {**spans, peer_id: choice.span} if better(choice.after, self.view(spans)) else spans
