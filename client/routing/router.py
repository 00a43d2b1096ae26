"""Routes for a client's sessions, and all that it learns of peers from them."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf

from ...dht.directory import REFRESH_S, Directory
from ...swarm.boundaries import Boundaries
from ...swarm.errors import HopFailedError, SwarmError, TrialLostError
from ...swarm.faults import Faults
from ...swarm.peer_health import PeerHealth
from ...swarm.routing.best_route import RouteRequest
from ...swarm.routing.prediction import Prediction, decode_seconds, queue_seconds
from ...swarm.routing.slow_hop import ChainSpent, HopSpent
from ...swarm.types import ModelRef, NodeInfo, Route, Span
from .announcements import Announcements
from .bans import Bans, is_fault
from .demand import DemandTeller
from .evidence import Evidence, Standing
from .link_table import LinkTable
from .reserves import Reserves
from .route_finder import Need, Planned, RouteFinder
from .route_memory import Held
from .route_wait import REPAIR_SNAPSHOT_S, SNAPSHOT_S, OnWait, RouteWait, WaitLimits
from .slow_search import NOISE_S, SlowChain, SlowHop, SlowSearch

LIE_FACTOR = 10.0
"""If a token took this many times what was announced, and NOISE_S more, the peer lies, or has no time."""


class Router:
    """Plans routes for one model. Everything that is learned of peers goes in here: failures, round trips.

    ``boundaries``: of the model. ``row_bytes``: of a row on the wire, by its width. ``clock`` in seconds.
    ``demand`` is told while there is no route. ``reserves``: the peers that could serve besides those in use.
    """

    def __init__(
        self,
        directory: Directory,
        model: ModelRef,
        boundaries: Boundaries,
        row_bytes: Callable[[int], int],
        *,
        health: PeerHealth | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        salt: str | None = None,
        demand: DemandTeller | None = None,
    ) -> None:
        self.model = model
        self.health = health or PeerHealth()
        self.now = clock
        salt = secrets.token_hex(8) if salt is None else salt
        self._bytes_per_token, at_boundaries = boundaries.sizes(row_bytes)
        self._bans = Bans(self.health, random.Random(salt))
        self._link_table = LinkTable()
        self._faults = Faults("routing")
        self._evidence = Evidence(salt)
        self._slow = SlowSearch(self._evidence, self._bytes_per_token)
        self._announcements = Announcements(
            directory, model, clock=clock, faults=self._faults, on_read=self._saw
        )
        self._finder = RouteFinder(
            RouteRequest(
                model.n_blocks,
                kv_tokens=0,
                bytes_per_token=self._bytes_per_token,
                row_bytes=at_boundaries,
                cuts=boundaries.cuts,
                digest=model.digest,
            ),
            evidence=self._evidence,
            links=self._link_table,
            slow=self._slow,
            faults=self._faults,
            salt=salt,
            clock=clock,
        )
        self.reserves = Reserves(
            self._announcements,
            finder=self._finder,
            evidence=self._evidence,
            slow=self._slow,
            health=self.health,
            clock=clock,
        )
        self._wait = RouteWait(
            model,
            directory,
            self._announcements,
            health=self.health,
            bans=self._bans,
            demand=demand,
            clock=clock,
            sleep=sleep,
        )

    async def read_announcements(self) -> None:
        """Know the model's nodes before the first plan: the peers that were met at the start may be gone by
        then. No error where nobody answers, as the first plan says so."""
        with suppress(SwarmError):
            await self._announcements.within(float("inf"))

    async def plan(
        self,
        need: Need,
        *,
        began: float | None = None,
        limits: WaitLimits | None = None,
        on_wait: OnWait | None = None,
        held: Held | None = None,
    ) -> Planned:
        """A route for ``need``. Waits for one as ``limits`` say, counted from ``began`` (default: now).

        ``held``, a route that need not be fed all of the prompt, is taken where that makes it the cheapest.

        Raises NoRouteError, BusyError or ModelMismatchError, whichever explains best why there is none.
        """

        def search(nodes: Sequence[NodeInfo], banned: frozenset[str]) -> Planned:
            return self._finder.search(nodes, self._finder.request(need, banned), held)

        max_age_s = REPAIR_SNAPSHOT_S if self._announcements.is_reading else SNAPSHOT_S
        self._finder.begin_plan()
        return await self._wait.first(
            search, kv_tokens=need.kv_tokens, began=began, limits=limits, on_wait=on_wait, max_age_s=max_age_s
        )

    async def plan_gap(
        self,
        need: Need,
        gap: Span,
        *,
        before: str | None,
        after: str | None,
        keep: frozenset[str],
        borders: Sequence[int] = (),
        began: float | None = None,
        limits: WaitLimits | None = None,
        at_most_s: float = inf,
        on_wait: OnWait | None = None,
    ) -> Planned:
        """Hops for exactly the blocks ``gap``, between the peers ``before`` and ``after`` (None: the client).

        ``keep``: peers that cannot be among them, because they stay in the route, or shall leave it.
        ``borders``: where the hops that were there had their borders, inside the gap; kept where that costs
        little more. ``need.prompt_tokens`` is what must be replayed. Waits and raises as ``plan``, but for
        ``at_most_s`` seconds at most from now.
        """

        def search(nodes: Sequence[NodeInfo], banned: frozenset[str]) -> Planned:
            request = replace(self._finder.request(need, banned), used=keep)
            request = replace(request, start=gap.start, end=gap.end, borders=tuple(borders))
            return self._finder.search(nodes, replace(request, before=before or "", after=after or ""))

        self._finder.begin_plan()
        return await self._wait.first(
            search,
            kv_tokens=need.kv_tokens,
            began=began,
            limits=limits,
            on_wait=on_wait,
            max_age_s=REPAIR_SNAPSHOT_S,
            at_most_s=at_most_s,
        )

    def failed(self, failure: HopFailedError) -> None:
        """Keep away from a hop that failed, for as long as the reason suggests."""
        self._note(failure)
        self._announcements.unsettled()

    def passed_by(self, failure: HopFailedError) -> None:
        """As ``failed``, for a peer without a session of ours: the swarm does not count as unsettled for
        it."""
        self._note(failure)

    def _note(self, failure: HopFailedError) -> None:
        if is_fault(failure.cause):
            self._evidence.failed(failure.peer_id, self.now())
        self._bans.failed(failure.peer_id, failure.cause, self._announcements.nodes, self.now())

    def succeeded(self, peer_id: str) -> None:
        """It has computed a part of an answer."""
        self._evidence.served(peer_id, self.now())
        self._bans.succeeded(peer_id)

    def worked(self, peer_id: str, blocks: int, step_s: float, tokens: float, context: int) -> None:
        """What a step of ``tokens`` tokens took on average by our clock, with the link there and back, and
        with ``context`` tokens before it at most."""
        edges, size = (
            self._link_table.edges(self._announcements.nodes, self.now()),
            self._bytes_per_token * tokens,
        )
        link_s = edges.one_way_s("", peer_id, size) + edges.one_way_s(peer_id, "", size)
        self._is_liar(peer_id, blocks, (step_s - link_s) / tokens, context)

    def _is_liar(self, peer_id: str, blocks: int, token_s: float, context: int = 0) -> bool:
        """Whether a token took far longer at a peer than it says. It has to prove itself anew then; noise and
        load are forgiven."""
        node = self._announcements.of(peer_id)
        if node is None:
            return False
        claim_s = queue_seconds(node) + blocks * decode_seconds(node, context)
        if token_s <= LIE_FACTOR * claim_s + NOISE_S:
            return False
        longer_s = decode_seconds(node, context) - decode_seconds(node)
        self._evidence.doubted(peer_id, token_s / blocks - longer_s, self.now())
        return True

    def answered(self, peer_id: str) -> None:
        """It is there, and serves the model."""
        self._evidence.answered(peer_id, self.now())
        self._bans.answered(peer_id)

    def is_stranger(self, peer_id: str) -> bool:
        """True if the peer has not answered us lately."""
        return self._evidence.standing(peer_id, self.now()) is Standing.STRANGER

    def is_wary(self) -> bool:
        """True if a peer was found lately that is far slower than it says: there may be more of them."""
        return self.now() < self._evidence.wary_until

    def is_proven(self, peer_id: str) -> bool:
        """It has computed for us lately."""
        return self._evidence.standing(peer_id, self.now()) is Standing.PROVEN

    def tried(self, peer_id: str, block_s: float, round_trip_s: float) -> None:
        """It has come through a trial of all of its blocks; seconds for each of them, and of the way there
        and back."""
        self.answered(peer_id)
        self._link_table.measured(peer_id, round_trip_s)
        node = self._announcements.of(peer_id)
        blocks = 1 if node is None else len(node.span)
        if not self._is_liar(peer_id, blocks, blocks * block_s):
            self._evidence.measured(peer_id, block_s, self.now())
            self._evidence.proved(peer_id, self.now())
            self._bans.succeeded(peer_id)

    def failed_trial(self, failure: HopFailedError) -> None:
        """It did not pass. One that was too slow may be busy, and is kept away from trials only."""
        if isinstance(failure.cause, TrialLostError):
            self._evidence.failed(failure.peer_id, self.now())
        else:
            self._note(failure)

    def measured(self, peer_id: str, round_trip_s: float, *, bytes_per_s: float | None = None) -> None:
        """A round trip to a peer, without the node's own work; and what a large payload got of the line."""
        self._link_table.measured(peer_id, round_trip_s, bytes_per_s)

    def chain_measured(self, peer_ids: Sequence[str], wire_s: float) -> None:
        """What decode steps took on all links of a chain of hops, from here and back: for the links between
        them, of which otherwise only the nodes tell."""
        now = self.now()
        edges = self._link_table.edges(self._announcements.nodes, now)
        self._link_table.chain_measured(peer_ids, wire_s, self._bytes_per_token, edges, now)

    def edge_failed(self, a: str, b: str) -> None:
        """Two nodes that work cannot be chained: do not, for some time, longer with each failure in a row."""
        self._link_table.edge_failed(a, b, self.now())

    def edge_worked(self, a: str, b: str, rtt_s: float | None = None) -> None:
        """Activations go from ``a`` to ``b``, whose round trip ``a`` says is ``rtt_s``."""
        self._link_table.edge_worked(a, b, rtt_s, self.now())

    def may_chain(self, a: str, b: str) -> bool:
        return self._link_table.may_chain(a, b, self.now())

    def predict(self, route: Route, need: Need) -> Prediction | None:
        """What a whole route should cost by what is known now, such as its links once it is open; None when
        one of its nodes is not announced any more."""
        return self._finder.predict(route, self._announcements.nodes, need)

    def find_slow(
        self,
        route: Route,
        spent: Sequence[HopSpent],
        chains: Sequence[ChainSpent],
        tokens_to_come: int,
        context: int,
    ) -> SlowHop | SlowChain | None:
        """A hop that pays to be replaced now; then plan for its blocks with it among ``keep``. Or a chain
        whose hops have to be timed one by one.

        ``spent`` and ``chains``: what decode steps took lately. ``context``: tokens to replay. May be asked
        after every token: it looks now and then only.
        """
        with self._faults.survived():  # a generation goes on as it is
            now = self.now()
            self._announcements.refresh_after(REFRESH_S)  # so that a repair finds what it needs
            if len(spent) != len(route.hops) or not self._slow.is_time(spent, now):
                return None
            need = Need(context + tokens_to_come, context, tokens_to_come)
            banned = self._bans.banned(now) | {hop.peer_id for hop in route.hops}
            request = self._finder.request(need, banned)
            predicted = self.predict(route, need)
            if predicted is None:
                return None
            proven = self.reserves.proven()
            return self._slow.find(
                route,
                predicted,
                spent,
                chains,
                tokens_to_come,
                edges=self._link_table.edges(self._announcements.nodes, now),
                stand_in=lambda number: self._finder.stand_in(route, number, proven, request),
                now=now,
            )
        return None

    async def close(self) -> None:
        """End what still reads the directory."""
        await self._announcements.close()

    def _saw(self, nodes: list[NodeInfo], now: float) -> None:
        self._evidence.saw(nodes, now)
        self._bans.look(nodes, now)
