"""From what the directory knows, what links measured and who failed lately, the route for a session."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..dht.directory import REFRESH_S, Directory
from ..swarm.demand import WantedModel
from ..swarm.edges import Edges
from ..swarm.errors import BusyError, SwarmError
from ..swarm.faults import Faults
from ..swarm.health import PeerHealth
from ..swarm.prediction import Prediction, decode_seconds, queue_seconds
from ..swarm.routing import (
    NoRouteError,
    RouteRequest,
    find_route,
    missing_blocks,
    predict_route,
    why_unusable,
)
from ..swarm.slow_hop import ChainSpent, HopSpent, Replacement
from ..swarm.types import ModelRef, NodeInfo, NodeState, Route, Span
from .demand import DemandTeller
from .evidence import Evidence, Standing
from .failures import Failures, is_fault
from .hop import HopFailedError, TrialLostError
from .link_book import LinkBook
from .no_route import explain
from .route_memory import Held, cheaper_held
from .slow_search import NOISE_S, SlowChain, SlowHop, SlowSearch, StandIn

SNAPSHOT_S = 5.0
"""Age up to which a directory snapshot is used as it is: new nodes need not be seen at once."""
REPAIR_SNAPSHOT_S = 60.0
"""The same after a failure: where nodes died, reads stall for seconds, and a replacement is mostly known. The
life of an announcement."""
LOOK_AGAIN_S = 2.5
UNSETTLED_S = 12.0
"""For so long after a failure the directory is read so often: who takes the place of what was lost comes
soon, and is best known before it is needed."""
POLL_S = 0.5
"""Between looks at the directory while no route covers the model."""
SPREAD = 0.05
"""Part by which a session's route may cost more than the cheapest, so that clients which see the same
announcements do not all take the same nodes. Measured speeds and round trips differ by more from one time to
the next."""
LIE_FACTOR = 10.0
"""A token that took so many times what was announced, and NOISE_S, was announced by a liar, or by one that
has no time."""
TRIAL_TOKENS = 32
"""KV cache, in tokens, that a trial asks for: a page."""
RESERVES = 2
"""So many peers that have worked for us are wanted for each block besides the one in use."""
EXPLORE_S = 60.0
"""Where there are enough reserves, a peer that never worked for us is tried so often."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a session will ask of its route, in tokens."""

    kv_tokens: int
    prompt_tokens: int = 1
    new_tokens: int = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """Peers to be found for the blocks ``gap`` (None: all), other than those to do ``without``, who are known
    ``least`` so well."""

    gap: Span | None = None
    without: frozenset[str] = frozenset()
    least: Standing = Standing.ANSWERED


