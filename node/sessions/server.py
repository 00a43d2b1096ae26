"""The network side of a node: admits clients and sessions, within its quotas, to its engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ...dht.records.node_records import NodeRecords
from ...shards.layers.kv_pool import PAGE_TOKENS
from ...swarm.codecs import activations
from ...swarm.errors import ErrorCode
from ...swarm.fairness.shares import Holder
from ...swarm.fairness.unfinished import UnfinishedFrames
from ...swarm.links.message_stream import Connection
from ...swarm.protocol.hop_session import HopSession
from ...swarm.protocol.messages import (
    BATCH_SCALE,
    MAX_HELLO_FRAME,
    Busy,
    ErrorMessage,
    Open,
    Pong,
    Progress,
    Refused,
)
from ...swarm.protocol.wire import DEFAULT_MAX_FRAME
from ...swarm.transport.address_groups import address_group
from ...swarm.transport.interface import Stream, Transport
from ...swarm.types import ModelRef, NodeState
from ..engine.engine import Engine
from ..engine.jobs import TokenSequence
from ..limits.quotas import Ledger, Limits, PeerAccount
from .handshake import Terms
from .journal import Journal, JournalBook, JournalStatistics
from .next_hops import NextHops
from .open_checks import refusal_of
from .peer_connection import PeerConnection
from .session import NodeSession, SessionOwner
from .session_admission import SessionAdmission

logger = logging.getLogger(__name__)

DEFAULT_JOURNAL_BYTES = 256 * 1024 * 1024
"""Of all journals: some 400,000 tokens of a model 576 wide in 8 bits, 60,000 of one 4096 wide."""


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """A moment's load. ``queued``: steps without an answer. ``peers``: identities that are connected.
    ``links``: to next hops of clients' routes."""

    state: NodeState
    peers: int
    connections: int
    sessions: int
    queued: int
    free_kv_tokens: int
    total_kv_tokens: int
    links: int
    journal: JournalStatistics


