"""From what the directory knows, what links measured and who failed lately, the route for a session."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from ..dht.directory import Directory
from ..swarm.errors import (
    BusyError,
    ErrorCode,
    ModelMismatchError,
    NetworkError,
    PeerError,
    RemoteProtocolError,
    SwarmError,
)
from ..swarm.health import PeerHealth
from ..swarm.routing import (
    UNMEASURED_LINK,
    Link,
    NoRouteError,
    RouteRequest,
    find_route,
    hop_cost_ns,
    why_unusable,
)
from ..swarm.types import ModelRef, NodeInfo, NodeState, Route, Span
from .hop import HopFailedError
from .route_memory import Held

SNAPSHOT_S = 5.0
"""Age up to which a directory snapshot is used as it is: new nodes need not be seen at once."""
POLL_S = 0.5
"""Between looks at the directory while no route covers the model."""
DISTRUST_S = 300.0
"""Ban of a peer that broke the protocol or serves another model than it announced."""
UNSUITABLE_S = 60.0
"""Ban of a peer that cannot do what we ask, such as one that drains: as long as an announcement lives."""
FIRST_BUSY_S = 0.05
"""Least pause after a peer's first BUSY; doubled with each in a row, whatever the peer advises."""
LONGEST_BUSY_S = 10.0
"""A peer that asks for a longer pause is tried again all the same."""
BUSY_JITTER = 0.25
"""Part of a pause that is random, so that clients which were turned away together do not come back so."""
NEWEST_WEIGHT = 0.3
"""Of a new round trip in a link's moving average."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a session will ask of its route, in tokens."""

    kv_tokens: int
    prompt_tokens: int = 1
    new_tokens: int = 1


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
    """A route and the announcements of its hops, by peer id."""

    route: Route
    nodes: dict[str, NodeInfo]


