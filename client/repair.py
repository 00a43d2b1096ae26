"""A session that outlives its hops: what was fed is fed again to another route when one fails.

The client holds the token ids, so a replacement route is brought to the same state by one prefill, and the
generation goes on with the same tokens. The caller sees a pause and ``repairs``. Hops that hold pages of the
sequence from before are fed only what is new to all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from ..swarm.errors import BusyError, LocalProtocolError, RemoteProtocolError, StreamClosedError
from ..swarm.link import LinkPool
from ..swarm.types import Route
from .hop import HopFailedError, SessionSettings
from .prefix import PrefixKey
from .route_memory import RouteMemory
from .route_session import RouteSession
from .router import Need, OnWait, Router, WaitLimits
from .trace import HopTimings

MAX_OPENINGS = 32
"""Routes tried before one opens, apart from busy ones. Bans grow, so time usually ends it first."""
MAX_FAILURES = 8
"""Failures without a token in between. A prompt that brings nodes down must not walk through the swarm."""
REPAIR_LIMITS = WaitLimits(missing_s=30.0, failed_s=30.0, busy_s=30.0)
"""How long a generation that has begun waits for a new route before it gives up what it has."""


class Embedding(Protocol):
    """The part of ``shards.client_model.ClientModel`` that feeds a session."""

    def embed(self, ids: Sequence[int]) -> Tensor: ...  # (tokens, hidden)


class SwarmSession:
    """One sequence of tokens in the swarm. ``need`` bounds its length, ``limits`` the waiting for a first
    route. ``salt`` keys the names of its KV pages (see ``prefix``); without one no hop is asked for any.
    ``memory`` leads later sessions to where this one's pages are.

    ``cached_tokens``: how many tokens of the first ``append`` the hops held already.
    """

    def __init__(
        self,
        model: Embedding,
        links: LinkPool,
        router: Router,
        settings: SessionSettings,
        need: Need,
        *,
        wire_codec: str,
        limits: WaitLimits,
        on_wait: OnWait | None = None,
        salt: bytes | None = None,
        memory: RouteMemory | None = None,
    ) -> None:
        self.cached_tokens = 0
        self.repairs = 0
        self.repair_s = 0.0
        self.route_s = 0.0
        self._model = model
        self._links = links
        self._router = router
        self._settings = settings
        self._need = need
        self._wire_codec = wire_codec
        self._limits = limits
        self._on_wait = on_wait
        self._salt = salt
        self._memory = memory
        self._ids: list[int] = []
        self._session: RouteSession | None = None
        self._was_open = False
        self._proven = False  # the open session has answered
        self._route: Route | None = None
        self._replaced: list[HopTimings] = []
        self._closed = False

    @property
    def route(self) -> Route:
        """The route in use, or the last that was. Raises LocalProtocolError before the first."""
        if self._route is None:
            raise LocalProtocolError("the session has no route yet")
        return self._route

    @property
    def hops(self) -> tuple[HopTimings, ...]:
        """What the hops of the route in use have cost."""
        return tuple(hop.trace.timings() for hop in self._session.hops) if self._session else ()

    @property
    def replaced(self) -> tuple[HopTimings, ...]:
        """What the hops of routes that failed have cost."""
        return tuple(self._replaced)

    async def append(self, ids: Sequence[int], x: Tensor | None = None) -> Tensor:
        """Feed token ids; returns the last one's hidden state after all blocks, (1, hidden) float32.

        ``x`` (tokens, hidden): their embedding, where the caller has it already.
        Raises what ``Router.plan`` raises when no route can be had (any more), and after MAX_FAILURES in a
        row what the last hop failed of.
        """
        fed = len(self._ids)
        self._ids.extend(ids)
        broken_at: float | None = None
        failures = 0
        while True:
            self._check_open()
            try:
                if self._session is None:
                    fed = await self._open(perf_counter() if broken_at is None else broken_at)
                    x = None
                hidden = await self._push(fed, x)
            except HopFailedError as failure:
                self._check_open()  # what was closed on purpose is no failure of a hop
                broken_at = broken_at or perf_counter()
                failures += 1
                self._abandon(failure)
                if failures >= MAX_FAILURES:
                    raise failure.cause from failure
            else:
                if broken_at is not None:
                    self.repair_s += perf_counter() - broken_at
                return hidden

    def close(self) -> None:
        """Free every hop at once. Never waits; may be called again."""
        if not self._closed and self._session is not None:
            self._session.close(self._ids)
            self._report(self._session)
            if self._memory is not None and self._proven:
                self._memory.remember(self._ids, self._session.route)
        self._closed = True

    async def _push(self, fed: int, x: Tensor | None) -> Tensor:
        session = self._session
        if session is None:
            raise LocalProtocolError("the session is not open")
        if x is None:
            with torch.inference_mode():
                x = self._model.embed(self._ids[fed:])  # (tokens, hidden)
        hidden = await session.forward(x, fed)
        if not self._proven:
            self._proven = True
            for hop in session.hops:
                self._router.succeeded(hop.peer_id)
        return hidden

    async def _open(self, began: float) -> int:
        """Plan and open routes until one opens; returns how many tokens its hops need not be fed.

        ``began``, on perf_counter: since when we wait.
        """
        waited = perf_counter() - began
        began_at = self._router.now() - waited
        started = perf_counter()
        failures = 0
        while True:
            planned = await self._router.plan(
                self._need,
                began=began_at,
                limits=REPAIR_LIMITS if self._was_open else self._limits,
                on_wait=self._on_wait,
                held=self._memory.recall(self._ids) if self._memory is not None else None,
            )
            spoken = {peer_id: node.codecs for peer_id, node in planned.nodes.items()}
            prefix = None
            if self._salt is not None:
                weights = {peer_id: node.weights for peer_id, node in planned.nodes.items()}
                prefix = PrefixKey(self._salt, self._router.model.digest, weights)
            try:
                session = await RouteSession.open(
                    self._links, planned.route, self._settings, self._wire_codec, spoken, prefix, self._ids
                )
            except HopFailedError as failure:
                self._router.failed(failure)
                failures += not isinstance(failure.cause, BusyError)
                if failures >= MAX_OPENINGS:
                    raise failure.cause from failure
            else:
                break
        if self._closed:
            session.close()
            self._check_open()
        held = min(session.length, len(self._ids) - 1)  # the last token is fed in any case: it is asked for
        if not self._was_open:
            self.route_s += perf_counter() - started
            self.cached_tokens = held
        for hop in session.hops:
            self._router.measured(hop.peer_id, hop.round_trip_s)
        self._session, self._route = session, planned.route
        self._was_open, self._proven = True, False
        return held

    def _check_open(self) -> None:
        if self._closed:
            raise StreamClosedError("the session was closed on this side")

    def _abandon(self, failure: HopFailedError) -> None:
        """Close what is left of a route with a failed hop; its other hops did nothing wrong, and keep their
        pages, so that the next route need not feed them again."""
        self._router.failed(failure)
        if isinstance(failure.cause, RemoteProtocolError):
            # Whoever sent nonsense may have sent some before that looked right: build on nothing of it.
            self._salt = None
        if self._session is not None:
            self._session.close(self._ids if self._salt is not None else ())
            self._replaced.extend(hop.trace.timings() for hop in self._session.hops)
            self._session = None
            self.repairs += 1

    def _report(self, session: RouteSession) -> None:
        """Decode steps measure a link better than its opening did."""
        for hop in session.hops:
            decode = hop.trace.decode
            if decode.steps:
                self._router.measured(hop.peer_id, decode.wire_s / decode.steps)
