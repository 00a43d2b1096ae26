"""When to leave a hop that says it works, and shows no progress, though it may only be slow.

It is left only where a proven peer could take its place; other peers are put on trial as soon as the first
doubt comes. To be left is no blame: the hop is avoided for seconds only. Each doubt without a token in
between waits twice as long as the one before, so that a swarm whose nodes are all slow to begin is waited
for.
"""

from __future__ import annotations

import asyncio

from ...swarm.runtime.tasks import look_at
from ...swarm.timeouts import doubt_within_s
from ...swarm.types import Hop
from ..routing.evidence import Standing
from ..routing.reserves import Wanted
from ..routing.route_finder import Need
from ..routing.router import Router
from .scout import Scout


class Doubts:
    """The doubts of one session; a ``plan.Patient``. ``close`` ends what it has begun."""

    def __init__(self, router: Router, scout: Scout, need: Need) -> None:
        self._router = router
        self._scout = scout
        self._need = need
        self._in_a_row = 0
        self._looking: asyncio.Task[object] | None = None

    def within_s(self, expected_s: float, queue_s: float) -> float:
        """Seconds for which a hop may show no progress before it is doubted."""
        return doubt_within_s(expected_s, queue_s, self._in_a_row)

    def leave(self, hop: Hop) -> bool:
        """Whether to go elsewhere. May be asked again and again: it looks for others meanwhile."""
        wanted = Wanted(hop.span, frozenset({hop.peer_id}), Standing.PROVEN)
        if not self._router.reserves.unmet(self._need, wanted):
            self._in_a_row += 1
            return True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._scout.meet(self._need, wanted))
            self._looking.add_done_callback(look_at)
        return False

    def succeeded(self) -> None:
        """Tokens come again."""
        self._in_a_row = 0

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