class Router:
    """Plans routes for one model. Everything that is learned of peers goes in here: failures, round trips.

    ``bytes_per_token``: activations of a token on the wire, one way. ``clock`` in seconds.
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
    ) -> None:
        self.model = model
        self.health = health or PeerHealth()
        self.now = clock
        self._directory = directory
        self._bytes_per_token = bytes_per_token
        self._sleep = sleep
        self._salt = secrets.token_hex(8) if salt is None else salt
        self._random = random.Random(self._salt)
        self._links: dict[str, Link] = {}
        self._causes: dict[str, SwarmError] = {}  # by peer id, the last failure
        self._busy: Counter[str] = Counter()  # by peer id, BUSY in a row
        self._nodes: list[NodeInfo] = []
        self._read_at: float | None = None

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
        began = self.now() if began is None else began
        limits = limits or WaitLimits()
        fresh = False
        while True:
            nodes = await self._snapshot(0.0 if fresh else SNAPSHOT_S)
            try:
                return self._search(nodes, need, self.health.banned(self.now()), held)
            except NoRouteError as error:
                problem = error
            if not fresh:
                fresh = True
                continue
            limit, until = self._worth_waiting(nodes, need, began, limits)
            now = self.now()
            if until > limit or now >= limit:
                raise await self._explain(problem, need)
            if on_wait is not None:
                on_wait(Waiting(problem.message, problem.missing, problem.seen, limit - now))
            await self._sleep(min(POLL_S, max(until, now + 0.01) - now, limit - now))

    def failed(self, failure: HopFailedError) -> None:
        """Keep away from a hop that failed, for as long as the reason suggests.

        Sessions that lose one link together bring the same error, which counts once.
        """
        peer_id, cause, now = failure.peer_id, failure.cause, self.now()
        before = self._causes.get(peer_id)
        if cause is before:
            return
        self._causes[peer_id] = cause
        match cause:
            case BusyError():
                if not (isinstance(before, BusyError) and self.health.is_banned(peer_id, now)):
                    self._busy[peer_id] += 1  # sessions that asked at the same time are one row of BUSY
                least = FIRST_BUSY_S * 2 ** min(self._busy[peer_id] - 1, 10)
                pause = min(max(cause.retry_after, least), LONGEST_BUSY_S)
                pause *= 1 + BUSY_JITTER * self._random.random()
                self.health.ban(peer_id, now, pause, cause.message)
            case ModelMismatchError() | RemoteProtocolError():
                self.health.ban(peer_id, now, DISTRUST_S, cause.message)
            case PeerError(code=ErrorCode.SESSION_EXPIRED):
                pass  # it only gave up a session that asked for nothing for long
            case PeerError(code=code) if not cause.retriable or code is ErrorCode.DRAINING:
                self.health.ban(peer_id, now, UNSUITABLE_S, cause.message)
            case _:
                self.health.failed(peer_id, now, cause.message)
        self._read_at = None  # the directory may know more by now

    def succeeded(self, peer_id: str) -> None:
        self.health.succeeded(peer_id)
        self._causes.pop(peer_id, None)
        self._busy.pop(peer_id, None)

    def measured(self, peer_id: str, round_trip_s: float) -> None:
        """A round trip to a peer, without the node's own work."""
        known = self._links.get(peer_id)
        if known is not None:
            round_trip_s = known.rtt_s + NEWEST_WEIGHT * (round_trip_s - known.rtt_s)
        self._links[peer_id] = Link(max(0.0, round_trip_s), UNMEASURED_LINK.bytes_per_s)

    async def _snapshot(self, max_age_s: float) -> list[NodeInfo]:
        now = self.now()
        if self._read_at is None or now - self._read_at > max_age_s or max_age_s == 0:
            try:
                self._nodes = await self._directory.nodes(self.model)
            except NetworkError:
                if not self._nodes:
                    raise
                return self._nodes  # peers may well be there while the directory is not
            self._read_at = self.now()
        return self._nodes

    def _search(
        self, nodes: Sequence[NodeInfo], need: Need, banned: frozenset[str], held: Held | None = None
    ) -> Planned:
        request = RouteRequest(
            n_blocks=self.model.n_blocks,
            kv_tokens=need.kv_tokens,
            prompt_tokens=need.prompt_tokens,
            new_tokens=need.new_tokens,
            bytes_per_token=self._bytes_per_token,
            banned=banned,
            digest=self.model.digest,
        )
        try:
            route = find_route(nodes, self._links, request, salt=self._salt)
        except NoRouteError as error:
            # Announced free KV cache is up to a refresh old: ask nodes that were full rather than give up.
            # They say BUSY if they still are.
            hopeful = [
                replace(node, free_kv_tokens=node.total_kv_tokens) if node.state is NodeState.ONLINE else node
                for node in nodes
            ]
            try:
                route = find_route(hopeful, self._links, request, salt=self._salt)
            except NoRouteError:
                raise error from None
        if held is not None:
            route = self._cheaper(route, held, nodes, request)
        used = {hop.peer_id for hop in route.hops}
        return Planned(route, {node.peer_id: node for node in nodes if node.peer_id in used})

    def _cheaper(self, route: Route, held: Held, nodes: Sequence[NodeInfo], request: RouteRequest) -> Route:
        """``route``, or the one that holds a part of the prompt, if that can be used and costs less so."""
        fed = replace(request, prompt_tokens=max(1, request.prompt_tokens - held.tokens))
        known = self._priced(held.route, nodes, fed)
        new = self._priced(route, nodes, request)
        return route if known is None or (new is not None and new[0] < known[0]) else known[1]

    def _priced(
        self, route: Route, nodes: Sequence[NodeInfo], request: RouteRequest
    ) -> tuple[int, Route] | None:
        """(nanoseconds of the whole request on a route, the route as its nodes are announced now); None where
        one of them cannot take it."""
        total, hops = 0, []
        for hop in route.hops:
            serving = (
                node
                for node in nodes
                if node.peer_id == hop.peer_id
                and node.span.covers(hop.span)
                and not why_unusable(node, request)
            )
            if (node := next(serving, None)) is None:
                return None
            enter, block = hop_cost_ns(node, self._links.get(hop.peer_id, UNMEASURED_LINK), request)
            total += enter + len(hop.span) * block
            hops.append(replace(hop, maddrs=node.maddrs))
        return total, replace(route, hops=tuple(hops))

    def _worth_waiting(
        self, nodes: Sequence[NodeInfo], need: Need, began: float, limits: WaitLimits
    ) -> tuple[float, float]:
        """(until when waiting makes sense at most, when something may change at the earliest)."""
        now = self.now()
        try:
            self._search(nodes, need, frozenset())
        except NoRouteError:
            return began + limits.missing_s, now
        # Only bans are in the way.
        banned = self.health.banned(now) & {node.peer_id for node in nodes}
        busy = all(isinstance(self._causes.get(peer_id), BusyError) for peer_id in banned)
        release = self.health.next_release(now)
        longest = max(limits.missing_s, limits.busy_s if busy else limits.failed_s)
        return began + longest, now if release is None else release

    async def _explain(self, error: NoRouteError, need: Need) -> SwarmError:
        if not error.seen:
            return await self._explain_absence(error)
        banned = self.health.banned(self.now())
        causes = {
            node.peer_id: self._causes[node.peer_id]
            for node in error.seen
            if node.peer_id in banned and node.peer_id in self._causes
        }
        if not causes:
            return error
        text = "; ".join(f"…{peer_id[-6:]}: {cause.message}" for peer_id, cause in list(causes.items())[:2])
        kinds = {type(cause) for cause in causes.values()}
        if kinds == {ModelMismatchError}:
            return ModelMismatchError(f"no route: {text}", hint=next(iter(causes.values())).hint)
        if kinds == {BusyError}:
            pause = min(cause.retry_after for cause in causes.values() if isinstance(cause, BusyError))
            return BusyError(
                f"every peer that could serve {need.kv_tokens} tokens is busy ({text})",
                retry_after=pause,
                hint="Try again later, or ask for fewer new tokens.",
            )
        return NoRouteError(
            f"{error.message} Why they failed: {text}",
            hint=error.hint,
            missing=error.missing,
            seen=error.seen,
        )

    async def _explain_absence(self, error: NoRouteError) -> SwarmError:
        """Nobody serves this model: say what is served instead."""
        ours = self.model
        try:
            models = [model for model in await self._directory.models() if model.digest != ours.digest]
        except NetworkError:
            return error
        for model in models:
            if model.name == ours.name:
                return ModelMismatchError(
                    f"the swarm serves another model under the name {ours.name}: "
                    f"its digest is {model.digest[:12]}, that of your files {ours.digest[:12]}",
                    hint="Use the same model files as the nodes: same weights, same quantization.",
                )
        if not models:
            return error
        names = ", ".join(str(model) for model in models[:4]) + (", …" if len(models) > 4 else "")
        return NoRouteError(
            f"nobody serves {ours}. The swarm serves: {names}.",
            hint=error.hint,
            missing=error.missing,
            seen=(),
        )
