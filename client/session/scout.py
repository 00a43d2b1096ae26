"""Finding out which peers are there, before and beside what a user waits for.

Where there is no route of peers that have answered, strangers are dialled side by side, a few at first and
more as those fail, until the ones that answered cover the model. So hundreds of false records cost as long as
a few, and a silent peer holds up no other. An answer is a connection and a right WELCOME. Where peers
answered and then did not work, candidates are put on trial side by side in the same way.

Beside a session's work, peers that have not worked for this client are put on trial one at a time, and rarely
once enough have passed. Those become reserves, known to work before a hop is lost, and an honest newcomer is
soon as good as the others. What a user waits for never depends on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import Any

import numpy as np

from ...swarm.boundaries import Boundaries
from ...swarm.errors import HopFailedError, PeerTimeoutError, SwarmError
from ...swarm.fairness.recent import RecentMap
from ...swarm.links.pool import LinkPool
from ...swarm.runtime.tasks import cancel_all
from ...swarm.types import Hop, NodeInfo, Route, short_peer_id
from ..routing.evidence import Standing
from ..routing.reserves import Wanted
from ..routing.route_finder import Need
from ..routing.router import Router
from .trial import try_peer

AT_ONCE = 4
"""At first this many strangers are asked side by side."""
PATIENT = 4
"""One more stranger is asked side by side for every few that were asked and did not answer."""
MOST_AT_ONCE = 32
"""At most this many dials are under way: forged records must not make this client dial without bound."""
MUTE_S = 0.3
"""A peer that has not answered for this many seconds is waited for, but others are asked meanwhile. It is
twice the round trip to the other side of the earth."""
MEET_S = 20.0
"""The search among strangers ends after this many seconds."""
TRIALS_S = 10.0
"""Trials go on for this many seconds after the last time that a session was at work."""
TRIAL_PAUSE_S = 0.5
"""There are this many seconds between two trials: each is a few steps of work for a peer, and some for this
machine."""


MAX_LOST = 1024
"""Of this many lost peers it is remembered when they were asked."""
AGAIN_S = 1.0
"""A lost peer that is waited for is asked after this many seconds whether it is back, and each time so much
later than the time before."""


@dataclass(slots=True)
class _Meeting:
    task: asyncio.Task[list[HopFailedError]]
    wanted: int = 0  # how many sessions wait for it


class Scout:
    """One a client; its sessions share what it does. ``embed``: token ids to (tokens, hidden). ``close`` ends
    it."""

    def __init__(
        self,
        links: LinkPool,
        router: Router,
        embed: Callable[[Sequence[int]], np.ndarray],
        wire_codec: str,
        boundaries: Boundaries,
    ) -> None:
        self._links = links
        self._router = router
        self._embed = embed
        self._wire_codec = wire_codec
        self._boundaries = boundaries
        self._trials: asyncio.Task[None] | None = None
        self._until = 0.0  # when to end them, on perf_counter
        self._meetings: dict[Wanted, _Meeting] = {}
        self._lost: RecentMap[str, tuple[int, float]] = RecentMap(MAX_LOST)  # asked how often, and when last
        self._asking: dict[str, asyncio.Task[None]] = {}  # by peer id

    async def meet(self, need: Need, wanted: Wanted) -> list[HopFailedError]:
        """Find out which peers are there, or with ``wanted.least`` PROVEN which ones work, until those found
        could carry ``need``, or no peer is left. Returns the failures. Sessions that want the same share one
        search."""
        meeting = self._meetings.get(wanted)
        if meeting is None:
            task = asyncio.create_task(self._meet(need, wanted))
            meeting = self._meetings[wanted] = _Meeting(task)
        meeting.wanted += 1
        try:
            return await asyncio.shield(meeting.task)
        finally:
            meeting.wanted -= 1
            if not meeting.wanted:
                # At once: who comes while it is still ending must not wait for what is cancelled.
                del self._meetings[wanted]
                meeting.task.cancel()

    def look(self, route: Route) -> None:
        """Put peers on trial for some seconds if that is worth it; ``route`` is in use. Never waits."""
        self._until = perf_counter() + TRIALS_S
        if self._trials is None or self._trials.done():
            self._trials = asyncio.create_task(self._try_some(route))

    async def _try_some(self, route: Route) -> None:
        while perf_counter() < self._until and (node := self._router.reserves.to_try(route)) is not None:
            self._router.reserves.asked(node)
            await self._try(node)
            await asyncio.sleep(TRIAL_PAUSE_S)

    async def _try(self, node: NodeInfo) -> HopFailedError | None:
        """Whether a peer works; the router learns of it."""
        x = self._embed([0])  # (1, hidden)
        try:
            tried = await try_peer(self._links, node, x, self._wire_codec, self._boundaries)
        except HopFailedError as failure:
            self._router.failed_trial(failure)
            return failure
        self._router.tried(node.peer_id, tried.block_s, tried.round_trip_s)
        return None

    def ask_again(self, lost: Sequence[NodeInfo]) -> None:
        """Ask peers that a session waits for whether they are back, each now and then; the router learns of
        those that are. Never waits."""
        now = perf_counter()
        for node in lost:
            if len(self._asking) >= MOST_AT_ONCE:
                return
            times, last = self._lost.get(node.peer_id, (0, -inf))
            if node.peer_id not in self._asking and now - last >= AGAIN_S * times:
                self._lost[node.peer_id] = times + 1, now
                self._asking[node.peer_id] = asyncio.create_task(self._ask_again(node))

    async def _ask_again(self, node: NodeInfo) -> None:
        try:
            if await self._ask(node, is_lost=True) is None:
                self._lost.pop(node.peer_id, None)
        finally:
            del self._asking[node.peer_id]

    async def close(self) -> None:
        tasks: list[asyncio.Task[Any]] = [meeting.task for meeting in self._meetings.values()]
        tasks += self._asking.values()
        tasks += [] if self._trials is None else [self._trials]
        await cancel_all(tasks)

    def mute(self, hops: Sequence[Hop]) -> frozenset[str]:
        """The ``hops`` without a link yet."""
        return frozenset(hop.peer_id for hop in hops if not self._links.is_met(hop.peer_id))

    @property
    def hedge_s(self) -> float:
        """How long one that is known may be mute before others are looked for."""
        return self._links.patience.hedge_s

    async def _meet(self, need: Need, wanted: Wanted) -> list[HopFailedError]:
        ask = self._try if wanted.least is Standing.PROVEN else self._ask
        began = perf_counter()
        asked = set(wanted.without)
        failures: list[HopFailedError] = []
        dials: dict[asyncio.Task[HopFailedError | None], float] = {}  # and since when
        try:
            while perf_counter() - began < MEET_S and self._router.reserves.unmet(need, wanted):
                for node in self._next(need, wanted, asked, len(failures), list(dials.values())):
                    asked.add(node.peer_id)
                    self._router.reserves.asked(node)
                    dials[asyncio.create_task(ask(node))] = perf_counter()
                if not dials:
                    break
                done, _ = await asyncio.wait(dials, timeout=MUTE_S, return_when=asyncio.FIRST_COMPLETED)
                for dial in done:
                    del dials[dial]
                    if (failure := dial.result()) is not None:
                        failures.append(failure)
        finally:
            await cancel_all(dials)
        return failures

    def _next(
        self, need: Need, wanted: Wanted, asked: set[str], in_vain: int, since: list[float]
    ) -> list[NodeInfo]:
        """The peers to dial now, besides those dialled ``since`` and still to answer."""
        now = perf_counter()
        mute = sum(now - at > MUTE_S for at in since)
        at_once = min(MOST_AT_ONCE, AT_ONCE + (in_vain + mute) // PATIENT)
        free = min(at_once - (len(since) - mute), MOST_AT_ONCE - len(since))
        if free <= 0:
            return []
        candidates = self._router.reserves.to_meet(need, wanted)
        return [node for node in candidates if node.peer_id not in asked][:free]

    async def _ask(self, node: NodeInfo, *, is_lost: bool = False) -> HopFailedError | None:
        """Whether a peer is there; the router learns of it, and that it is not, where that is news."""
        try:
            link = await self._links.get(node.peer_id, node.dial_maddrs)
            async with asyncio.timeout(self._links.patience.dial_s):
                await asyncio.shield(link.welcome)
        except TimeoutError:
            error: SwarmError = PeerTimeoutError(f"peer {short_peer_id(node.peer_id)} does not answer")
        except SwarmError as caught:
            error = caught
        else:
            self._router.answered(node.peer_id)
            self._router.measured(node.peer_id, link.round_trip_s)
            return None
        failure = HopFailedError(node.peer_id, error)
        if not is_lost:
            self._router.passed_by(failure)
        return failure
