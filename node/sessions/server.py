"""The network side of a node: admits clients within its quotas, and serves their streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ...dht.records.node_records import NodeRecords
from ...swarm.codecs.names import KINDS
from ...swarm.errors import ErrorCode
from ...swarm.fairness.shares import Holder
from ...swarm.fairness.unfinished import UnfinishedFrames
from ...swarm.links.message_stream import Connection
from ...swarm.protocol.field_types import MAX_HELLO_FRAME, PAGE_TOKENS
from ...swarm.protocol.messages import ErrorMessage
from ...swarm.protocol.wire import DEFAULT_MAX_FRAME
from ...swarm.transport.address_groups import address_group
from ...swarm.transport.interface import Stream, Transport
from ...swarm.types import ModelRef, NodeState
from ..engine.engine import Engine
from ..figures.work import SessionEnd
from ..limits.quotas import Ledger, Limits, PeerAccount
from .handshake import Terms
from .journal import JournalStatistics
from .next_hops import NextHops, OnLink
from .open_sessions import OpenSessions
from .peer_connection import PeerConnection

DEFAULT_JOURNAL_BYTES = 256 * 1024 * 1024
"""Bytes of all journals by default: some 400,000 tokens of a model 576 wide in 8 bits, 60,000 of one 4096
wide."""


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """A moment's load. ``queued``: steps without an answer. ``peers``: identities that are connected.
    ``state_sessions``: sessions over the whole span for which there are states, 0 where no block keeps one;
    ``free_state_sessions``: how many more. ``links``: to next hops of clients' routes."""

    state: NodeState
    peers: int
    connections: int
    sessions: int
    queued: int
    free_kv_tokens: int
    total_kv_tokens: int
    free_state_sessions: int
    state_sessions: int
    links: int
    journal: JournalStatistics


class NodeServer:
    """``handle`` serves one stream; give it to ``Transport.serve``. One per node, used in one event loop.

    ``context_tokens`` is the longest sequence the model can hold. ``transport`` dials the next hops of
    chains, whose records ``records`` reads; without one, results go back to the clients. ``on_link``: see
    ``NextHops``. ``journal_bytes``: of all sessions' journals, 0 for none. ``clock`` gives seconds, for idle
    times. What is done is counted where the engine counts.
    """

    def __init__(
        self,
        engine: Engine,
        model: ModelRef,
        *,
        context_tokens: int,
        agent: str,
        limits: Limits | None = None,
        max_frame: int = DEFAULT_MAX_FRAME,
        transport: Transport | None = None,
        records: NodeRecords | None = None,
        on_link: OnLink | None = None,
        journal_bytes: int = DEFAULT_JOURNAL_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        limits = limits or Limits()
        terms = Terms(
            model=model,
            span=engine.model.span,
            codecs=KINDS,
            boundaries=engine.model.config.boundaries,
            max_frame=max_frame,
            max_step_tokens=limits.max_step_tokens,
            page_tokens=PAGE_TOKENS if engine.settings.prefix_cache else 0,
            agent=agent,
            line_bytes_per_s=limits.line_bytes_per_s,
        )
        self.ledger = Ledger(limits)
        self._work = engine.work
        self.next_hops = NextHops(
            transport, model, agent, limits, self.ledger, clock, records, on_link, self._work
        )
        self.sessions = OpenSessions(
            engine,
            terms,
            limits,
            self.ledger,
            self.next_hops,
            self._work,
            context_tokens=context_tokens,
            journal_bytes=journal_bytes,
            now=clock,
        )
        self.frames = UnfinishedFrames(clock)
        self._now = clock
        self._connections: set[PeerConnection] = set()

    @property
    def terms(self) -> Terms:
        """What clients that come now are told."""
        return self.sessions.terms

    async def handle(self, stream: Stream) -> None:
        """Serve one client's stream until it ends."""
        connection = Connection(stream, MAX_HELLO_FRAME)
        account = self._admit(Holder(stream.peer_id, address_group(stream.remote_maddr)))
        if isinstance(account, str):
            hint = "Use the streams that are open: one carries many sessions. Else use another peer."
            told = ErrorMessage(None, None, ErrorCode.TOO_MANY_SESSIONS, account, True, hint)
            await connection.close_with(told)
            return
        served = PeerConnection(self.sessions, self.frames, connection, account)
        self._connections.add(served)
        self._work.began_stream(served)
        try:
            await served.run()
        finally:
            self._leave(served)

    def _admit(self, holder: Holder) -> PeerAccount | str:
        """The account of a peer, with one stream more, perhaps in place of an unused one; or why not."""
        account = self.ledger.connect(holder)
        if isinstance(account, PeerAccount):
            return account
        unused: dict[Holder, PeerConnection] = {}
        for each in self._connections:
            known = unused.get(each.account.holder)
            if each.is_unused and (known is None or each.last_heard < known.last_heard):
                unused[each.account.holder] = each
        loser = self.ledger.stream_to_close(holder, unused.__contains__)
        if loser is not None:
            unused[loser].close()
            self._leave(unused[loser])
            account = self.ledger.connect(holder)
        return account if isinstance(account, PeerAccount) else f"too many streams to this node: {account}"

    def _leave(self, served: PeerConnection) -> None:
        """Its stream is over. Idempotent."""
        if served in self._connections:
            self._connections.discard(served)
            self.ledger.disconnect(served.account)
            self._work.ended_stream(served)
            if not served.account.connections:
                self.sessions.peer_left(served.account.holder)

    def statistics(self) -> ServerStatistics:
        return ServerStatistics(
            state=self.sessions.state,
            peers=len(self.ledger),
            connections=self.ledger.connections,
            sessions=self.ledger.sessions,
            queued=self.engine.queued,
            free_kv_tokens=self.engine.free_tokens,
            total_kv_tokens=self.engine.total_tokens,
            free_state_sessions=self.engine.memory.free_state_sessions,
            state_sessions=self.engine.memory.state_sessions,
            links=len(self.next_hops),
            journal=self.sessions.journals.statistics(),
        )

    def sweep(self) -> None:
        """Close idle connections and sessions, and those whose frames do not grow. Call it every few
        seconds."""
        now = self._now()
        self.frames.sweep()
        for connection in list(self._connections):
            connection.sweep(now)

    def close(self) -> None:
        """End every stream, telling clients that this node leaves."""
        self.sessions.begin_drain()
        farewell = ErrorMessage(
            None, None, ErrorCode.DRAINING, "this node is leaving", True, "Use another peer."
        )
        for connection in list(self._connections):
            connection.close(farewell, SessionEnd.NODE_LEFT)

    async def aclose(self) -> None:
        """``close``, and end the links to next hops."""
        self.close()
        await self.next_hops.close()
