"""Finding out who is there, before and beside what a user waits for.

Where no route of peers that have answered can be had, strangers are dialled side by side, a few at first and
more as those fail, until the ones that answered cover the model: hundreds of records of nobody cost as long
as a few, and one that is silent holds up nobody. An answer is a connection and a right WELCOME.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from ..swarm.errors import PeerTimeoutError, SwarmError
from ..swarm.link_pool import LinkPool
from ..swarm.types import Hop, NodeInfo, Span
from .hop import HopFailedError
from .router import Need, Router

AT_ONCE = 4
"""Strangers asked side by side at first."""
PATIENT = 4
"""One more side by side for so many that were asked in vain."""
MOST_AT_ONCE = 32
"""Dials under way at most: what records of nobody, or of somebody else, can make this client do."""
MUTE_S = 0.3
"""One that has not answered for so long is waited for, but holds up nobody any more: twice the round trip of
an antipode."""
MEET_S = 20.0
"""After so long strangers are not looked through any further."""


@dataclass(slots=True)
class _Meeting:
    task: asyncio.Task[list[HopFailedError]]
    wanted: int = 0  # by so many sessions


_Wanted = tuple[Span | None, frozenset[str]]
"""Blocks, and peers that are not to count."""


class Scout:
    """One a client; its sessions share what it does. ``close`` ends it."""

    def __init__(self, links: LinkPool, router: Router) -> None:
        self._links = links
        self._router = router
        self._meetings: dict[_Wanted, _Meeting] = {}

    async def meet(
        self, need: Need, gap: Span | None = None, without: frozenset[str] = frozenset()
    ) -> list[HopFailedError]:
        """Ask strangers until those who answered, ``without`` some, could carry ``need`` through the blocks
        ``gap`` (None: all), or nobody is left to ask. Those that were asked in vain. Who asks for the same
        shares one search."""
        wanted = gap, without
        meeting = self._meetings.get(wanted)
        if meeting is None:
            task = asyncio.create_task(self._meet(need, gap, without))
            meeting = self._meetings[wanted] = _Meeting(task)
            task.add_done_callback(lambda _: self._meetings.pop(wanted, None))
        meeting.wanted += 1
        try:
            return await asyncio.shield(meeting.task)
        finally:
            meeting.wanted -= 1
            if not meeting.wanted and not meeting.task.done():
                meeting.task.cancel()

    async def close(self) -> None:
        tasks = [meeting.task for meeting in self._meetings.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def mute(self, hops: Sequence[Hop]) -> frozenset[str]:
        """Those of ``hops`` to whom no link stands yet."""
        return frozenset(hop.peer_id for hop in hops if not self._links.is_met(hop.peer_id))

    @property
    def hedge_s(self) -> float:
        """How long one that is known may be mute before others are looked for."""
        return self._links.patience.hedge_s

    async def _meet(self, need: Need, gap: Span | None, without: frozenset[str]) -> list[HopFailedError]:
        began = perf_counter()
        asked = set(without)
        failures: list[HopFailedError] = []
        dials: dict[asyncio.Task[HopFailedError | None], float] = {}  # and since when
        try:
            while perf_counter() - began < MEET_S and self._router.unmet(need, gap, without):
                for node in self._next(need, gap, without, asked, len(failures), list(dials.values())):
                    asked.add(node.peer_id)
                    dials[asyncio.create_task(self._ask(node))] = perf_counter()
                if not dials:
                    break
                done, _ = await asyncio.wait(dials, timeout=MUTE_S, return_when=asyncio.FIRST_COMPLETED)
                for dial in done:
                    del dials[dial]
                    if (failure := dial.result()) is not None:
                        failures.append(failure)
        finally:
            for dial in dials:
                dial.cancel()
            if dials:
                await asyncio.wait(dials)
        return failures

    def _next(
        self,
        need: Need,
        gap: Span | None,
        without: frozenset[str],
        asked: set[str],
        in_vain: int,
        since: list[float],
    ) -> list[NodeInfo]:
        """Whom to dial now, besides those dialled ``since`` and still to answer."""
        now = perf_counter()
        mute = sum(now - at > MUTE_S for at in since)
        at_once = min(MOST_AT_ONCE, AT_ONCE + (in_vain + mute) // PATIENT)
        free = min(at_once - (len(since) - mute), MOST_AT_ONCE - len(since))
        if free <= 0:
            return []
        strangers = self._router.to_meet(need, gap, without)
        return [node for node in strangers if node.peer_id not in asked][:free]

    async def _ask(self, node: NodeInfo) -> HopFailedError | None:
        """Whether a stranger is there; the router learns of it."""
        try:
            link = await self._links.get(node.peer_id, node.maddrs)
            async with asyncio.timeout(self._links.patience.dial_s):
                await asyncio.shield(link.welcome)
        except TimeoutError:
            error: SwarmError = PeerTimeoutError(f"peer {node.peer_id[-8:]} does not answer")
        except SwarmError as caught:
            error = caught
        else:
            self._router.answered(node.peer_id)
            self._router.measured(node.peer_id, link.round_trip_s)
            return None
        failure = HopFailedError(node.peer_id, error)
        self._router.passed_by(failure)
        return failure
