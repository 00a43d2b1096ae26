"""A session that outlives its hops.

When hops of its route fail, others take their place and are fed from the journals of those that stay (see
``mend``). Where nothing of a route can be kept, another is opened and fed from the token ids, which the
client holds; hops that have pages of the sequence from before are fed only what is new to all of them. The
generation goes on with the same tokens: the caller sees a pause and an entry in ``repaired``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from ...swarm.errors import (
    BusyError,
    EdgeFailedError,
    HopFailedError,
    LocalNetworkError,
    LocalProtocolError,
    RemoteProtocolError,
    RouteError,
    StreamClosedError,
    SwarmError,
)
from ...swarm.links.pool import LinkPool
from ...swarm.protocol.messages import Want
from ...swarm.routing.prediction import Prediction
from ...swarm.types import Route, Span
from ..hops.hop import SessionSettings
from ..hops.route_session import NoChains, RouteSession, RouteSettings
from ..hops.rows import EmbeddedLater
from ..hops.trace import ChainTimings, HopTimings, PassedOver, Repair, RepairKind
from ..routing.prefix import PrefixKey
from ..routing.route_finder import Need, Planned
from ..routing.route_memory import RouteMemory
from ..routing.route_wait import OnWait, Waiting, WaitLimits
from ..routing.router import Router
from ..routing.slow_search import SlowHop
from .attempts import MAX_OPENINGS, Attempts
from .beginnings import Beginnings, Feed
from .doubts import Doubts
from .fork import fork_route
from .link_report import report_links
from .repair import CannotMendError, Mender, Mending, MoveAbandonedError
from .repair_record import Incident
from .scout import Scout
from .slow_watch import Rewire, SlowWatch

REPAIR_LIMITS = WaitLimits(missing_s=30.0, failed_s=30.0, busy_s=30.0)
"""How long a generation that has begun waits for new hops before it gives up what it has."""
GAP_LOOK_S = 5.0
"""While hops for a gap are waited for: between looks whether a whole new route could be had instead."""


class Embedding(Protocol):
    """The part of ``shards.models.client_part.ClientModel`` that feeds a session."""

    def embed(self, ids: Sequence[int]) -> Tensor: ...  # (tokens, hidden)


class SwarmSession:
    """One sequence of tokens in the swarm. ``need`` bounds its length, ``limits`` the waiting for a first
    route. ``salt`` keys the names of its KV pages (see ``prefix``); without one no hop is asked for any.
    ``memory`` leads later sessions to where this one's pages are, ``beginnings`` those that come while it is
    being fed. Without ``chain`` every activation goes through this client.

    ``cached_tokens``: how many tokens of the first ``append`` the hops held already. ``predicted``: what the
    newest plan should cost.
    """

    def __init__(
        self,
        model: Embedding,
        links: LinkPool,
        router: Router,
        scout: Scout,
        settings: SessionSettings,
        need: Need,
        *,
        wire_codec: str,
        limits: WaitLimits,
        on_wait: OnWait | None = None,
        salt: bytes | None = None,
        memory: RouteMemory | None = None,
        beginnings: Beginnings | None = None,
        chain: bool = True,
    ) -> None:
        self.cached_tokens = 0
        self.repaired: list[Repair] = []
        self.route_s = 0.0
        self.predicted: Prediction | None = None
        self._model = model
        self._links = links
        self._router = router
        self._scout = scout
        self._settings = settings
        self._need = need
        self._wire_codec = wire_codec
        self._limits = limits
        self._on_wait = on_wait
        self._salt = salt
        self._memory = memory
        self._beginnings = beginnings
        self._feed: Feed | None = None  # of the first tokens, while they are fed
        self._chain = chain
        self._ids: list[int] = []
        self._session: RouteSession | None = None
        self._was_open = False
        self._proven = False  # the open session has answered
        self._route: Route | None = None
        self._replaced: list[HopTimings] = []
        self._retired: list[ChainTimings] = []
        self._incident: Incident | None = None
        self._attempts = Attempts(router, scout, need)
        self._doubts = Doubts(router, scout, need)
        self._slow = SlowWatch(router)
        self._closed = False

    @property
    def route(self) -> Route:
        """The route in use, or the last that was. Raises LocalProtocolError before the first."""
        if self._route is None:
            raise LocalProtocolError("the session has no route yet")
        return self._route

    @property
    def is_open(self) -> bool:
        """Its hops hold something, and nothing is amiss."""
        return self._session is not None and not self._closed and self._incident is None

    @property
    def has_route(self) -> bool:
        return self._route is not None

    @property
    def hops(self) -> tuple[HopTimings, ...]:
        """What the hops of the route in use have cost."""
        return tuple(hop.trace.timings() for hop in self._session.hops) if self._session else ()

    @property
    def chains(self) -> tuple[ChainTimings, ...]:
        """What the ways of the route in use have cost, and of those before it."""
        session = self._session
        now = () if session is None else (*session.retired, *session.segments)
        return (*self._retired, *(segment.trace.timings() for segment in now))

    @property
    def replaced(self) -> tuple[HopTimings, ...]:
        """What hops that were replaced have cost."""
        return tuple(self._replaced)

    @property
    def passed_over(self) -> tuple[PassedOver, ...]:
        """Peers that were tried in vain."""
        return tuple(PassedOver(*tried) for tried in self._attempts.passed_over.items())

    @property
    def repair_s(self) -> float:
        """Seconds without a token because of repairs."""
        return sum(repair.seconds for repair in self.repaired)

    @property
    def length(self) -> int:
        """How many tokens were fed."""
        return len(self._ids)

    async def append(self, ids: Sequence[int], x: Tensor | None = None, want: Want = Want.LAST) -> Tensor:
        """Feed token ids; returns hidden states after all blocks, float32: the last one's (1, hidden), or all
        of them (tokens, hidden), or none (0, hidden), as ``want`` says.

        ``x`` (tokens, hidden): their embedding, where the caller has it already.
        Raises what ``Router.plan`` raises when no route can be had (any more), and after MAX_FAILURES in a
        row what the last hop failed of.
        """
        if not ids:
            raise LocalProtocolError("nothing to feed")
        begin = fed = len(self._ids)
        if self._slow.pace.is_time(fed) and self._session is not None:
            self._scout.look(self._session.route)
            await self._look_for_slow_hops()
        self._ids.extend(ids)
        if self._was_open or self._beginnings is None or want is Want.ALL:  # which takes feeding it all
            return await self._append(begin, fed, x, want)
        async with self._beginnings.feeding(self._ids) as feed:
            self._feed = feed
            try:
                hidden = await self._append(begin, fed, x, want)
                self._remember(len(self._ids))
                return hidden
            finally:
                self._feed = None

    async def _append(self, begin: int, fed: int, x: Tensor | None, want: Want) -> Tensor:
        """Feed from ``fed`` on, with ``x`` as the embedding; the rows from ``begin`` on, or the last."""
        while True:
            self._check_open()
            try:
                if self._session is None:
                    fed, x = await self._open(), None
                if want is Want.ALL:
                    fed = await self._feed_up_to(begin, fed)
                hidden = await self._push(x, fed, len(self._ids), want)
            except (HopFailedError, EdgeFailedError) as failure:
                self._check_open()  # what was closed on purpose is no failure of a hop
                await self._repair(failure)
                fed, x = (self._session.acked if self._session is not None else 0), None
            else:
                self._end_incident()
                return hidden

    def rollback(self, length: int) -> None:
        """Forget all but the first ``length`` tokens: the hops hear of it with what is fed next."""
        if not 0 <= length <= len(self._ids):
            raise LocalProtocolError(f"a session of {len(self._ids)} tokens cannot go back to {length}")
        del self._ids[length:]
        if self._session is not None:
            self._session.rollback(length)

    async def fork(self, max_tokens: int | None = None) -> SwarmSession:
        """Another session of the same tokens, with room for ``max_tokens`` (as many as this one). Nothing may
        be appended to this one meanwhile.

        Hops share the KV cache of what both have in common (see ``forking``). Where one refuses, has no room
        or is lost, the fork's first ``append`` feeds it all tokens again.
        """
        self._check_open()
        settings = replace(self._settings, max_tokens=max_tokens or self._settings.max_tokens)
        twin = SwarmSession(
            self._model,
            self._links,
            self._router,
            self._scout,
            settings,
            replace(self._need, kv_tokens=settings.max_tokens),
            wire_codec=self._wire_codec,
            limits=self._limits,
            on_wait=self._on_wait,
            salt=self._salt,
            memory=self._memory,
            beginnings=self._beginnings,
            chain=self._chain,
        )
        await twin.branch(self, len(self._ids))
        return twin

    async def branch(self, parent: SwarmSession, tokens: int) -> None:
        """Begin, with nothing fed yet, as ``parent`` did: with its first ``tokens`` tokens. ``parent`` may go
        on meanwhile, but not go back behind them. As ``fork`` where the hops cannot share their pages."""
        if self._ids or tokens > len(parent._ids):
            raise LocalProtocolError(f"a session of {len(self._ids)} tokens cannot begin as another did")
        self._ids, self._route = parent._ids[:tokens], parent._route
        if tokens and parent.is_open and parent._session is not None and parent._session.acked >= tokens:
            try:
                self._begin(await fork_route(parent._session, tokens, self._settings, self._doubts))
            except HopFailedError:
                pass  # it is fed again
            else:
                self.cached_tokens = tokens

    def close(self, keep: bool = True) -> None:
        """Free every hop at once. Never waits; may be called again. ``keep``: hops may keep the pages for a
        session that begins the same way."""
        self._doubts.close()
        if not self._closed and self._session is not None:
            self._session.close(self._ids if keep else ())
            report_links(self._router, self._session.segments)
            if keep and self._proven:
                self._remember(len(self._ids))
        self._closed = True

    async def _feed_up_to(self, begin: int, fed: int) -> int:
        """Where a step begins that wants the rows from ``begin`` on: what hops lack before is fed first, and
        rows that came before the route broke are asked for again."""
        if fed < begin:
            await self._push(None, fed, begin, Want.NOTHING)
        return begin

    async def _push(self, x: Tensor | None, start: int, end: int, want: Want) -> Tensor:
        """Feed the tokens [start, end), of which ``x`` is the embedding."""
        session = self._session
        if session is None:
            raise LocalProtocolError("the session is not open")
        rows = x if x is not None else EmbeddedLater(self._embed, start, end)
        hidden = await session.forward(rows, start, want)
        if not self._proven:
            self._proven = True
            for hop in session.hops:
                self._router.succeeded(hop.peer_id)
            self._scout.look(session.route)
        return hidden

    def _embed(self, start: int, end: int) -> Tensor:
        with torch.inference_mode():
            return self._model.embed(self._ids[start:end])  # (tokens, hidden)

    # Routes.

    async def _open(self) -> int:
        """Plan and open routes until one opens; returns how many tokens its hops need not be fed."""
        incident = self._incident
        began = perf_counter() if incident is None else incident.began
        began_at = self._router.now() - (perf_counter() - began)
        started = perf_counter()
        own_faults = 0
        await self._attempts.look_around()
        while True:
            planned = await self._router.plan(
                self._need,
                began=began_at,
                limits=self._repair_limits() if self._was_open else self._limits,
                on_wait=self._on_wait,
                held=self._memory.recall(self._ids) if self._memory is not None else None,
            )
            prefix = PrefixKey(self._salt, self._router.model.digest) if self._salt is not None else None
            settings = RouteSettings(
                self._settings,
                self._wire_codec,
                self._router if self._chain else NoChains(),
                dict(planned.nodes),
                prefix,
                self._doubts,
            )
            try:
                session = await self._attempts.opened(
                    RouteSession.open(self._links, planned.route, settings, self._ids), planned.route.hops
                )
            except HopFailedError as failure:
                own_faults += isinstance(failure.cause, LocalNetworkError)
                if own_faults >= MAX_OPENINGS:
                    raise failure.cause from failure
                self._attempts.failed(failure, opening=True)
                await self._attempts.look_around()
            else:
                break
        if self._closed:
            session.close()
            self._check_open()
        held = min(session.length, len(self._ids) - 1)  # the last token is fed in any case: it is asked for
        if not self._was_open:
            self.route_s += perf_counter() - started
            self.cached_tokens = held
        if incident is not None:
            incident.feed_again(session, held)
        for hop in session.hops:
            self._router.answered(hop.peer_id)
            self._router.measured(hop.peer_id, hop.link.round_trip_s)
        self._begin(session, planned.predicted)
        return held

    def _begin(self, session: RouteSession, predicted: Prediction | None = None) -> None:
        self._session, self._route = session, session.route
        self.predicted = self._router.predict(session.route, self._need) or predicted
        self._slow.pace.begin(session.hops)
        self._was_open, self._proven = True, False
        session.on_progress = self._progressed
        if self._feed is not None:
            self._feed.advance(session.length)

    def _progressed(self, tokens: int) -> None:
        """The hops have the first ``tokens``: whoever begins the same way need not feed them."""
        if self._feed is not None:
            if self._feed.is_awaited:
                self._remember(tokens)
            self._feed.advance(tokens)

    def _remember(self, tokens: int) -> None:
        if self._memory is not None and self._session is not None:
            self._memory.remember(self._ids[:tokens], self._session.route)

    def _repair_limits(self) -> WaitLimits:
        return replace(REPAIR_LIMITS, missing_s=max(REPAIR_LIMITS.missing_s, self._limits.missing_s))

    def _check_open(self) -> None:
        if self._links.closed:
            raise StreamClosedError("the client is closed", hint="Connect again.")
        if self._closed:
            raise StreamClosedError("the session was closed on this side")

    # Repairs.

    async def _repair(self, failure: HopFailedError | EdgeFailedError) -> None:
        """Mend the route, or close it so that another is opened."""
        session = self._session
        if self._incident is None:
            self._incident = Incident(len(self._ids) if session is None else session.acked)
        incident = self._incident
        if session is None:
            return
        incident.acked = max(incident.acked, session.acked)
        mender = self._mender(session)
        try:
            await mender.run()
        except CannotMendError as hopeless:
            incident.note(mender.report)
            self._abandon(session, hopeless.failure)
        else:
            incident.note(mender.report)
            self._accept(session, mender.report)

    def _mender(self, session: RouteSession) -> Mender:
        attempts = self._attempts
        return Mender(
            session,
            self._ids,
            embed=self._embed,
            find=self._find,
            failed=attempts.failed,
            opened=attempts.opened,
        )

    def _accept(self, session: RouteSession, report: Mending) -> None:
        """Go on with a mended session."""
        self._replaced.extend(report.replaced)
        self._route = session.route
        self.predicted = self._router.predict(session.route, self._need) or self.predicted
        self._slow.pace.begin(session.hops)
        self._proven = False

    def _abandon(self, session: RouteSession, failure: HopFailedError) -> None:
        """Close what is left of a route; its other hops did nothing wrong, and keep their pages, so that the
        next route need not feed them again."""
        if isinstance(failure.cause, RemoteProtocolError):
            # Whoever sent nonsense may have sent some before that looked right: build on nothing of it.
            self._salt = None
        session.close(self._ids if self._salt is not None else ())
        self._replaced.extend(hop.trace.timings() for hop in session.hops)
        self._retired.extend(segment.trace.timings() for segment in (*session.retired, *session.segments))
        self._session = None
        if self._incident is not None:
            self._incident.reopened = True
            self._incident.lost.extend(hop.peer_id for hop in session.hops if hop.peer_id == failure.peer_id)

    async def _find(
        self,
        gap: Span,
        before: str | None,
        after: str | None,
        keep: frozenset[str],
        avoid: frozenset[str],
        cuts: Sequence[int],
    ) -> Planned:
        """Hops for a gap, as ``mend.FindHops`` says. Waits for some, with the rest of the route kept; a whole
        new route is better than to wait, and ends it with CannotMendError."""
        session = self._session
        if session is None:
            raise LocalProtocolError("the session is not open")
        began_at = self._router.now()
        limits = self._repair_limits()
        need = Need(self._need.kv_tokens, max(1, session.acked), self._need.new_tokens)
        slice_s = 0.0
        keep |= avoid  # they have only just failed
        await self._attempts.look_around(gap)
        while True:
            waited = self._router.now() - began_at
            left = limits.missing_s - waited
            try:
                return await self._router.plan_gap(
                    need,
                    gap,
                    before=before,
                    after=after,
                    keep=keep,
                    cuts=cuts,
                    limits=WaitLimits(*(min(slice_s, max(0.0, left)),) * 3),
                    on_wait=self._waiting(began_at + limits.missing_s),
                )
            except (RouteError, BusyError) as error:
                if self._incident is None:
                    raise  # a hop that still works was to be moved
                await self._prefer_other_route(error)
                if left <= 0:
                    raise
            slice_s = GAP_LOOK_S
            keep -= avoid

    async def _prefer_other_route(self, error: SwarmError) -> None:
        """Raises CannotMendError where a whole route can be had at once."""
        try:
            await self._router.plan(self._need, limits=WaitLimits(0.0, 0.0, 0.0))
        except (RouteError, BusyError):
            return
        session = self._session
        peer_id = session.hops[0].peer_id if session is not None else ""
        raise CannotMendError(HopFailedError(peer_id, error)) from error

    def _waiting(self, until: float) -> OnWait | None:
        """Tells of the wait as a whole, which ends at ``until`` on the router's clock."""
        on_wait = self._on_wait
        if on_wait is None:
            return None

        def tell(waiting: Waiting) -> None:
            on_wait(replace(waiting, seconds_left=max(0.0, until - self._router.now())))

        return tell

    async def _look_for_slow_hops(self) -> None:
        """Replace a hop that works, where the rest of the answer pays for it. At a token's boundary."""
        session = self._session
        if session is None or self._incident is not None:
            return
        fed = len(self._ids)
        match self._slow.look(session, self._need.kv_tokens - fed, fed):
            case SlowHop(number=number):
                slow = session.hops[number]
                cause = f"{slow.link.name} is slower than another is"
                await self._change(session, lambda mender: mender.move(number, cause), "planned")
            case Rewire() as rewire:
                session.unchained |= rewire.apart
                session.unchained -= rewire.join
                session.rejoin = rewire.join
                await self._change(session, lambda mender: mender.run())

    async def _change(
        self,
        session: RouteSession,
        how: Callable[[Mender], Awaitable[None]],
        kind: RepairKind | None = None,
    ) -> None:
        """Change a route that works; a repair of ``kind``, if it is one."""
        fed, began = len(self._ids), perf_counter()
        mender = self._mender(session)
        try:
            await how(mender)
        except (MoveAbandonedError, RouteError, BusyError):
            return
        except CannotMendError as hopeless:
            self._incident = Incident(fed, began)
            self._incident.note(mender.report)
            self._abandon(session, hopeless.failure)
            return
        finally:
            session.rejoin = frozenset()
        self._accept(session, mender.report)
        if kind is not None or mender.report.lost:
            incident = Incident(fed, began)
            incident.note(mender.report)
            self.repaired.append(incident.closed(kind))

    def _end_incident(self) -> None:
        """Tokens come again."""
        self._attempts.succeeded()
        self._doubts.succeeded()
        if self._incident is not None:
            self.repaired.append(self._incident.closed())
            self._incident = None