class NodeServer:
    """``handle`` serves one stream; give it to ``Transport.serve``. One per node, used in one event loop.

    ``context_tokens`` is the longest sequence the model can hold. ``transport`` dials the next hops of
    chains, whose records ``records`` reads; without one, results go back to the clients. ``journal_bytes``:
    of all sessions' journals, 0 for none. ``clock`` gives seconds, for idle times. ``sessions``: all that are
    open, by id.
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
        journal_bytes: int = DEFAULT_JOURNAL_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.limits = limits or Limits()
        self.now = clock
        self.state = NodeState.ONLINE
        self.terms = Terms(
            model=model,
            span=engine.model.span,
            codecs=activations.CODECS,
            hidden_size=engine.model.config.hidden_size,
            max_frame=max_frame,
            max_step_tokens=self.limits.max_step_tokens,
            page_tokens=PAGE_TOKENS if engine.settings.prefix_cache else 0,
            agent=agent,
        )
        self._context_tokens = context_tokens
        self._blocks = len(engine.model.span)
        self.ledger = Ledger(self.limits)
        self._admission = SessionAdmission(engine, self.limits, self.ledger)
        self._journals = JournalBook(journal_bytes)
        self._row_bytes = {
            codec: activations.payload_bytes(codec, 1, self.terms.hidden_size) for codec in self.terms.codecs
        }
        self.sessions: dict[bytes, NodeSession] = {}
        self.next_hops = NextHops(transport, model, agent, self.limits, self.ledger, clock, records)
        self.frames = UnfinishedFrames(clock)
        self._connections: set[PeerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def handle(self, stream: Stream) -> None:
        """Serve one client's stream until it ends."""
        connection = Connection(stream, MAX_HELLO_FRAME)
        account = self._admit(Holder(stream.peer_id, address_group(stream.remote_maddr)))
        if isinstance(account, str):
            hint = "Use the streams that are open: one carries many sessions. Else use another peer."
            told = ErrorMessage(None, None, ErrorCode.TOO_MANY_SESSIONS, account, True, hint)
            await connection.close_with(told)
            return
        served = PeerConnection(self, connection, account)
        self._connections.add(served)
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
        """Its stream is over. May be called again."""
        if served in self._connections:
            self._connections.discard(served)
            self.ledger.disconnect(served.account)
            if not served.account.connections:
                self._admission.satisfied(served.account.holder)

    def statistics(self) -> ServerStatistics:
        return ServerStatistics(
            state=self.state,
            peers=len(self.ledger),
            connections=self.ledger.connections,
            sessions=self.ledger.sessions,
            queued=self.engine.queued,
            free_kv_tokens=self.engine.free_tokens,
            total_kv_tokens=self.engine.total_tokens,
            links=len(self.next_hops),
            journal=self._journals.statistics(),
        )

    def sweep(self) -> None:
        """Close idle connections and sessions, and those whose frames do not grow. Call it every few
        seconds."""
        now = self.now()
        self.frames.sweep()
        for connection in list(self._connections):
            connection.sweep(now)

    def begin_drain(self) -> None:
        """Refuse new sessions from now on; open ones go on."""
        self.state = NodeState.DRAINING

    async def wait_idle(self) -> None:
        """Return once no session is open."""
        await self._idle.wait()

    def close(self) -> None:
        """End every stream, telling clients that this node leaves."""
        self.begin_drain()
        farewell = ErrorMessage(
            None, None, ErrorCode.DRAINING, "this node is leaving", True, "Use another peer."
        )
        for connection in list(self._connections):
            connection.close(farewell)

    async def aclose(self) -> None:
        """``close``, and end the links to next hops."""
        self.close()
        await self.next_hops.close()

    # What a connection asks its server.

    def pong(self, nonce: int, tells: tuple[Progress, ...] = ()) -> Pong:
        load = self.engine.load()
        return Pong(
            nonce,
            sessions=self.ledger.sessions,
            queued=self.engine.queued,
            free_kv_tokens=self.engine.free_tokens,
            state=self.state,
            running=load.running,
            batch=round(load.batch * BATCH_SCALE),
            tokens_per_s=round(load.tokens_per_s),
            queue_us=round(load.queue_ms * 1000),
            tells=tells,
        )

    def usable_prefix(self, max_tokens: int, prefix: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """The names of pages that a session of ``max_tokens`` can have; none without a prefix cache."""
        return prefix[: max_tokens // PAGE_TOKENS] if self.terms.page_tokens else ()

    def open_session(
        self,
        request: Open,
        account: PeerAccount,
        parent: NodeSession | None,
        owner: SessionOwner,
    ) -> NodeSession | Busy | Refused:
        """A session with everything it needs reserved; or why not, with nothing taken."""
        refusal = refusal_of(
            request,
            parent,
            terms=self.terms,
            draining=self.state is NodeState.DRAINING,
            context_tokens=self._context_tokens,
        ) or self._never_fits(request)
        if refusal is not None:
            return refusal
        now = self.now()
        cells = self._cells(request)
        if busy := self._admission.limit_of(request, account, cells, now):
            return busy
        sequence = self._open_sequence(request, account, parent)
        if sequence is None and self._reclaim(account, cells, now):
            sequence = self._open_sequence(request, account, parent)
        if sequence is None:
            return self._admission.none_left(request, account, cells, now)
        self._admission.satisfied(account.holder)
        self.ledger.take(account, cells)
        self._idle.clear()

        def released() -> None:
            self._admission.ended(self.now() - now)
            self.ledger.give_back(account, cells)
            if not self.ledger.sessions:
                self._idle.set()

        sequence.on_released = released
        sequence.group = account.holder.group
        hop = HopSession(request.max_tokens, max_step_tokens=owner.max_step_tokens, length=sequence.length)
        session = NodeSession(request, sequence, hop, self.engine, self.ledger, account, cells, owner, now)
        session.journal = self._journal_of(request, sequence, parent, account.holder)
        self.sessions[session.id] = session
        return session

    def close_session(self, session: NodeSession, prefix: tuple[bytes, ...] = ()) -> None:
        """Forget a session and free what it holds. ``prefix``: names of its pages, if the client told."""
        del self.sessions[session.id]
        self.forget_feeder(session)
        prefix = self.usable_prefix(session.request.max_tokens, prefix)
        if session.journal is not None:
            settled = session.sequence.settled // PAGE_TOKENS
            pages = (prefix or session.sequence.names)[:settled]
            codec = session.request.reply_codec
            self._journals.finish(session.journal, session.request.span, codec, pages)
        session.close(prefix)

    def forget_feeder(self, session: NodeSession) -> None:
        """Nobody has sent steps for it yet, as far as its upstream goes."""
        feeder, session.fed_by = session.fed_by, None
        if feeder is not None:
            feeder.stop_feeding(session)

    def watch(self, task: asyncio.Task[None]) -> None:
        """Own a session's task until it ends."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("event=chain_task_failed", exc_info=error)

    # Steps of opening a session.

    def _cells(self, request: Open) -> int:
        """(token, block) pairs that a session reserves, in whole pages; shared ones count for each."""
        return -(-request.max_tokens // PAGE_TOKENS) * PAGE_TOKENS * len(request.span)

    def _never_fits(self, request: Open) -> Refused | None:
        blocks = len(request.span)
        whole = self.engine.could_ever_fit(request.max_tokens, blocks)
        if whole and self._cells(request) <= self._admission.most_cells:
            return None
        if whole:
            most = self._admission.most_cells // blocks // PAGE_TOKENS * PAGE_TOKENS
            message = f"one peer may hold {most} tokens of this node's KV cache"
        else:
            message = f"this node's whole KV cache has {self.engine.total_tokens * self._blocks // blocks}"
        return Refused(
            request.session,
            ErrorCode.CONTEXT_EXCEEDED,
            f"{request.max_tokens} tokens asked for, but {message}",
            "Ask for fewer tokens, use another peer, or start the node with a larger --kv-cache-tokens.",
        )

    def _open_sequence(
        self, request: Open, account: PeerAccount, parent: NodeSession | None
    ) -> TokenSequence | None:
        if self._admission.is_full:
            return None
        return self.engine.open_sequence(
            account.peer_id,
            request.span,
            request.max_tokens,
            request.codec,
            request.reply_codec,
            prefix=self.usable_prefix(request.max_tokens, request.prefix),
            parent=None if parent is None else parent.sequence,
            parent_tokens=request.parent_tokens,
        )

    def _journal_of(
        self, request: Open, sequence: TokenSequence, parent: NodeSession | None, owner: Holder
    ) -> Journal | None:
        """With the rows of what the session begins with, as far as they were kept."""
        if not request.journal or not self._journals.budget:
            return None
        base, rows = sequence.length, b""
        if parent is None:
            known = sequence.names[: sequence.length // PAGE_TOKENS]
            base, rows = self._journals.recall(owner.peer_id, request.span, request.reply_codec, known)
        elif parent.journal is not None and parent.journal.base < sequence.length:
            kept = parent.journal.slice(parent.journal.base, sequence.length)
            if kept is not None:
                base, rows = parent.journal.base, kept
        row_bytes = self._row_bytes[request.reply_codec]
        return self._journals.open(row_bytes, base, rows, owner=owner.peer_id, group=owner.group)

    def _reclaim(self, account: PeerAccount, cells: int, now: float) -> bool:
        """Make room for a peer within its share, at the cost of those beyond theirs."""
        owned = {each: connection for connection in self._connections for each in connection.sessions}
        losers = self._admission.losers(account, cells, list(owned), now)
        for session in losers:
            owned[session].expire(session, "another peer needed its room, and the session was used least")
        return bool(losers)
