"""Links to the nodes that come after this one in its clients' routes; one a node, however many sessions.

A client makes this node dial, so dials are counted by client and go where the other node's own signed record
says, over libp2p only; the client is not told what was found there. What is computed leaves without waiting;
what a slow next hop has not taken is charged to the clients that it belongs to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from ...dht.records.node_records import NodeRecords
from ...swarm.errors import (
    ErrorCode,
    PeerError,
    PeerTimeoutError,
    PeerUnreachableError,
    RemoteProtocolError,
    SwarmError,
)
from ...swarm.fairness.shares import Holder
from ...swarm.links.dialler import Dialler
from ...swarm.links.guarded_dials import HiddenDialError
from ...swarm.links.link import LinkUser, NodeLink
from ...swarm.protocol.field_types import Downstream
from ...swarm.protocol.messages import Step
from ...swarm.runtime.tasks import cancel_all, look_at
from ...swarm.timeouts import Patience
from ...swarm.transport.direct_maddrs import way_of
from ...swarm.transport.interface import Transport
from ...swarm.types import ModelRef
from ..figures.work import Bytes, Link, StreamSide, WorkDone
from ..limits.quotas import DialQuota, Ledger, Limits, PeerAccount

logger = logging.getLogger(__name__)

UNCOUNTED_BYTES = 1024 * 1024
"""Sent to a next hop before it is asked whether it keeps up: some seconds of decode steps."""
NOT_REACHED = "the next hop cannot be reached from here"
"""A client is told no more of a failed dial, so that it cannot use this node to find out what is at an
address."""

OnLink = Callable[[str, float, float], None]
"""``on_link(peer_id, round_trip_s, bytes_per_s)``; 0 bytes per second: not measured."""


class NextHop:
    """A live link to a node, and what its sessions have not got rid of. Made by ``NextHops.reach``.
    ``features``: what else the node understands."""

    def __init__(
        self, link: NodeLink, max_step_tokens: int, ledger: Ledger, features: tuple[str, ...] = ()
    ) -> None:
        self.link = link
        self.max_step_tokens = max_step_tokens
        self.features = features
        self.sessions: dict[bytes, LinkUser] = {}  # by the session's id over there
        self._ledger = ledger
        self._unsent = 0
        self._owed: dict[PeerAccount, int] = {}  # bytes posted since the link fell behind
        self._drainer: asyncio.Task[None] | None = None

    @property
    def link_class(self) -> Link:
        return StreamSide.NEXT_HOP, way_of(self.link.remote_maddr)

    @property
    def traffic(self) -> Bytes:
        """Over the link, so far."""
        return Bytes(self.link.bytes_received, self.link.bytes_sent)

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
        """Send a client's step on; never waits. Raises the link's error if it has failed."""
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
    """``transport`` None: nothing is dialled, so every edge goes through the client. ``records`` reads what
    clients say of next hops; None: only those are reached that are connected or found otherwise. ``on_link``
    is told of every new link. ``work`` counts what goes over them."""

    def __init__(
        self,
        transport: Transport | None,
        model: ModelRef,
        agent: str,
        limits: Limits,
        ledger: Ledger,
        clock: Callable[[], float],
        records: NodeRecords | None = None,
        on_link: OnLink | None = None,
        work: WorkDone | None = None,
    ) -> None:
        self._limits = limits
        self._ledger = ledger
        self._records = records
        self.now = clock
        self._hops: dict[str, NextHop] = {}
        self._quota = DialQuota(limits)
        self._dials: dict[str, _Dial] = {}  # under way, by peer id
        self.dialler: Dialler | None = None
        if transport is not None:
            patience = Patience(dial_s=limits.link_seconds, line_bytes_per_s=limits.line_bytes_per_s)
            self.dialler = Dialler(transport, model, agent, patience=patience, clock=clock)
        self._on_link = on_link
        self._work = work or WorkDone()

    def __len__(self) -> int:
        """Live links."""
        self._forget_ended()
        return len(self._hops)

    async def reach(self, target: Downstream, client: PeerAccount) -> NextHop:
        """The link to ``target``'s node, dialled for ``client`` if there is none yet.

        Raises SwarmError: the client is beyond its dials, or the node cannot be reached within
        ``link_seconds``. The reason is not told to the client. A dial that is under way serves all clients
        that want it, and counts until it is over.
        """
        if self.dialler is None:
            raise PeerUnreachableError("this node does not dial other nodes")
        try:
            async with asyncio.timeout(self._limits.link_seconds):
                while True:
                    self._forget_ended()
                    if (hop := self._hops.get(target.peer_id)) is not None:
                        return hop
                    maddrs = self._maddrs(target)
                    dial = self._dials.get(target.peer_id) or self._dial(self.dialler, target, maddrs, client)
                    try:
                        return await dial.wait()
                    except SwarmError as error:
                        logger.info(
                            "event=dial_failed peer=%s client=%s error=%r",
                            target.peer_id,
                            client.peer_id,
                            error.message,
                        )
                        if isinstance(error, HiddenDialError):  # how long it took would tell what is there
                            await asyncio.get_running_loop().create_future()
                        if dial.maddrs == maddrs:
                            break  # else these, of another client, may have been wrong
        except TimeoutError:
            logger.info(
                "event=dial_failed peer=%s client=%s error='no answer'", target.peer_id, client.peer_id
            )
        raise PeerUnreachableError(NOT_REACHED)

    def _maddrs(self, target: Downstream) -> tuple[str, ...]:
        """Where the target's own record says that it listens."""
        if target.record is None or self._records is None:
            return ()
        try:
            return self._records.maddrs(target.peer_id, target.record)
        except RemoteProtocolError as error:
            logger.info("event=record_refused peer=%s error=%r", target.peer_id, error.message)
            raise PeerUnreachableError(NOT_REACHED) from None

    def _dial(
        self, dialler: Dialler, target: Downstream, maddrs: tuple[str, ...], client: PeerAccount
    ) -> _Dial:
        """Begin a dial. Raises PeerError if the client, or all of them together, are beyond theirs."""
        holder = client.holder
        if (loser := self._quota.loser(holder, self.now())) is not None:
            theirs = next(dial for dial in reversed(self._dials.values()) if dial.holder == loser)
            theirs.give_up()
            self._ended(theirs)
        if problem := self._quota.begin(holder, self.now()):
            raise PeerError(f"not dialled: {problem}", code=ErrorCode.OVERLOADED, retriable=True)
        task = asyncio.create_task(self._connect(dialler, target.peer_id, maddrs))
        dial = self._dials[target.peer_id] = _Dial(target.peer_id, holder, maddrs, task)
        task.add_done_callback(lambda _: self._ended(dial))
        return dial

    def _ended(self, dial: _Dial) -> None:
        """It is over, or given up. Idempotent."""
        if self._dials.get(dial.peer_id) is dial:
            del self._dials[dial.peer_id]
            self._quota.end(dial.holder)

    async def _connect(self, dialler: Dialler, peer_id: str, maddrs: tuple[str, ...]) -> NextHop:
        try:
            async with asyncio.timeout(self._limits.link_seconds):
                link = await dialler.get(peer_id, maddrs)
                welcome = await asyncio.shield(link.welcome)
        except TimeoutError:
            raise PeerTimeoutError(f"no answer within {self._limits.link_seconds:g} s") from None
        self._forget_ended()
        hop = self._hops[peer_id] = NextHop(link, welcome.max_step_tokens, self._ledger, welcome.features)
        self._work.began_stream(hop)
        if self._on_link is not None:
            self._on_link(peer_id, link.round_trip_s, 0.0)
        return hop

    async def close(self) -> None:
        """End every link."""
        dials = [dial.task for dial in self._dials.values()]
        await cancel_all(dials)
        if self.dialler is not None:
            await self.dialler.close()
        self._forget_ended()

    def _forget_ended(self) -> None:
        for peer_id in [peer_id for peer_id, hop in self._hops.items() if hop.link.failure is not None]:
            self._work.ended_stream(self._hops.pop(peer_id))


class _Dial:
    """A dial under way to ``peer_id`` at ``maddrs``, for ``holder`` at first."""

    def __init__(
        self, peer_id: str, holder: Holder, maddrs: tuple[str, ...], task: asyncio.Task[NextHop]
    ) -> None:
        self.peer_id = peer_id
        self.holder = holder
        self.maddrs = maddrs
        self.task = task
        self._given_up = False
        task.add_done_callback(look_at)  # all that wanted it may have given up

    def give_up(self) -> None:
        """Its place is another's."""
        self._given_up = True
        self.task.cancel()

    async def wait(self) -> NextHop:
        """Raises SwarmError."""
        try:
            return await asyncio.shield(self.task)
        except asyncio.CancelledError:
            if self._given_up and self.task.done():
                raise PeerUnreachableError("given up for a client with fewer dials under way") from None
            raise
