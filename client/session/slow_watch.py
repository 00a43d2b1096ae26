"""Whether a session should leave a hop that works but slowly, or rewire its hops to find out which it is.

Of a chain the client sees only the sum. Where a part of it that nobody owns up to would matter, the client
carries the activations itself for some steps: then each hop's time is the client's own measure, and no hop
can be blamed for another's. Afterwards the hops are chained again, unless they are faster apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from time import perf_counter

from ...swarm.routing.slow_hop import GROSS_STEPS, ChainSpent, HopSpent
from ..hops.route_session import RouteSession
from ..hops.step_times import Pace
from ..routing.router import Router
from ..routing.slow_search import SlowChain, SlowHop

APART_STEPS = 2 * GROSS_STEPS
"""Steps after which hops that were taken apart, and of which none is to be left, are chained again."""
APART_PAUSE_S = 60.0
"""Before a session takes hops apart again."""
FASTER_APART = 0.8
"""Hops whose steps take under such a part of what the chain took stay apart: a way between them was slow."""

Pairs = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Rewire:
    """Pairs of neighbours, by peer id, to feed through this client from now on, or to chain again."""

    apart: Pairs = frozenset()
    join: Pairs = frozenset()


@dataclass(frozen=True, slots=True)
class _Apart:
    pairs: Pairs
    chained_s: float  # what a step took while they were chained


class SlowWatch:
    """Of one session."""

    def __init__(self, router: Router) -> None:
        self.pace = Pace()
        self._router = router
        self._apart: _Apart | None = None
        self._rest_until = 0.0  # on perf_counter

    def look(self, session: RouteSession, tokens_to_come: int, context: int) -> SlowHop | Rewire | None:
        """What to do about slow hops now. At a token's boundary, when it is ``pace``'s time."""
        spent, chains = self.pace.look(session.segments)
        found = self._router.find_slow(session.route, spent, chains, tokens_to_come, context)
        match found:
            case SlowHop():
                if self._apart is not None:
                    self._apart = replace(self._apart, chained_s=0.0)  # it was this hop, and not the ways
                return found
            case SlowChain() if self._apart is None and perf_counter() >= self._rest_until:
                return self._take_apart(session, found, spent, chains)
        apart = self._apart
        if apart is None or min(segment.trace.decode.steps for segment in session.segments) < APART_STEPS:
            return None
        self._apart = None
        self._rest_until = perf_counter() + APART_PAUSE_S
        if _step_s(spent, chains) < FASTER_APART * apart.chained_s:
            return None
        here = {(a.peer_id, b.peer_id) for a, b in pairwise(session.hops)}
        return Rewire(join=apart.pairs & here)

    def _take_apart(
        self, session: RouteSession, chain: SlowChain, spent: Sequence[HopSpent], chains: Sequence[ChainSpent]
    ) -> Rewire:
        hops = session.hops[chain.first : chain.last + 1]
        pairs = frozenset((a.peer_id, b.peer_id) for a, b in pairwise(hops))
        self._apart = _Apart(pairs, _step_s(spent, chains))
        return Rewire(apart=pairs)


def _step_s(spent: Sequence[HopSpent], chains: Sequence[ChainSpent]) -> float:
    """What a step takes in all."""
    return sum(hop.node_s + (hop.wire_s or 0.0) for hop in spent) + sum(chain.wire_s for chain in chains)
