"""The sessions that are open on a node: each is reserved whole, or not at all, and frees what it holds."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from ...swarm.codecs.codec import Codec
from ...swarm.errors import ErrorCode
from ...swarm.fairness.shares import Holder
from ...swarm.protocol.field_types import BATCH_SCALE, PAGE_TOKENS, Progress
from ...swarm.protocol.hop_session import HopSession
from ...swarm.protocol.messages import Busy, Open, Pong, Refused
from ...swarm.types import NodeState, short_peer_id
from ..engine.engine import Engine
from ..engine.jobs import TokenSequence
from ..figures.work import SessionEnd, WorkDone
from ..limits.quotas import Ledger, Limits, PeerAccount
from .handshake import ScalesFor, Terms
from .journal import Journal, JournalBook
from .next_hops import NextHops
from .open_checks import checked_open
from .session import NodeSession, SessionOwner
from .session_admission import SessionAdmission

logger = logging.getLogger(__name__)

MAX_CLOSED = 1024
"""Sessions that are remembered after their CLOSE, which may overtake the last steps from the hop before:
those of the last seconds, at a busy node."""


class OpenSessions:
    """``context_tokens``: the longest sequence that the model can hold. ``journal_bytes``: of all sessions'
    journals, 0 for none. ``work`` counts what they do. ``now`` gives seconds. ``state``: DRAINING refuses new
    sessions."""

    def __init__(
        self,
        engine: Engine,
        terms: Terms,
        limits: Limits,
        ledger: Ledger,
        next_hops: NextHops,
        work: WorkDone,
        *,
        context_tokens: int,
        journal_bytes: int,
        now: Callable[[], float],
    ) -> None:
        self.terms = terms
        self.limits = limits
        self.ledger = ledger
        self.next_hops = next_hops
        self.work = work
        self.now = now
        self.state = NodeState.ONLINE
        self.journals = JournalBook(journal_bytes)
        self._engine = engine
        self._context_tokens = context_tokens
        self._admission = SessionAdmission(engine, limits, ledger)
        self._sessions: dict[bytes, NodeSession] = {}
        self._closed: OrderedDict[bytes, str] = OrderedDict()  # by CLOSE, and which peer fed them
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session: bytes) -> bool:
        return session in self._sessions

    def __getitem__(self, session: bytes) -> NodeSession:
        return self._sessions[session]

    def get(self, session: bytes) -> NodeSession | None:
        return self._sessions.get(session)

    def was_closed(self, session: bytes, upstream: str) -> bool:
        """Whether its client closed a session that the peer ``upstream`` fed, lately."""
        return self._closed.get(session) == upstream

    def begin_drain(self) -> None:
        """Refuse new sessions from now on; open ones go on."""
        self.state = NodeState.DRAINING

    def offer_scales(self, scales: ScalesFor) -> None:
        """Tell clients that come from now on with which scales this node wants the rows that enter at its
        first block. Sessions that are open keep theirs."""
        self.terms = replace(self.terms, scales=scales)

    async def wait_idle(self) -> None:
        """Return once no session is open."""
        await self._idle.wait()

    def pong(self, nonce: int, tells: tuple[Progress, ...]) -> Pong:
        load = self._engine.load()
        return Pong(
            nonce,
            sessions=self.ledger.sessions,
            queued=self._engine.queued,
            free_kv_tokens=self._engine.free_tokens,
            state=self.state,
            running=load.running,
            batch=round(load.batch * BATCH_SCALE),
            tokens_per_s=round(load.tokens_per_s),
            queue_us=round(load.queue_ms * 1000),
            tells=tells,
            row_us=self._engine.row_us,
        )

    def open(
        self, request: Open, account: PeerAccount, parent: NodeSession | None, owner: SessionOwner
    ) -> NodeSession | Busy | Refused:
        """A session with everything it needs reserved; or why not, with nothing taken."""
        codecs = checked_open(
            request,
            parent,
            terms=self.terms,
            draining=self.state is NodeState.DRAINING,
            context_tokens=self._context_tokens,
        )
        if isinstance(codecs, Refused):
            return codecs
        if (refusal := self._never_fits(request)) is not None:
            return refusal
        now = self.now()
        cells = self._cells(request)
        if busy := self._admission.limit_of(request, account, cells, now):
            return busy

        def released() -> None:
            self._admission.ended(self.now() - now)
            self.ledger.give_back(account, cells)
            if not self.ledger.sessions:
                self._idle.set()

        sequence = self._open_sequence(request, codecs, account, parent, released)
        if sequence is None and self._reclaim(account, cells, now):
            sequence = self._open_sequence(request, codecs, account, parent, released)
        if sequence is None:
            return self._admission.none_left(request, account, cells, now)
        self._admission.satisfied(account.holder)
        self.ledger.take(account, cells)
        self._idle.clear()
        hop = HopSession(request.max_tokens, max_step_tokens=owner.max_step_tokens, length=sequence.length)
        journal = self._journal_of(request, sequence, parent, account.holder)
        session = NodeSession(
            request, sequence, hop, self._engine, self.ledger, self.work, account, cells, owner, now, journal
        )
        self._sessions[session.id] = session
        self.work.opened_session(account.peer_id)
        logger.info(
            "event=session_opened peer=%s blocks=%s max_tokens=%d known_tokens=%d",
            short_peer_id(account.peer_id),
            request.span,
            request.max_tokens,
            sequence.length,
        )
        return session

    def submitting_together(self) -> AbstractContextManager[None]:
        """Inside, steps wait until all have come: see ``Engine.together``."""
        return self._engine.together()

    def close(self, session: NodeSession, why: SessionEnd, prefix: tuple[bytes, ...] = ()) -> None:
        """Forget a session and free what it holds. ``prefix``: names of its pages, if the client told."""
        del self._sessions[session.id]
        self.work.ended_session(why)
        logger.info(
            "event=session_closed peer=%s blocks=%s tokens=%d seconds=%.1f why=%s",
            short_peer_id(session.account.peer_id),
            session.request.span,
            session.usage.tokens,
            self.now() - session.opened_at,
            why,
        )
        session.forget_feeder()
        if why is SessionEnd.CLOSED and session.upstream:
            self._closed.pop(session.id, None)
            self._closed[session.id] = session.upstream
            if len(self._closed) > MAX_CLOSED:
                self._closed.popitem(last=False)
        prefix = self._usable_prefix(session.request.max_tokens, prefix)
        if session.journal is not None:
            settled = session.sequence.settled // PAGE_TOKENS
            pages = (prefix or session.sequence.names)[:settled]
            codec = session.request.reply_codec
            self.journals.finish(
                session.journal,
                session.request.span,
                codec,
                pages,
                long_context=session.sequence.long_context,
            )
        session.close(prefix)

    def peer_left(self, holder: Holder) -> None:
        """It waits for no session any more."""
        self._admission.satisfied(holder)

    def watch(self, task: asyncio.Task[None]) -> None:
        """Own a session's task until it ends."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("event=chain_task_failed", exc_info=error)

    # Steps of opening a session.

    def _usable_prefix(self, max_tokens: int, prefix: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """The names of pages that a session of ``max_tokens`` can have; none without a prefix cache."""
        return prefix[: max_tokens // PAGE_TOKENS] if self.terms.page_tokens else ()

    def _cells(self, request: Open) -> int:
        """Cells that a session reserves, in whole pages; shared ones count for each."""
        return self._engine.memory.cells_of(request.max_tokens, request.span)

    def _never_fits(self, request: Open) -> Refused | None:
        engine, span = self._engine, request.span
        whole = engine.could_ever_fit(request.max_tokens, span)
        if whole and self._cells(request) <= self._admission.most_cells:
            return None
        if whole:
            most = engine.memory.tokens_of(self._admission.most_cells, span)
            message = f"one peer may hold {most} tokens of this node's KV cache"
        else:
            message = (
                f"this node's whole KV cache has {engine.memory.tokens_of(engine.memory.total_cells, span)}"
            )
        return Refused(
            request.session,
            ErrorCode.CONTEXT_EXCEEDED,
            f"{request.max_tokens} tokens asked for, but {message}",
            "Ask for fewer tokens, use another peer, or start the node with a larger --kv-cache-tokens.",
        )

    def _open_sequence(
        self,
        request: Open,
        codecs: tuple[Codec, Codec],
        account: PeerAccount,
        parent: NodeSession | None,
        released: Callable[[], None],
    ) -> TokenSequence | None:
        if self._admission.is_full:
            return None
        return self._engine.open_sequence(
            account.peer_id,
            request.span,
            request.max_tokens,
            *codecs,
            prefix=self._usable_prefix(request.max_tokens, request.prefix),
            parent=None if parent is None else parent.sequence,
            parent_tokens=request.parent_tokens,
            group=account.holder.group,
            on_released=released,
        )

    def _journal_of(
        self, request: Open, sequence: TokenSequence, parent: NodeSession | None, owner: Holder
    ) -> Journal | None:
        """The session's journal, with the rows of what it begins with, as far as they were kept."""
        if not request.journal or not self.journals.budget:
            return None
        base, rows = sequence.length, b""
        if parent is None:
            known = sequence.names[: sequence.length // PAGE_TOKENS]
            base, rows = self.journals.recall(
                owner.peer_id, request.span, request.reply_codec, known, long_context=sequence.long_context
            )
        elif parent.journal is not None and parent.journal.base < sequence.length:
            kept = parent.journal.slice(parent.journal.base, sequence.length)
            if kept is not None:
                base, rows = parent.journal.base, kept
        row_bytes = sequence.reply_codec.row_bytes(self.terms.boundaries.widths[request.span.end])
        return self.journals.open(row_bytes, base, rows, owner=owner.peer_id, group=owner.group)

    def _reclaim(self, account: PeerAccount, cells: int, now: float) -> bool:
        """Make room for a peer within its share, at the cost of those beyond theirs."""
        losers = self._admission.losers(account, cells, list(self._sessions.values()), now)
        for session in losers:
            reason = "another peer needed its room, and the session was used least"
            session.owner.expire(session, SessionEnd.RECLAIMED, reason)
        return bool(losers)
