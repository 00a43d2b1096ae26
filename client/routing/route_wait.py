"""Waiting for a route: for blocks that no node serves, or for peers that are busy or failed a moment ago."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf

from ...dht.directory import ALONE_S, Directory
from ...swarm.errors import BusyError, NetworkError
from ...swarm.peer_health import PeerHealth
from ...swarm.placement.demand import WantedModel
from ...swarm.routing.best_route import NoRouteError, missing_blocks
from ...swarm.types import ModelRef, NodeInfo, NodeState, Span
from .announcements import Announcements
from .bans import Bans
from .demand import DemandTeller
from .no_route import explain, who_loads
from .route_finder import Planned

SNAPSHOT_S = 5.0
"""Announcements up to this many seconds old are used as they are: new nodes need not be seen at once."""
REPAIR_SNAPSHOT_S = 60.0
"""The same after a failure. Where nodes died, reads stall for seconds, and a replacement is mostly known. It
is the life of an announcement."""
LOADING_S = 300.0
"""Nodes that load the blocks which nobody serves are waited for this many seconds, unless the caller says
otherwise: a large model comes from a disk in less."""
POLL_S = 0.5
"""While no route covers the model, the directory is read every this many seconds."""


@dataclass(frozen=True, slots=True)
class WaitLimits:
    """Seconds to wait for a route: while blocks are ``missing``, while peers that ``failed`` a moment ago
    are all that is in the way (they may be restarting), or ``busy`` ones, or while nodes are ``loading`` all
    that is missing. Peers of the directory that do not answer count as ``failed``; while those that do are
    ``alone``, blocks that they lack may be there."""

    missing_s: float = 0.0
    failed_s: float = 8.0
    busy_s: float = 30.0
    alone_s: float = ALONE_S
    loading_s: float = LOADING_S


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why there is no route yet; given to ``on_wait`` about twice a second. ``missing`` may be empty while
    all that could serve are busy or failed lately. ``lost``: those of ``seen`` that were lost; one that
    answers is back. ``text``: all of it in one line."""

    message: str
    missing: tuple[Span, ...]
    seen: tuple[NodeInfo, ...]
    seconds_left: float
    lost: tuple[NodeInfo, ...] = ()

    @property
    def text(self) -> str:
        blocks = ", ".join(map(str, self.missing))
        what = f"blocks {blocks}" if blocks else "peers that answer"
        loading = who_loads(self.seen)
        return f"Waiting for {what} ({self.seconds_left:.0f} s left)" + (f"; {loading}" if loading else "")


OnWait = Callable[[Waiting], None]
OnWaiting = Callable[[Waiting | None], None]
"""Told the same, and None when it goes on."""
Search = Callable[[Sequence[NodeInfo], frozenset[str]], Planned]
"""A route of these nodes, without the banned ones. Raises NoRouteError."""


