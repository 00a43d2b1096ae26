"""Hops for a gap in a route whose other hops are kept: found, waited for, or given up for a new route."""

from __future__ import annotations

from collections.abc import Sequence

from ...swarm.errors import BusyError, HopFailedError, RouteError, SwarmError
from ...swarm.types import Span
from ..hops.route_session import RouteSession
from ..routing.route_finder import Need, Planned
from ..routing.route_wait import OnWaiting, WaitLimits
from ..routing.router import Router
from .attempts import Attempts

REPAIR_LIMITS = WaitLimits(missing_s=30.0, failed_s=30.0, busy_s=30.0, loading_s=30.0)
"""How long a generation that has begun waits for new hops before it gives up what it has, from the first sign
of a loss until tokens come again. It is one limit whatever it waits for, so that what is left of it only
falls."""
NO_WAIT = WaitLimits(missing_s=0.0, failed_s=0.0, busy_s=0.0, alone_s=0.0, loading_s=0.0)
GAP_LOOK_S = 5.0
"""While hops for a gap are waited for, a look every this many seconds shows whether a whole new route could
be had."""


class RouteLostError(Exception):
    """Nothing of the route is to be kept. ``failure``: of which hop; None: a whole new route is better."""

    def __init__(self, failure: HopFailedError | None = None) -> None:
        super().__init__(str(failure or "a whole new route can be had"))
        self.failure = failure


def repair_limits(limits: WaitLimits) -> WaitLimits:
    """How long a session with these ``limits`` waits once it has begun."""
    seconds = max(REPAIR_LIMITS.missing_s, limits.missing_s)
    return WaitLimits(missing_s=seconds, failed_s=seconds, busy_s=seconds, loading_s=seconds)


class GapSearch:
    """The gap searches of one session. ``limits`` are those for its first route; ``on_wait`` is told while it
    waits."""

    def __init__(
        self, router: Router, attempts: Attempts, need: Need, limits: WaitLimits, on_wait: OnWaiting
    ) -> None:
        self._router = router
        self._attempts = attempts
        self._need = need
        self._limits = limits
        self._on_wait = on_wait

    async def find(
        self,
        session: RouteSession,
        gap: Span,
        between: tuple[str | None, str | None],
        keep: frozenset[str],
        avoid: frozenset[str],
        borders: Sequence[int],
        *,
        wait: bool,
        began: float,
    ) -> Planned:
        """Hops for ``gap``, ``between`` two peers (None: the client): none of those to ``keep``, of those to
        ``avoid`` only where there are no others, and with borders at ``borders`` if that is possible.

        Waits for some, if it may ``wait``, with the rest of the route kept; ``began``: when the route broke.
        A whole new route is better than to wait: then RouteLostError. Raises what ``Router.plan_gap`` raises.
        """
        limits = repair_limits(self._limits)
        need = Need(self._need.kv_tokens, max(1, session.acked), self._need.new_tokens)
        slice_s = 0.0
        keep |= avoid  # they have only just failed
        await self._attempts.look_around(gap)
        while True:
            try:
                planned = await self._router.plan_gap(
                    need,
                    gap,
                    before=between[0],
                    after=between[1],
                    keep=keep,
                    borders=borders,
                    began=began,
                    limits=limits,
                    at_most_s=slice_s,
                    on_wait=self._on_wait,
                )
                self._on_wait(None)
                return planned
            except (RouteError, BusyError) as error:
                if not wait:
                    raise
                await self._prefer_other_route(error)
                if self._router.now() >= began + limits.missing_s:
                    raise
            slice_s = GAP_LOOK_S
            keep -= avoid

    async def _prefer_other_route(self, error: SwarmError) -> None:
        """Raises RouteLostError where a whole route can be had at once."""
        try:
            await self._router.plan(self._need, limits=NO_WAIT)
        except (RouteError, BusyError):
            return
        raise RouteLostError from error
