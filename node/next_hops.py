"""Links to the nodes that come after this one in its clients' routes; one a node, however many sessions.

A client makes this node dial, so dials are counted by client, and go to a peer id over libp2p only. What is
computed leaves without waiting; what a slow next hop has not taken is charged to the clients whose it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from ..swarm.errors import (
    ErrorCode,
    PeerError,
    PeerTimeoutError,
    PeerUnreachableError,
    SwarmError,
)
from ..swarm.link import LinkUser, NodeLink, Patience
from ..swarm.link_pool import LinkPool
from ..swarm.messages import Downstream, Step
from ..swarm.transport import Transport
from ..swarm.types import ModelRef
from ..swarm.wire import FIXED_HEADER, MAX_HEADER
from .quotas import DialRate, Ledger, Limits, PeerAccount

log = logging.getLogger(__name__)

UNCOUNTED_BYTES = 1024 * 1024
"""Sent to a next hop before it is asked whether it keeps up: some seconds of decode steps."""
MAX_ANSWER_FRAME = FIXED_HEADER.size + MAX_HEADER
"""Of a next hop: it answers without rows, which go to the client."""
MAX_RATES = 1024
"""Clients whose dials of the last minute are remembered, before those without any are looked for."""


class NextHop:
    """A live link to a node, and what its sessions have not got rid of. Made by ``NextHops.reach``."""

    def __init__(self, link: NodeLink, max_step_tokens: int, ledger: Ledger) -> None:
        self.link = link
        self.max_step_tokens = max_step_tokens
        self.sessions: dict[bytes, LinkUser] = {}  # by the session's id over there
        self._ledger = ledger
        self._unsent = 0
        self._owed: dict[PeerAccount, int] = {}  # bytes posted since the link fell behind
        self._drainer: asyncio.Task[None] | None = None

    def join(self, session: bytes, user: LinkUser) -> None:
        """Raises PeerError if another session of this node feeds that one already."""
        if session in self.sessions:
            raise PeerError(
                f"session {session.hex()} of {self.link.name} is fed by another session of this node",
                code=ErrorCode.DUPLICATE_SESSION,
                retriable=False,
            )
        self.sessions[session] = user
        self.link.join(session, user)

    def leave(self, session: bytes) -> None:
        if self.sessions.pop(session, None) is not None:
            self.link.leave(session)

    def post(self, step: Step, account: PeerAccount) -> None:
        """Send a client's step on; never waits. Raises what the link failed of."""
        self.link.post(step)
        size = len(step.payload)
        if self._drainer is None:
            self._unsent += size
            if self._unsent > UNCOUNTED_BYTES:
                self._drainer = asyncio.create_task(self._drain())
        else:
            self._owed[account] = self._owed.get(account, 0) + size
            self._ledger.queue(account, 0, size)

    async def _drain(self) -> None:
        try:
            with suppress(SwarmError):
                await self.link.drain()
        finally:
            self._drainer = None
            self._unsent = 0
            owed, self._owed = self._owed, {}
            for account, size in owed.items():
                self._ledger.unqueue(account, 0, size)


class NextHops:
    """``transport`` None: nothing is dialled, so every edge goes through the client. ``on_link`` is told of
    every new link: peer id, round trip in seconds, and bytes per second (0: not measured)."""

    def __init__(
        self,
        transport: Transport | None,
        model: ModelRef,
        agent: str,
        limits: Limits,
        ledger: Ledger,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._ledger = ledger
        self.now = clock
        self._hops: dict[str, NextHop] = {}
        self._rates: dict[str, DialRate] = {}
        # Under way, by peer id: at which addresses.
        self._dials: dict[str, tuple[tuple[str, ...], asyncio.Task[NextHop]]] = {}
        self.pool: LinkPool | None = None
        if transport is not None:
            patience = Patience(dial_s=limits.link_seconds)
            self.pool = LinkPool(transport, model, agent=agent, patience=patience, max_frame=MAX_ANSWER_FRAME)
        self.on_link: Callable[[str, float, float], None] | None = None

    def __len__(self) -> int:
        """Live links."""
        self._forget_ended()
        return len(self._hops)

    async def reach(self, target: Downstream, client: PeerAccount) -> NextHop:
        """The link to ``target``'s node, dialled for ``client`` if there is none yet.

        Raises SwarmError: it cannot be reached within ``link_seconds``, serves another model, or the client
        is beyond its dials. A dial that is under way serves all who want it, and counts until it is over.
        """
        if self.pool is None:
            raise PeerUnreachableError("this node does not dial other nodes")
        try:
            async with asyncio.timeout(self._limits.link_seconds):
                while True:
                    self._forget_ended()
                    if (hop := self._hops.get(target.peer_id)) is not None:
                        return hop
                    maddrs, dial = self._dials.get(target.peer_id) or self._dial(self.pool, target, client)
                    try:
                        return await asyncio.shield(dial)
                    except SwarmError:
                        if maddrs == target.maddrs:
                            raise  # else these, of another client, may have been wrong
        except TimeoutError:
            raise self._no_answer(target) from None

    def _dial(
        self, pool: LinkPool, target: Downstream, client: PeerAccount
    ) -> tuple[tuple[str, ...], asyncio.Task[NextHop]]:
        """Begin a dial. Raises PeerError if the client, or all of them together, are beyond theirs."""
        rate = self._rate(client.peer_id)
        if len(self._dials) >= self._limits.dials:
            problem = f"{self._limits.dials} dials are under way"
        else:
            problem = rate.begin(self._limits, self.now())
        if problem:
            raise PeerError(f"not dialled: {problem}", code=ErrorCode.OVERLOADED, retriable=True)

        def ended(dial: asyncio.Task[NextHop]) -> None:
            del self._dials[target.peer_id]
            rate.end()
            if not dial.cancelled():
                dial.exception()  # everybody who wanted it may have given up

        dial = asyncio.create_task(self._connect(pool, target))
        dial.add_done_callback(ended)
        self._dials[target.peer_id] = target.maddrs, dial
        return target.maddrs, dial

    async def _connect(self, pool: LinkPool, target: Downstream) -> NextHop:
        try:
            async with asyncio.timeout(self._limits.link_seconds):
                link = await pool.get(target.peer_id, target.maddrs)
                welcome = await asyncio.shield(link.welcome)
        except TimeoutError:
            raise self._no_answer(target) from None
        hop = self._hops[target.peer_id] = NextHop(link, welcome.max_step_tokens, self._ledger)
        if self.on_link is not None:
            self.on_link(target.peer_id, link.round_trip_s, 0.0)
        return hop

    def _no_answer(self, target: Downstream) -> PeerTimeoutError:
        seconds = self._limits.link_seconds
        return PeerTimeoutError(f"peer {target.peer_id[-8:]} did not answer within {seconds:g} s")

    async def close(self) -> None:
        """End every link."""
        dials = [dial for _, dial in self._dials.values()]
        for dial in dials:
            dial.cancel()
        if dials:
            await asyncio.wait(dials)
        if self.pool is not None:
            await self.pool.close()
        self._hops.clear()

    def _forget_ended(self) -> None:
        for peer_id in [peer_id for peer_id, hop in self._hops.items() if hop.link.failure is not None]:
            del self._hops[peer_id]

    def _rate(self, peer_id: str) -> DialRate:
        if len(self._rates) >= MAX_RATES:
            now = self.now()
            for other in [peer for peer, rate in self._rates.items() if rate.is_empty(now)]:
                del self._rates[other]
        return self._rates.setdefault(peer_id, DialRate())