class RouteWait:
    """The waiting of one client. ``clock`` and ``sleep`` take seconds. ``demand`` is told while there is no
    route."""

    def __init__(
        self,
        model: ModelRef,
        directory: Directory,
        announcements: Announcements,
        *,
        health: PeerHealth,
        bans: Bans,
        demand: DemandTeller | None,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._model = model
        self._wanted = WantedModel(model.name, model.digest)
        self._directory = directory
        self._announcements = announcements
        self._health = health
        self._bans = bans
        self._demand = demand
        self._now = clock
        self._sleep = sleep

    async def first(
        self,
        search: Search,
        *,
        kv_tokens: int,
        began: float | None,
        limits: WaitLimits | None,
        on_wait: OnWait | None,
        max_age_s: float,
        at_most_s: float = inf,
    ) -> Planned:
        """The first route that ``search`` finds. ``began``: since when the caller waits (None: now).
        ``max_age_s``: of announcements that are searched without a look at the directory first.
        ``at_most_s``: gives up after this many seconds from now in any case.

        Raises NoRouteError, BusyError or ModelMismatchError, whichever explains best why there is none.
        """
        give_up = self._now() + at_most_s
        began = self._now() if began is None else began
        limits = limits or WaitLimits()
        answered_by = began + max(limits.missing_s, limits.failed_s)
        self._announcements.refresh_after(SNAPSHOT_S)
        fresh = False
        while True:
            nodes = await self._read(0.0 if fresh else max_age_s, answered_by, on_wait)
            try:
                planned = search(nodes, self._bans.banned(self._now()))
            except NoRouteError as error:
                problem = error
            else:
                if self._demand is not None:
                    self._demand.found(self._wanted)
                return planned
            if not fresh:
                fresh = True
                continue
            if self._demand is not None:
                self._demand.miss(self._wanted)
            now = self._now()
            banned, barred = self._bans.banned(now), self._bans.barred(now)
            if limits.missing_s and barred != banned:
                with suppress(NoRouteError):
                    return search(nodes, barred)
            limit, until = self._worth_waiting(problem, nodes, search, began, limits)
            patient = began + limits.missing_s  # a wait for missing blocks is for any new node
            if until > limit > now and not limits.missing_s:
                # Those that failed are banned for longer than users want to wait: they are better than none.
                await self._sleep(min(POLL_S, limit - now))
                with suppress(NoRouteError):
                    return search(nodes, self._bans.hopeless(self._now()))
            if now >= min(give_up, patient if until > limit else limit):
                explained = await explain(
                    problem,
                    kv_tokens,
                    self._model,
                    self._directory,
                    self._bans.causes,
                    banned,
                )
                if isinstance(explained, NoRouteError):
                    explained.gone = banned
                raise explained
            if on_wait is not None:
                lost = tuple(node for node in problem.seen if node.peer_id in self._bans.lost)
                on_wait(Waiting(problem.message, problem.missing, problem.seen, limit - now, lost))
            await self._sleep(min(POLL_S, max(until, now + 0.01) - now, min(give_up, limit) - now))

    async def _read(self, max_age_s: float, until: float, on_wait: OnWait | None) -> list[NodeInfo]:
        """The announcements. Raises NetworkError if nobody answers before ``until``."""
        while True:
            try:
                return await self._announcements.within(max_age_s)
            except NetworkError as silence:
                left = until - self._now()
                if left <= 0:
                    raise
                if on_wait is not None:
                    on_wait(Waiting(silence.message, (), (), left))
                await self._sleep(min(POLL_S, left))

    def _worth_waiting(
        self,
        problem: NoRouteError,
        nodes: Sequence[NodeInfo],
        search: Search,
        began: float,
        limits: WaitLimits,
    ) -> tuple[float, float]:
        """(until when waiting makes sense at most, when something may change at the earliest)."""
        now = self._now()
        try:
            search(nodes, frozenset())
        except NoRouteError:
            doubt_s = limits.alone_s if self._directory.is_alone else 0.0
            if _is_loading(problem.missing, nodes):
                doubt_s = max(doubt_s, limits.loading_s)
            limit = began + max(limits.missing_s, doubt_s)
            return limit, max(now, min(now + POLL_S, limit))
        # Only bans are in the way.
        banned = self._bans.banned(now) & {node.peer_id for node in nodes}
        busy = all(isinstance(self._bans.causes.get(peer_id), BusyError) for peer_id in banned)
        release = self._health.next_release(now)
        longest = max(limits.missing_s, limits.busy_s if busy else limits.failed_s)
        if banned & self._bans.lost:
            return began + longest, now + POLL_S
        return began + longest, now if release is None else release


def _is_loading(missing: Sequence[Span], nodes: Sequence[NodeInfo]) -> bool:
    """Whether nodes load all that is missing."""
    joining = [node for node in nodes if node.state is NodeState.JOINING]
    return bool(missing) and not any(missing_blocks(joining, hole.end, start=hole.start) for hole in missing)
