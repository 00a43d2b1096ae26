"""How many failures a session survives, and what it does about them besides planning again.

Failures of peers that have worked for this client count: after many in a row, something is wrong with the
request. Records of strangers cost nothing to write, so a few hundred of their failures must not end a
request. Other strangers are asked side by side whether they are there, and only time bounds this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from math import inf
from typing import Any, Protocol, TypeVar

from ...swarm.errors import BusyError, HopFailedError, LocalNetworkError, NetworkError, PeerLateError
from ...swarm.figures import MOST_AHEAD_OF_STATES
from ...swarm.types import Hop, Span, short_peer_id
from ..routing.evidence import Standing
from ..routing.no_route import nobody_opens
from ..routing.reserves import Wanted
from ..routing.route_finder import Need, Planned
from ..routing.router import Router
from .scout import MUTE_S, Scout

MAX_OPENINGS = 32
"""A session gives up when proven peers failed this often to open, for a route or a gap; busy ones do not
count. Bans grow, so its time mostly runs out first."""
MAX_FAILURES = 8
"""A session gives up after this many failures of proven peers without a token in between: a prompt that
brings nodes down must not walk through the swarm."""
MAX_STRANGE_FAILURES = 16
"""The same for peers that never worked for this client. Some may be there to fail, and a new client knows no
peer."""
LOSS_TOKENS, LOSS_SHARE = 32, 8
"""A peer that let go of tokens of a session may do so again after LOSS_TOKENS more. If it has to be fed more
than LOSS_SHARE times as many again, it may after that number divided by LOSS_SHARE. Else a peer that lets one
token pass and then loses its state would make each token cost all of them."""
WARY_S = 2.0
"""If liars were met lately and too few peers are proven, trials before a route is opened take at most this
many seconds."""
STRANGERS_S = 30.0
"""Strangers that open no session are tried for this many seconds without a token in between, or for as long
as the caller waits for blocks that nobody serves: announcements of dead nodes may be all that is in the way
until others have taken these blocks."""


class Closeable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=Closeable)


class Attempts:
    """The attempts of one session. ``patience_s``: how long the caller waits for blocks that nobody serves.
    ``most_back``: a hop can go back by this many tokens; it may have let go of what is further back.
    ``passed_over``: peers that were tried and did not serve, and why. ``until``: a failure after this time is
    the last, on the router's clock."""

    def __init__(
        self,
        router: Router,
        scout: Scout,
        need: Need,
        patience_s: float = 0.0,
        *,
        most_back: int = MOST_AHEAD_OF_STATES,
    ) -> None:
        self.passed_over: dict[str, str] = {}
        self.until = inf
        self._router = router
        self._scout = scout
        self._need = need
        self._most_back = most_back
        self._strangers_s = max(STRANGERS_S, patience_s)
        self._openings = self._failures = self._strange = 0
        self._since: float | None = None  # of strangers that do not open
        self._lacking: Standing | None = None  # what others failed to be
        self._excused: set[str] = set()
        self._may_lose: dict[str, int] = {}  # at which token of the session a peer may lose some of it again
        self._taken_back = 0  # tokens since the last one came

    def excuses(self, peer_id: str) -> bool:
        """Whether a failure that a healthy peer may have is not held against this one: the first is
        not, until tokens come again."""
        excused = peer_id not in self._excused
        self._excused.add(peer_id)
        return excused

    def excuses_loss(self, peer_id: str, acked: int, again: int) -> bool:
        """Whether a peer that has let go of ``again`` tokens of a session may be healthy. ``acked`` tokens
        came out of the route by now: enough since the last loss to be worth what that cost."""
        excused = acked >= self._may_lose.get(peer_id, 0)
        if excused:
            self._may_lose[peer_id] = acked + max(LOSS_TOKENS, again // LOSS_SHARE)
        return excused

    def went_back(self, tokens: int) -> None:
        """The caller took ``tokens`` back: hops that need not be able to go so far may say so."""
        self._taken_back += tokens
        if self._taken_back > self._most_back:
            self._may_lose.clear()

    def succeeded(self) -> None:
        """Tokens come again."""
        self._excused.clear()
        self._taken_back = 0
        self._openings = self._failures = self._strange = 0
        self._since = None

    def failed(self, failure: HopFailedError, opening: bool, blocks: Span | None = None) -> None:
        """Tell the router. Raises the peer's error, or an error that says why no peer opens, when it was one
        too many. ``blocks``: what it was to open."""
        proven = self._router.is_proven(failure.peer_id)
        self._router.failed(failure)
        is_over = self._router.now() >= self.until
        if isinstance(failure.cause, LocalNetworkError) and not is_over:
            return
        self.passed_over[failure.peer_id] = failure.cause.message
        if not opening and not proven:
            self._lacking = Standing.PROVEN
        is_late = isinstance(failure.cause, PeerLateError) and not opening
        if (isinstance(failure.cause, BusyError) or is_late) and not is_over:
            return  # it may only be slow, and was left for one that is there
        if not opening:
            self._failures += proven
            self._strange += not proven
        elif proven:
            self._openings += 1
        else:
            self._lacking = self._lacking or Standing.ANSWERED
            now = self._router.now()
            self._since = now if self._since is None else self._since
            if now - self._since > self._strangers_s:
                raise nobody_opens(self.passed_over, failure.cause, blocks) from failure
        if (
            self._failures >= MAX_FAILURES
            or self._strange >= MAX_STRANGE_FAILURES
            or self._openings >= MAX_OPENINGS
            or is_over
        ):
            if opening and isinstance(failure.cause, NetworkError):
                raise nobody_opens(self.passed_over, failure.cause, blocks) from failure
            raise failure.cause from failure

    async def look_around(self, gap: Span | None = None) -> None:
        """If strangers have failed, find out which peers are there, for the whole model or the blocks
        ``gap``; and which ones work, if some were there and did not. For some seconds at most if liars were
        met lately."""
        left = self.until - self._router.now()
        with suppress(TimeoutError):
            async with asyncio.timeout(None if left == inf else left):
                await self._look_around(gap)

    async def _look_around(self, gap: Span | None) -> None:
        if self._lacking is not None:
            least, self._lacking = self._lacking, None
            self._note(await self._scout.meet(self._need, Wanted(gap, least=least)))
        elif self._router.is_wary():
            with suppress(TimeoutError):
                async with asyncio.timeout(WARY_S):
                    await self._scout.meet(self._need, Wanted(gap, least=Standing.PROVEN))

    async def first(
        self, plan: Callable[[], Awaitable[Planned]], open_: Callable[[Planned], Coroutine[Any, Any, T]]
    ) -> tuple[T, Planned]:
        """The first route that opens, and its plan. Raises what ``plan`` raises, and as ``failed``."""
        own_faults = 0
        await self.look_around()
        while True:
            planned = await plan()
            try:
                return await self.opened(open_(planned), planned.route.hops), planned
            except HopFailedError as failure:
                own_faults += isinstance(failure.cause, LocalNetworkError)
                if own_faults >= MAX_OPENINGS:
                    raise failure.cause from failure
                spans = {hop.peer_id: hop.span for hop in planned.route.hops}
                self.failed(failure, opening=True, blocks=spans.get(failure.peer_id))
                await self.look_around()

    async def opened(
        self, opening: Coroutine[Any, Any, T], hops: Sequence[Hop], gap: Span | None = None
    ) -> T:
        """The outcome of ``opening``, which opens a route or hops for the blocks ``gap``. While some of
        ``hops`` are mute, others are asked, and are preferred if they could do without the mute ones. Where
        the caller was cancelled, what opens too late is closed. Raises HopFailedError."""
        task = asyncio.create_task(opening)
        try:
            strange = any(self._router.is_stranger(hop.peer_id) for hop in hops)
            await asyncio.wait([task], timeout=MUTE_S if strange else self._scout.hedge_s)
            if not task.done() and (mute := self._scout.mute(hops)):
                await self._prefer_others(task, mute, gap)
            return await task
        except BaseException:
            task.cancel()
            task.add_done_callback(_close)  # it may be over already, or end well in spite of that
            await asyncio.wait([task])
            raise

    async def _prefer_others(self, opening: asyncio.Task[T], mute: frozenset[str], gap: Span | None) -> None:
        """Raises HopFailedError when others than the ``mute`` ones are there."""
        wanted = Wanted(gap, mute)
        meeting = asyncio.create_task(self._scout.meet(self._need, wanted))
        try:
            await asyncio.wait([opening, meeting], return_when=asyncio.FIRST_COMPLETED)
            if not meeting.done():
                return
            self._note(meeting.result())
        finally:
            meeting.cancel()
        if not opening.done() and not self._router.reserves.unmet(self._need, wanted):
            first, *others = [
                HopFailedError(
                    peer_id, PeerLateError(f"peer {short_peer_id(peer_id)} does not answer, and others do")
                )
                for peer_id in sorted(mute)
            ]
            for failure in others:
                self._router.passed_by(failure)
            raise first

    def _note(self, failures: list[HopFailedError]) -> None:
        for failure in failures:
            self.passed_over.setdefault(failure.peer_id, failure.cause.message)


def _close(opening: asyncio.Task[T]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
