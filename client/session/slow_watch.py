"""Whether a session should leave a hop that works but is slow, or rewire its hops to find out which one is.

Of a chain the client sees only the sum. Where a part of it that no hop accounts for would matter, the client
carries the activations itself for some steps. Then each hop's time is the client's own measure, and no hop
can be blamed for another's. Afterwards the hops are chained again, unless they are faster apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from time import perf_counter

from ...swarm.routing.slow_hop import GROSS_STEPS, ChainSpent, HopSpent
from ..hops.route_session import Pairs, RouteSession
from ..hops.segment import Segment
from ..hops.step_times import StepTimes
from ..routing.link_table import transfer_rate
from ..routing.router import Router
from ..routing.slow_search import SlowChain, SlowHop

APART_STEPS = 2 * GROSS_STEPS
"""Hops that were taken apart are chained again after this many steps, if none of them is to be left."""
APART_PAUSE_S = 60.0
"""A session waits this many seconds before it takes hops apart again."""
STEPS_TO_MEASURE = 8
"""The mean of this many decode steps says something about the links of a chain."""
FASTER_APART = 0.8
"""Hops stay apart where their steps take less than this part of what the chain took: a link between them was
slow."""


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
    """The watch of one session."""

    def __init__(self, router: Router) -> None:
        self.step_times = StepTimes()
        self._router = router
        self._apart: _Apart | None = None
        self._rest_until = 0.0  # on perf_counter

    def look(self, session: RouteSession, tokens_to_come: int, context: int) -> SlowHop | Rewire | None:
        """What to do about slow hops now. At a token's boundary, when it is ``step_times``' time."""
        spent, chains = self.step_times.look(session.segments)
        found = self._router.find_slow(session.route, spent, chains, tokens_to_come, context)
        match found:
            case SlowHop():
                if self._apart is not None:
                    self._apart = replace(self._apart, chained_s=0.0)  # it was this hop, and not the links
                return found
            case SlowChain() if self._apart is None and perf_counter() >= self._rest_until:
                return self._take_apart(session, found, spent, chains)
        apart = self._apart
        if apart is None or min(segment.trace.alone.steps for segment in session.segments) < APART_STEPS:
            return None
        self._apart = None
        self._rest_until = perf_counter() + APART_PAUSE_S
        if _step_s(spent, chains) < FASTER_APART * apart.chained_s:
            return None
        here = {(a.peer_id, b.peer_id) for a, b in pairwise(session.hops)}
        return Rewire(join=apart.pairs & here)

    def report_links(self, segments: Iterable[Segment], context: int) -> None:
        """Tell the router what steps of a session of ``context`` tokens say of links, better than PINGs do:
        of a hop that answers alone its link, of a chain the sum of its links."""
        router = self._router
        for segment in segments:
            alone, prefill = segment.trace.alone, segment.trace.prefill
            if segment.is_chain:
                for hop in segment.hops:
                    router.measured(hop.peer_id, hop.link.round_trip_s)
                if alone.steps >= STEPS_TO_MEASURE:
                    router.chain_measured(segment.trace.peer_ids, alone.wire_s / alone.steps)
            elif alone.steps:
                hop, rtt_s = segment.first, alone.wire_s / alone.steps
                if alone.tokens >= STEPS_TO_MEASURE:
                    step_s, tokens = hop.trace.alone.seconds / alone.steps, alone.tokens / alone.steps
                    router.worked(hop.peer_id, len(hop.plan.hop.span), step_s, tokens, context)
                rate = (
                    transfer_rate(prefill.bytes_sent, prefill.wire_s, rtt_s) if prefill.steps == 1 else None
                )
                router.measured(hop.peer_id, rtt_s, bytes_per_s=rate)

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
