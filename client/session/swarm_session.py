"""A session that outlives its hops: the public door to a sequence of tokens in the swarm.

``append`` feeds token ids and gives hidden states; ``send`` and ``receive`` do so for a few tokens at a time,
sent ahead of their results. The caller sees no failures of hops: only a pause, and an entry in ``repaired``.

Theory of operation
-------------------
A route is a line of hops, each of them a session on one node. This is what a hop is to the client; the table
in ``hops/state.py`` has every event and who causes it:

                  a step failed, or a neighbour is lost
    ┌─────────┐ ──────────────────────────────────────► ┌───────────┐
    │ WORKING │ ◄────────────────────────────────────── │ SUSPECTED │ ──┐
    └─────────┘       cleared: not to blame             └───────────┘   │ to blame
      ▲     │         its chain is silent for long      ┌───────────┐   │
      │ fed └─────────────────────────────────────────► │  STALLED  │ ──┤
    ┌───────────┐                                       └───────────┘   ▼
    │ REPLAYING │ ──────────────────────────────────────────────────► LOST (final; from WORKING, too)
    └───────────┘     its link ended, it is mute, it broke the protocol
      ▲
      └ lacks tokens: opened in the place of a lost hop, or it let go of them and said so

Only ``HopClient`` changes its state: when its link tells something (``deliver``, ``fail``), when a
``Segment`` finds a result wrong (``suspect``, ``mark_lost``), and when a ``RouteRepair`` has looked
(``clear``, ``lacks``, ``fed``). Only ``RouteSession`` changes which hops there are, and which of them are
chained.

The loop of ``append``:

1. Open a route, if there is none (``Attempts.first``). What its hops hold already is not fed to them.
2. Push the other tokens (``RouteSession.forward``). ``acked`` counts those that came out of the last hop.
3. If that raises, repair the route (``RouteRepair``), in rounds until nothing is wrong: diagnose all hops,
   clear those that are not to blame, replace those that are lost, wire neighbours to each other, and let
   each new hop have a replay of what it lacks, up to ``acked``. Then go on with 2, from ``acked``.
4. If nothing of the route can be kept (``RouteLostError``), close it and go on with 1.

The order that makes it safe: a round takes new step numbers before it changes anything, so that late answers
to old steps count for nothing (``ignore_before``). It clears what the diagnosis has used before it waits for
anything new, so that what happens from then on is seen in the next round. A new hop takes its place once it
is open. Steps flow again when no hop is in trouble or lacks tokens. No token is lost or doubled, because the
client holds all token ids, and counts only what came out of the last hop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

from ...swarm.errors import (
    BusyError,
    EdgeFailedError,
    HopFailedError,
    LocalProtocolError,
    PeerLateError,
    RemoteProtocolError,
    RouteError,
    StreamClosedError,
)
from ...swarm.links.pool import LinkPool
from ...swarm.protocol.messages import Want
from ...swarm.routing.prediction import Prediction
from ...swarm.types import Route
from ..hops.plan import RouteSettings, most_ahead
from ..hops.route_session import RouteSession
from ..hops.rows import EmbeddedLater
from ..hops.trace import ChainTimings, HopTimings, PassedOver, Repair, RepairKind
from ..routing.route_finder import Need, Planned
from ..routing.route_memory import RouteMemory
from ..routing.route_wait import OnWaiting, Waiting, WaitLimits
from ..routing.router import Router
from ..routing.slow_search import SlowHop
from .attempts import Attempts
from .beginnings import Beginnings, Feed
from .doubts import Doubts
from .fork import fork_route
from .gap_search import GapSearch, RouteLostError, repair_limits
from .repair import MoveAbandonedError, RouteRepair
from .repair_record import RepairRecord
from .scout import Scout
from .slow_watch import Rewire, SlowWatch

if TYPE_CHECKING:
    from ...shards.models.client_part import ClientModel


class SwarmSession:
    """One sequence of tokens in the swarm. ``need`` bounds its length, ``limits`` the waiting for a first
    route. ``memory`` leads later sessions to where this one's pages are, ``beginnings`` those that come while
    it is being fed.

    ``cached_tokens``: how many tokens of the first ``append`` the hops held already. ``predicted``: what the
    newest plan should cost. ``waiting``: what it waits for now, if it does; ``on_wait`` is told.
    """

    def __init__(
        self,
        model: ClientModel,
        links: LinkPool,
        router: Router,
        scout: Scout,
        settings: RouteSettings,
        need: Need,
        *,
        limits: WaitLimits,
        on_wait: OnWaiting | None = None,
        memory: RouteMemory | None = None,
        beginnings: Beginnings | None = None,
    ) -> None:
        self.cached_tokens = 0
        self.repaired: list[Repair] = []
        self.route_s = 0.0
        self.predicted: Prediction | None = None
        self.waiting: Waiting | None = None
        self._model = model
        self._links = links
        self._router = router
        self._scout = scout
        self._need = need
        self._limits = limits
        self._on_wait = on_wait
        self._behind: Collection[SwarmSession] = ()
        self._memory = memory
        self._beginnings = beginnings
        self._feed: Feed | None = None  # of the first tokens, while they are fed
        self._ids: list[int] = []
        self._answered = 0  # tokens that the caller needs no rows of any more
        self._sent: deque[int] = deque()  # tokens of each step behind them, as the caller cut them
        self._posted = 0  # of these steps, on the route in use
        self._void_rows = 0  # on routes that were given up
        self._session: RouteSession | None = None
        self._was_open = False
        self._proven = False  # the open session has answered
        self._route: Route | None = None
        self._replaced: list[HopTimings] = []
        self._retired: list[ChainTimings] = []
        self._record: RepairRecord | None = None  # since the route broke, until tokens come again
        self._attempts = Attempts(
            router, scout, need, limits.missing_s, most_back=most_ahead(settings.session)
        )
        self._gaps = GapSearch(router, self._attempts, need, limits, self._tell)
        self._doubts = Doubts(router, scout, need)
        self._settings = replace(settings, doubts=self._doubts, on_progress=self._progressed)
        self._slow = SlowWatch(router)
        self._changing = False  # the route, which works
        self._closed = False

    @property
    def route(self) -> Route:
        """The route in use, or the last that was. Raises LocalProtocolError before the first."""
        if self._route is None:
            raise LocalProtocolError("the session has no route yet")
        return self._route

    @property
    def is_open(self) -> bool:
        """Its hops hold tokens, and nothing is wrong."""
        return self._session is not None and not self._closed and self._record is None

    @property
    def has_route(self) -> bool:
        return self._route is not None

    @property
    def hops(self) -> tuple[HopTimings, ...]:
        """What the hops of the route in use have cost."""
        return tuple(hop.trace.timings() for hop in self._session.hops) if self._session else ()

    @property
    def chains(self) -> tuple[ChainTimings, ...]:
        """What the links of the route in use have cost, and those of the routes before it."""
        session = self._session
        now = () if session is None else (*session.retired, *session.segments)
        return (*self._retired, *(segment.trace.timings() for segment in now))

    @property
    def replaced(self) -> tuple[HopTimings, ...]:
        """What hops that were replaced have cost."""
        return tuple(self._replaced)

    @property
    def passed_over(self) -> tuple[PassedOver, ...]:
        """Peers that were tried, and did not open or serve."""
        return tuple(PassedOver(*tried) for tried in self._attempts.passed_over.items())

    @property
    def repair_s(self) -> float:
        """Seconds without a token because of repairs."""
        return sum(repair.seconds for repair in self.repaired)

    @property
    def most_ahead(self) -> int:
        """How many tokens may be under way: hops can go back by as many, and no line holds too much."""
        most = most_ahead(self._settings.session)
        return most if self._session is None else min(most, self._session.most_ahead)

    @property
    def void_rows(self) -> int:
        """Rows that were sent ahead of their results, and then were of no use."""
        return self._void_rows + (0 if self._session is None else self._session.void_rows)

    @property
    def line_row_s(self) -> float:
        """Seconds that a row keeps the slowest line to a hop busy, as far as a limit was told; else 0."""
        return 0.0 if self._session is None else self._session.line_row_s

    @property
    def length(self) -> int:
        """How many tokens were fed."""
        return len(self._ids)

    async def append(
        self, ids: Sequence[int], x: np.ndarray | None = None, want: Want = Want.LAST
    ) -> np.ndarray:
        """Feed token ids; returns hidden states after all blocks, float32: the last one's (1, hidden), or all
        of them (tokens, hidden), or none (0, hidden), as ``want`` says.

        ``x`` (tokens, hidden): their embedding, where the caller has it already.
        Raises what ``Router.plan`` raises when no route can be had (any more), and after MAX_FAILURES in a
        row with what the last hop failed with.
        """
        if not ids or self._sent:
            raise LocalProtocolError("there are no tokens to feed, or others are under way")
        begin = len(self._ids)
        await self.look_around()
        self._ids.extend(ids)
        hidden = await self._append_first(begin, x, want)
        self._answered = len(self._ids)
        return hidden

    async def _append_first(self, begin: int, x: np.ndarray | None, want: Want) -> np.ndarray:
        """As ``_append``; others that begin with the same tokens wait for the first ones."""
        if self._was_open or self._beginnings is None or want is Want.ALL:  # which takes feeding it all
            return await self._append(begin, x, want)
        async with self._beginnings.feeding(self._ids) as feed:
            self._feed = feed
            try:
                hidden = await self._append(begin, x, want)
                self._remember(len(self._ids))
                return hidden
            finally:
                self._feed = None

    async def _append(self, begin: int, x: np.ndarray | None, want: Want) -> np.ndarray:
        """Feed from ``begin`` on, with ``x`` as the embedding; the rows from there on, or the last."""
        fed = begin
        while True:
            self._check_open()
            try:
                if self._session is None:
                    fed, x = await self._open(), None
                if want is Want.ALL:
                    fed = await self._feed_up_to(begin, fed)
                hidden = await self._push(x, fed, len(self._ids), want)
            except (HopFailedError, EdgeFailedError):
                self._check_open()  # closing on purpose is not a failure of a hop
                await self._repair()
                fed, x = (self._session.acked if self._session is not None else 0), None
            else:
                self._succeeded()
                return hidden

    async def look_around(self) -> None:
        """See, from time to time, whether a hop is too slow, and replace it. Not while ``receive`` waits.
        Where a hop is replaced, what is under way is sent again."""
        if self._slow.step_times.is_time(len(self._ids)) and self._session is not None:
            self._scout.look(self._session.route)
            await self._look_for_slow_hops()

    @property
    def takes_branches(self) -> bool:
        """Whether all hops of the route in use compute branches."""
        return self._session is not None and self._session.takes_branches

    def send(
        self,
        ids: Sequence[int],
        x: np.ndarray | None = None,
        branches: Sequence[tuple[int, Sequence[int]]] = (),
    ) -> None:
        """Feed a few tokens in one step, behind those that are under way, and go on: ``receive`` gives their
        rows. Never waits. ``x`` as in ``append``, which comes first.

        ``branches``: (row, ids) each, what else may follow the step's first ``row`` tokens; within the bounds
        of ``swarm.protocol.branches``. They are not part of the session. Where the route does not take them,
        they are left out.
        """
        if not ids or not self._answered:
            raise LocalProtocolError("there are no tokens to send, or nothing was fed before")
        self._ids.extend(ids)
        self._sent.append(len(ids))
        if self.is_open and not self._changing and self._posted == len(self._sent) - 1:
            taken = branches if branches and self.takes_branches else ()
            self._post(len(self._ids) - len(ids), len(ids), x, taken)

    async def receive(self) -> np.ndarray:
        """The hidden states after all blocks, (tokens, hidden) float32, of the oldest step that was sent, and
        of all of its branches, one after the other, unless they were left out. Raises as ``append``."""
        if not self._sent:
            raise LocalProtocolError("no step is under way")
        while True:
            self._check_open()
            try:
                hidden = await self._next_rows()
            except (HopFailedError, EdgeFailedError):
                self._check_open()
                await self._repair()
                self._posted = 0
            else:
                self._answered += self._sent.popleft()
                self._posted -= 1
                self._succeeded()
                return hidden

    async def _next_rows(self) -> np.ndarray:
        session, begin = self._session, self._answered
        fed = await self._open() if session is None else min(session.acked, begin)
        if not self._posted:  # first, or again after a repair
            if fed < begin:
                await self._push(None, fed, begin, Want.NOTHING)
            for tokens in self._sent:
                self._post(begin, tokens)
                begin += tokens
        return await self._open_session.receive()

    def _post(
        self,
        start: int,
        tokens: int,
        x: np.ndarray | None = None,
        branches: Sequence[tuple[int, Sequence[int]]] = (),
    ) -> None:
        """Post a step that is not posted on the route in use: the next ``tokens``, from ``start`` on."""
        rows = self._embed(start, start + tokens) if x is None else x
        if branches:
            guesses = self._model.embed([token for _, ids in branches for token in ids])
            rows = np.concatenate([rows, guesses])
        self._open_session.post(rows, start, tuple((row, len(ids)) for row, ids in branches))
        self._posted += 1

    @property
    def _open_session(self) -> RouteSession:
        if self._session is None:
            raise LocalProtocolError("the session is not open")
        return self._session

    def rollback(self, length: int) -> None:
        """Forget all but the first ``length`` tokens, and what is under way: the hops hear of it with what is
        fed next."""
        if not 0 <= length <= len(self._ids):
            raise LocalProtocolError(f"a session of {len(self._ids)} tokens cannot go back to {length}")
        if length > self._answered and self._sent:
            raise LocalProtocolError(f"{length} tokens are kept, but only {self._answered} are answered")
        self._attempts.went_back(len(self._ids) - length)
        del self._ids[length:]
        self._sent.clear()
        self._answered, self._posted = len(self._ids), 0
        if self._session is not None:
            self._session.rollback(length)

    async def fork(self, max_tokens: int | None = None) -> SwarmSession:
        """Another session of the same tokens, with room for ``max_tokens`` (as many as this one). Nothing may
        be appended to this one meanwhile.

        Hops share the KV cache of what both have in common (see ``fork_route``). Where a hop refuses, has no
        room or is lost, the fork's first ``append`` feeds it all tokens again.
        """
        self._check_open()
        max_tokens = max_tokens or self._settings.session.max_tokens
        twin = SwarmSession(
            self._model,
            self._links,
            self._router,
            self._scout,
            replace(self._settings, session=replace(self._settings.session, max_tokens=max_tokens)),
            replace(self._need, kv_tokens=max_tokens),
            limits=self._limits,
            on_wait=self._on_wait,
            memory=self._memory,
            beginnings=self._beginnings,
        )
        await twin.branch(self, len(self._ids))
        return twin

    async def branch(self, parent: SwarmSession, tokens: int) -> None:
        """Begin, with nothing fed yet, as ``parent`` did: with its first ``tokens`` tokens. ``parent`` may go
        on meanwhile, but not go back behind them. As ``fork`` where the hops cannot share their pages."""
        if self._ids or tokens > len(parent._ids):
            raise LocalProtocolError(f"a session of {len(self._ids)} tokens cannot become a fork of another")
        self._ids, self._route = parent._ids[:tokens], parent._route
        self._answered = tokens
        if tokens and parent.is_open and parent._session is not None and parent._session.acked >= tokens:
            try:
                held = parent._session.settings
                settings = replace(self._settings, nodes=held.nodes, prefix=held.prefix)
                self._begin(await fork_route(parent._session, tokens, settings))
            except HopFailedError:
                pass  # it is fed again
            else:
                self.cached_tokens = tokens

    def close(self, keep: bool = True) -> None:
        """Free every hop at once. Never waits. Idempotent. ``keep``: hops may keep the pages for a
        session that begins the same way."""
        self._doubts.close()
        if not self._closed and self._session is not None:
            self._session.close(self._ids if keep else ())
            self._slow.report_links(self._session.segments, len(self._ids))
            if keep and self._proven:
                self._remember(min(self._session.acked, len(self._ids)))
        self._closed = True
        self.waiting = None

    async def _feed_up_to(self, begin: int, fed: int) -> int:
        """Where a step begins that wants the rows from ``begin`` on: what hops lack before is fed first, and
        rows that came before the route broke are asked for again."""
        if fed < begin:
            await self._push(None, fed, begin, Want.NOTHING)
        return begin

    async def _push(self, x: np.ndarray | None, start: int, end: int, want: Want) -> np.ndarray:
        """Feed the tokens [start, end), of which ``x`` is the embedding."""
        session = self._open_session
        rows = x if x is not None else EmbeddedLater(self._embed, start, end)
        hidden = await session.forward(rows, start, want)
        if not self._proven:
            self._proven = True
            for hop in session.hops:
                self._router.succeeded(hop.peer_id)
            self._scout.look(session.route)
        return hidden

    def _embed(self, start: int, end: int) -> np.ndarray:
        return self._model.embed(self._ids[start:end])  # (tokens, hidden)

    # Routes.

    async def _open(self) -> int:
        """Plan and open routes until one opens; returns how many tokens its hops need not be fed."""
        record = self._record
        started = self._router.now()

        def plan() -> Awaitable[Planned]:
            return self._router.plan(
                self._need,
                began=started if record is None else record.began,
                limits=repair_limits(self._limits) if self._was_open else self._limits,
                on_wait=self._tell,
                held=self._memory.recall(self._ids) if self._memory is not None else None,
            )

        def open_(planned: Planned) -> Coroutine[Any, Any, RouteSession]:
            settings = replace(self._settings, nodes=dict(planned.nodes))
            ids = self._ids[: self._answered] if self._sent else self._ids  # guesses are fed in any case
            may_know = ids[:-1] if settings.session.keeps_states and not self._sent else ids
            return RouteSession.open(self._links, planned.route, settings, may_know)

        session, planned = await self._attempts.first(plan, open_)
        self._tell(None)
        if self._closed:
            session.close()
            self._check_open()
        # The last token is fed in any case, or what is under way: it is asked for.
        held = min(session.length, self._answered if self._sent else len(self._ids) - 1)
        if not self._was_open:
            self.route_s += self._router.now() - started
            self.cached_tokens = held
        if record is not None:
            record.feed_again(session, held)
        for hop in session.hops:
            self._router.answered(hop.peer_id)
            self._router.measured(hop.peer_id, hop.link.round_trip_s)
        self._begin(session, planned.predicted)
        return held

    def _begin(self, session: RouteSession, predicted: Prediction | None = None) -> None:
        self._session, self._route = session, session.route
        self.predicted = self._router.predict(session.route, self._need) or predicted
        self._slow.step_times.begin(session.hops)
        self._was_open, self._proven = True, False
        if self._feed is not None:
            self._feed.advance(session.length)

    def _progressed(self, tokens: int) -> None:
        """The hops have the first ``tokens``: a session that begins with the same need not feed them."""
        if self._feed is not None:
            if self._feed.is_awaited:
                self._remember(tokens)
            self._feed.advance(tokens)
        if self._record is not None and tokens > self._record.acked:
            self._end_outage()  # of a prompt that is fed, this is further than the broken route had come

    def _remember(self, tokens: int) -> None:
        if self._memory is not None and self._session is not None:
            self._memory.remember(self._ids[:tokens], self._session.route)

    def _check_open(self) -> None:
        if self._links.closed:
            raise StreamClosedError("the client is closed", hint="Connect again.")
        if self._closed:
            raise StreamClosedError("the session was closed on this side")

    # Repairs.

    async def _repair(self) -> None:
        """Repair the route, or close it so that another is opened."""
        session = self._session
        record = self._record
        if record is None:
            record = RepairRecord(len(self._ids) if session is None else session.acked, self._router.now)
            self._begin_outage(record)
        if session is None:
            return
        record.reached(session.acked)
        await self._run(session, record, RouteRepair.run, wait=True)

    async def _run(
        self,
        session: RouteSession,
        record: RepairRecord,
        how: Callable[[RouteRepair], Awaitable[None]],
        *,
        wait: bool,
    ) -> bool:
        """Let a repair run; whether the route was kept."""
        gaps, attempts = self._gaps, self._attempts
        repair = RouteRepair(session, self._ids, record, self._embed, gaps, attempts, wait=wait)
        try:
            await how(repair)
        except RouteLostError as lost:
            self._abandon(session, lost.failure, record)
            return False
        self._tell(None)
        self._replaced.extend(repair.replaced)
        self._begin(session, self.predicted)
        return True

    def _abandon(self, session: RouteSession, failure: HopFailedError | None, record: RepairRecord) -> None:
        """Close what is left of a route; its other hops did nothing wrong, and keep their pages, so that the
        next route need not feed them again."""
        if failure is not None and isinstance(failure.cause, RemoteProtocolError):
            # Whoever sent nonsense may have sent some before that looked right: build on nothing of it.
            self._settings = replace(self._settings, prefix=None)
        session.close(self._ids if self._settings.prefix is not None else ())
        self._replaced.extend(hop.trace.timings() for hop in session.hops)
        self._retired.extend(segment.trace.timings() for segment in (*session.retired, *session.segments))
        self._void_rows += session.void_rows
        self._session = None
        record.reopen(failure.peer_id if failure is not None else None)

    async def _look_for_slow_hops(self) -> None:
        """Replace a hop that works, where the rest of the answer pays for it. At a token's boundary."""
        session = self._session
        if session is None or self._record is not None:
            return
        fed = len(self._ids) - sum(self._sent)
        match self._slow.look(session, self._need.kv_tokens - fed, fed):
            case SlowHop(number=number):
                slow = session.hops[number]
                cause = PeerLateError(f"{slow.link.name} is slower than another is")
                await self._change(session, lambda repair: repair.move(number, cause), "planned")
            case Rewire(apart=apart, join=join):
                session.rewire(apart, join)
                await self._change(session, lambda repair: repair.run(join))

    async def _change(
        self,
        session: RouteSession,
        how: Callable[[RouteRepair], Awaitable[None]],
        kind: RepairKind | None = None,
    ) -> None:
        """Change a route that works; a repair of ``kind``, if it is one."""
        record = RepairRecord(session.acked, self._router.now)
        self._posted, self._changing = 0, True
        try:
            kept = await self._run(session, record, how, wait=False)
        except MoveAbandonedError:
            return
        except (RouteError, BusyError):
            session.resume()  # what is wrong with it shows again
            return
        finally:
            self._changing = False
        if not kept:
            self._begin_outage(record)
        elif kind is not None or record.lost:
            self.repaired.append(record.closed(kind))

    def lead(self, behind: Collection[SwarmSession]) -> None:
        """``behind``: those that wait, at any time, until this one holds its first tokens. They are told what
        it waits for."""
        self._behind = behind

    def _tell(self, waiting: Waiting | None) -> None:
        if waiting is not None:
            self._scout.ask_again(waiting.lost)
        for session in (self, *self._behind):
            session._hear(waiting)

    def _hear(self, waiting: Waiting | None) -> None:
        if waiting is not None or self.waiting is not None:
            self.waiting = waiting
            if self._on_wait is not None:
                self._on_wait(waiting)

    def _begin_outage(self, record: RepairRecord) -> None:
        """The route is broken. However often it breaks until the outage ends, it has one limit."""
        self._record = record
        self._attempts.until = record.began + repair_limits(self._limits).missing_s

    def _end_outage(self) -> None:
        if self._record is not None:
            self.repaired.append(self._record.closed())
            self._record = None
            self._attempts.until = inf

    def _succeeded(self) -> None:
        """Tokens come again."""
        self._attempts.succeeded()
        self._doubts.succeeded()
        self._end_outage()