@dataclass(frozen=True, slots=True)
class WaitLimits:
    """Seconds to wait for a route: while blocks are ``missing``, while peers that ``failed`` a moment ago
    are all that is in the way (they may be restarting), or ``busy`` ones."""

    missing_s: float = 0.0
    failed_s: float = 8.0
    busy_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why there is no route yet; given to ``on_wait`` about twice a second. ``missing`` may be empty while
    all that could serve are busy or failed lately."""

    message: str
    missing: tuple[Span, ...]
    seen: tuple[NodeInfo, ...]
    seconds_left: float


OnWait = Callable[[Waiting], None]


@dataclass(frozen=True, slots=True)
class Planned:
    """A route, the announcements of its hops by peer id, and what it should cost."""

    route: Route
    nodes: dict[str, NodeInfo]
    predicted: Prediction


class Router:
    """Plans routes for one model. Everything that is learned of peers goes in here: failures, round trips.

    ``bytes_per_token``: activations of a token on the wire, one way. ``clock`` in seconds. ``demand`` is told
    while there is no route.
    """

    def __init__(
        self,
        directory: Directory,
        model: ModelRef,
        *,
        bytes_per_token: int,
        health: PeerHealth | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        salt: str | None = None,
        demand: DemandTeller | None = None,
    ) -> None:
        self.model = model
        self._demand = demand
        self._wanted = WantedModel(model.name, model.digest)
        self.health = health or PeerHealth()
        self.now = clock
        self._directory = directory
        self._bytes_per_token = bytes_per_token
        self._sleep = sleep
        self._salt = secrets.token_hex(8) if salt is None else salt
        self._failures = Failures(self.health, random.Random(self._salt))
        self._book = LinkBook()
        self._faults = Faults("routing")
        self._evidence = Evidence(self._salt)
        self._slow = SlowSearch(self._evidence, bytes_per_token)
        self._explored_at = float("-inf")
        self._plans = 0
        self._nodes: list[NodeInfo] = []
        self._read_at: float | None = None
        self._reading: asyncio.Task[None] | None = None
        self._look_again: asyncio.TimerHandle | None = None
        self._unsettled_until = float("-inf")

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
            return self._search(nodes, self._request(need, banned), held)

        max_age_s = REPAIR_SNAPSHOT_S if self._is_reading else SNAPSHOT_S
        return await self._plan(search, need, began, limits, on_wait, max_age_s)

    async def plan_gap(
        self,
        need: Need,
        gap: Span,
        *,
        before: str | None,
        after: str | None,
        keep: frozenset[str],
        cuts: Sequence[int] = (),
        began: float | None = None,
        limits: WaitLimits | None = None,
        on_wait: OnWait | None = None,
    ) -> Planned:
        """Hops for exactly the blocks ``gap``, between the peers ``before`` and ``after`` (None: the client).

        ``keep``: peers that cannot be among them, because they stay in the route, or shall leave it.
        ``cuts``: where the hops that were there had their borders, inside the gap; kept where that costs
        little more. ``need.prompt_tokens`` is what must be replayed. Waits and raises as ``plan``.
        """

        def search(nodes: Sequence[NodeInfo], banned: frozenset[str]) -> Planned:
            request = self._request(need, banned | keep)
            request = replace(request, start=gap.start, end=gap.end, cuts=tuple(cuts))
            return self._search(nodes, replace(request, before=before or "", after=after or ""))

        return await self._plan(search, need, began, limits, on_wait, REPAIR_SNAPSHOT_S)

    async def _plan(
        self,
        search: Callable[[Sequence[NodeInfo], frozenset[str]], Planned],
        need: Need,
        began: float | None,
        limits: WaitLimits | None,
        on_wait: OnWait | None,
        max_age_s: float,
    ) -> Planned:
        """``max_age_s``: of announcements that are searched without a look at the directory first."""
        began = self.now() if began is None else began
        limits = limits or WaitLimits()
        self._plans += 1
        if self._read_at is not None and self.now() - self._read_at > SNAPSHOT_S:
            self._refresh()
        fresh = False
        while True:
            nodes = await self._snapshot(0.0 if fresh else max_age_s)
            try:
                planned = search(nodes, self.health.banned(self.now()))
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
            now = self.now()
            barred = self._failures.barred(now)
            if limits.missing_s and barred != self.health.banned(now):
                with suppress(NoRouteError):
                    return search(nodes, barred)
            limit, until = self._worth_waiting(nodes, search, began, limits)
            patient = began + limits.missing_s  # who waits for missing blocks waits for anybody new
            if until > limit > now and not limits.missing_s:
                # Those that failed are banned for longer than anybody wants to wait: better them than nobody.
                await self._sleep(min(POLL_S, limit - now))
                with suppress(NoRouteError):
                    return search(nodes, self._failures.hopeless(self.now()))
            if now >= (patient if until > limit else limit):
                raise await explain(
                    problem,
                    need.kv_tokens,
                    self.model,
                    self._directory,
                    self._failures.causes,
                    self.health.banned(now),
                )
            if on_wait is not None:
                on_wait(Waiting(problem.message, problem.missing, problem.seen, limit - now))
            await self._sleep(min(POLL_S, max(until, now + 0.01) - now, limit - now))

    def failed(self, failure: HopFailedError) -> None:
        """Keep away from a hop that failed, for as long as the reason suggests."""
        self._note(failure)
        self._refresh()  # the directory may know more by now
        self._unsettled_until = self.now() + UNSETTLED_S
        if self._look_again is None:
            self._look_again = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._refresh_again)

    def passed_by(self, failure: HopFailedError) -> None:
        """As ``failed``, of a peer that no session was at: the swarm is no more unsettled than before."""
        self._note(failure)

    def _note(self, failure: HopFailedError) -> None:
        if is_fault(failure.cause):
            self._evidence.failed(failure.peer_id, self.now())
        self._failures.failed(failure.peer_id, failure.cause, self._nodes, self.now())

    def succeeded(self, peer_id: str) -> None:
        """It has computed a part of an answer."""
        self._evidence.served(peer_id, self.now())
        self._failures.succeeded(peer_id)

    def worked(self, peer_id: str, blocks: int, step_s: float, tokens: float) -> None:
        """What a step of so many tokens took there and back by our clock, on average."""
        edges, size = self._book.edges(self._nodes, self.now()), self._bytes_per_token * tokens
        way_s = edges.one_way_s("", peer_id, size) + edges.one_way_s(peer_id, "", size)
        self._is_liar(peer_id, blocks, (step_s - way_s) / tokens)

    def _is_liar(self, peer_id: str, blocks: int, token_s: float) -> bool:
        """Whether a token took far longer at a peer than it says. It has to prove itself anew then; noise and
        load are forgiven."""
        node = next((node for node in self._nodes if node.peer_id == peer_id), None)
        if (
            node is None
            or token_s <= LIE_FACTOR * (queue_seconds(node) + blocks * decode_seconds(node)) + NOISE_S
        ):
            return False
        self._evidence.doubted(peer_id, token_s / blocks, self.now())
        return True

    def answered(self, peer_id: str) -> None:
        """It is there, and serves the model."""
        self._evidence.answered(peer_id, self.now())

    def is_stranger(self, peer_id: str) -> bool:
        """It has not answered us lately."""
        return self._evidence.standing(peer_id, self.now()) is Standing.STRANGER

    def is_wary(self) -> bool:
        """Somebody was found lately who is far slower than he says: there may be more of them."""
        return self.now() < self._evidence.wary_until

    def is_proven(self, peer_id: str) -> bool:
        """It has computed for us lately."""
        return self._evidence.standing(peer_id, self.now()) is Standing.PROVEN

    def unmet(self, need: Need, wanted: Wanted) -> tuple[Span, ...]:
        """Blocks that nobody could carry who is ``wanted`` and known."""
        now = self.now()
        known = [
            node
            for node in self._usable(need)
            if self._evidence.standing(node.peer_id, now) >= wanted.least
            and node.peer_id not in wanted.without
        ]
        gap = wanted.gap or Span(0, self.model.n_blocks)
        return missing_blocks(known, gap.end, start=gap.start)

    def to_meet(self, need: Need, wanted: Wanted) -> list[NodeInfo]:
        """Peers that could carry blocks of ``unmet``, if they proved to be what is ``wanted``, in the order
        in which to find out."""
        now, holes = self.now(), self.unmet(need, wanted)
        useful = [
            node
            for node in self._usable(need)
            if self._evidence.standing(node.peer_id, now) < wanted.least
            and any(node.span.start < hole.end and hole.start < node.span.end for hole in holes)
        ]
        return self._evidence.in_turn(useful, now)

    def tried(self, peer_id: str, block_s: float, round_trip_s: float) -> None:
        """It has come through a trial of all of its blocks; seconds for each of them, and of the way there
        and back."""
        self.answered(peer_id)
        self._book.measured(peer_id, round_trip_s)
        blocks = next((len(node.span) for node in self._nodes if node.peer_id == peer_id), 1)
        if not self._is_liar(peer_id, blocks, blocks * block_s):
            self._evidence.measured(peer_id, block_s, self.now())
            self._evidence.proved(peer_id, self.now())
            self._failures.succeeded(peer_id)

    def asked(self, node: NodeInfo) -> None:
        """A peer is being met or tried."""
        self._evidence.asked(node)

    def failed_trial(self, failure: HopFailedError) -> None:
        """It did not pass. One that was too slow may be busy, and is kept away from trials only."""
        if isinstance(failure.cause, TrialLostError):
            self._evidence.failed(failure.peer_id, self.now())
        else:
            self._note(failure)

    def to_try(self, route: Route) -> NodeInfo | None:
        """Whom to put on trial now, while ``route`` is in use: who may replace a hop that seems slow; else
        one that never worked for us, while reserves lack; else, now and then, any such."""
        now = self.now()
        usable = {
            node.peer_id: node
            for node in self._usable(Need(TRIAL_TOKENS))
            if self._evidence.may_try(node.peer_id, now)
        }
        while self._slow.to_try:
            if (wanted := usable.get(self._slow.to_try.pop())) is not None:
                return wanted
        proven = [node.span for node in self._nodes if self.is_proven(node.peer_id)]
        short = [
            block for block in range(self.model.n_blocks) if sum(block in span for span in proven) <= RESERVES
        ]
        explore = now - self._explored_at >= EXPLORE_S
        used = {hop.peer_id for hop in route.hops}
        useful = [
            node
            for node in usable.values()
            if node.peer_id not in used
            and not self.is_proven(node.peer_id)
            and (explore or any(block in node.span for block in short))
        ]
        if not useful:
            return None
        self._explored_at = now
        return self._evidence.in_turn(useful, now)[0]

    def _usable(self, need: Need) -> list[NodeInfo]:
        request = self._request(need, self.health.banned(self.now()))
        return [node for node in self._nodes if not why_unusable(node, request)]

    def measured(self, peer_id: str, round_trip_s: float, *, bytes_per_s: float | None = None) -> None:
        """A round trip to a peer, without the node's own work; and what a large payload got of the line."""
        self._book.measured(peer_id, round_trip_s, bytes_per_s)

    def chain_measured(self, peer_ids: Sequence[str], wire_s: float) -> None:
        """What decode steps took on all ways of a chain of hops, from here and back: for the ways between
        them, of which otherwise only the nodes tell."""
        now = self.now()
        edges = self._book.edges(self._nodes, now)
        self._book.chain_measured(peer_ids, wire_s, self._bytes_per_token, edges, now)

    def edge_failed(self, a: str, b: str) -> None:
        """Two nodes that work cannot be chained: do not, for some time, longer with each failure in a row."""
        self._book.edge_failed(a, b, self.now())

    def edge_worked(self, a: str, b: str, rtt_s: float | None = None) -> None:
        """Activations go from ``a`` to ``b``, whose round trip ``a`` says is ``rtt_s``."""
        self._book.edge_worked(a, b, rtt_s, self.now())

    def may_chain(self, a: str, b: str) -> bool:
        return self._book.may_chain(a, b, self.now())

    def predict(self, route: Route, need: Need) -> Prediction | None:
        """What a whole route should cost by what is known now, such as its links once it is open; None when
        one of its nodes is not announced any more."""
        now = self.now()
        nodes = {node.peer_id: node for node in self._as_seen(self._nodes)}
        if not all(hop.peer_id in nodes for hop in route.hops):
            return None
        edges = self._book.edges(self._nodes, now)
        return predict_route(route.hops, nodes, edges, self._request(need, frozenset()))

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
            return self._find_slow(route, spent, chains, tokens_to_come, context)
        return None

    def _find_slow(
        self,
        route: Route,
        spent: Sequence[HopSpent],
        chains: Sequence[ChainSpent],
        tokens_to_come: int,
        context: int,
    ) -> SlowHop | SlowChain | None:
        now = self.now()
        if self._read_at is not None and now - self._read_at > REFRESH_S:
            self._refresh()  # so that a repair finds what it needs
        if len(spent) != len(route.hops) or not self._slow.is_time(spent, now):
            return None
        need = Need(context + tokens_to_come, context, tokens_to_come)
        request = self._request(need, self.health.banned(now) | {hop.peer_id for hop in route.hops})
        predicted = self.predict(route, need)
        if predicted is None:
            return None
        return self._slow.find(
            route,
            predicted,
            spent,
            chains,
            tokens_to_come,
            edges=self._book.edges(self._nodes, now),
            stand_in=lambda number: self._stand_in(route, number, request),
            now=now,
        )

    def _stand_in(self, route: Route, number: int, request: RouteRequest) -> StandIn | None:
        """The best replacement of one hop of a route by the last snapshot: only peers that this client knows
        to work, at the speed that it measured."""
        hops = route.hops
        request = replace(
            request,
            start=hops[number].span.start,
            end=hops[number].span.end,
            cuts=(),
            before=hops[number - 1].peer_id if number else "",
            after=hops[number + 1].peer_id if number + 1 < len(hops) else "",
        )
        proven = [node for node in self._nodes if self.is_proven(node.peer_id)]
        try:
            planned = self._search(proven, request, own_only=True)
        except NoRouteError:
            return None
        predicted = planned.predicted
        replacement = Replacement(predicted.token_s, predicted.prefill_s, measured=True)
        return StandIn(replacement, tuple(hop.peer_id for hop in planned.route.hops))

    async def close(self) -> None:
        """End what still reads the directory."""
        if self._look_again is not None:
            self._look_again.cancel()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _snapshot(self, max_age_s: float) -> list[NodeInfo]:
        """Announcements read at most ``max_age_s`` ago. Older ones where the directory cannot be reached:
        peers may well be there while it is not."""
        if self._read_at is None or self.now() - self._read_at > max_age_s or max_age_s == 0:
            # Shielded: that one session is cancelled must not cost the others their read.
            await asyncio.shield(self._refresh())
        return self._nodes

    @property
    def _is_reading(self) -> bool:
        return self._reading is not None and not self._reading.done()

    def _refresh(self) -> asyncio.Task[None]:
        """Read the directory: the read under way, or a new one."""
        if self._reading is None or not self._is_reading:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_look_at)
        return self._reading

    def _refresh_again(self) -> None:
        self._look_again = None
        self._refresh()
        if self.now() < self._unsettled_until:
            self._look_again = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._refresh_again)

    async def _read(self) -> None:
        try:
            self._nodes = await self._directory.nodes(self.model)
        except SwarmError:
            if not self._nodes:
                raise
            return
        except Exception as fault:
            if not self._nodes:
                raise
            self._faults.note(fault)
            return
        self._read_at = self.now()
        self._evidence.saw(self._nodes, self._read_at)
        self._failures.look(self._nodes, self._read_at)

    def _request(self, need: Need, banned: frozenset[str]) -> RouteRequest:
        return RouteRequest(
            n_blocks=self.model.n_blocks,
            kv_tokens=need.kv_tokens,
            prompt_tokens=need.prompt_tokens,
            new_tokens=need.new_tokens,
            bytes_per_token=self._bytes_per_token,
            banned=banned,
            digest=self.model.digest,
        )

    def _search(
        self,
        nodes: Sequence[NodeInfo],
        request: RouteRequest,
        held: Held | None = None,
        *,
        own_only: bool = False,
    ) -> Planned:
        """``own_only``: claims that are better than what this client measured count for nothing."""
        return self._faults.without_culprits(
            lambda some: self._search_among(self._as_seen(some, own_only), request, held),
            nodes,
            lambda node: node.peer_id,
        )

    def _search_among(self, nodes: Sequence[NodeInfo], request: RouteRequest, held: Held | None) -> Planned:
        edges = self._book.edges(nodes, self.now())
        salt = f"{self._salt}/{self._plans}"
        try:
            route = self._find(nodes, edges, request, salt)
        except NoRouteError as error:
            # Announced free KV cache is up to a refresh old: ask nodes that were full rather than give up.
            # They say BUSY if they still are.
            hopeful = [
                replace(node, free_kv_tokens=node.total_kv_tokens) if node.state is NodeState.ONLINE else node
                for node in nodes
            ]
            try:
                route = self._find(hopeful, edges, request, salt)
            except NoRouteError:
                raise error from None
        if held is not None:
            fed = replace(request, prompt_tokens=max(1, request.prompt_tokens - held.tokens))
            if (cheaper := cheaper_held(route, request, held.route, fed, nodes, edges)) is not None:
                route, request = cheaper, fed
        used = {hop.peer_id for hop in route.hops}
        announced = {node.peer_id: node for node in nodes if node.peer_id in used}
        return Planned(route, announced, predict_route(route.hops, announced, edges, request))

    def _find(self, nodes: Sequence[NodeInfo], edges: Edges, request: RouteRequest, salt: str) -> Route:
        """The cheapest route of peers that have worked for us; else, of peers that have answered us too; else
        of any. Nobody talks his way in front of one who has shown what he does."""
        problem: NoRouteError | None = None
        for circle in self._evidence.circles(nodes, self.now()):
            try:
                return find_route(circle, edges, request, salt=salt, spread=SPREAD)
            except NoRouteError as error:
                problem = error  # the last is of all nodes
        if problem is None:
            raise AssertionError("there is always a circle of all")
        raise problem

    def _as_seen(self, nodes: Sequence[NodeInfo], own_only: bool = False) -> list[NodeInfo]:
        """The announcements, with what this client saw of nodes in place of what these say."""
        now = self.now()
        return self._slow.as_seen(self._evidence.believed(nodes, now, own_only=own_only), now)

    def _worth_waiting(
        self,
        nodes: Sequence[NodeInfo],
        search: Callable[[Sequence[NodeInfo], frozenset[str]], Planned],
        began: float,
        limits: WaitLimits,
    ) -> tuple[float, float]:
        """(until when waiting makes sense at most, when something may change at the earliest)."""
        now = self.now()
        try:
            search(nodes, frozenset())
        except NoRouteError:
            return began + limits.missing_s, now
        # Only bans are in the way.
        banned = self.health.banned(now) & {node.peer_id for node in nodes}
        busy = all(isinstance(self._failures.causes.get(peer_id), BusyError) for peer_id in banned)
        release = self.health.next_release(now)
        longest = max(limits.missing_s, limits.busy_s if busy else limits.failed_s)
        return began + longest, now if release is None else release


def _look_at(task: asyncio.Task[None]) -> None:
    """An error of a read that nobody waits for any more is no forgotten one."""
    if not task.cancelled():
        task.exception()
