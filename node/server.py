"""The network side of a node: admits clients and sessions, within its quotas, to its engine."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..swarm import codecs
from ..swarm.connection import Connection
from ..swarm.errors import ErrorCode
from ..swarm.messages import Busy, ErrorMessage, Open, Pong, Refused
from ..swarm.transport import Stream
from ..swarm.types import ModelRef, NodeState, Span
from ..swarm.wire import DEFAULT_MAX_FRAME
from .engine import Engine
from .kv_budget import KvBudget
from .peer_connection import RETRY_AFTER_MS, PeerConnection
from .quotas import Limits, Tally


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """A moment's load."""

    state: NodeState
    connections: int
    sessions: int
    queued: int
    free_kv_tokens: int
    total_kv_tokens: int


class NodeServer:
    """``handle`` serves one stream; give it to ``Transport.serve``. One per node, used in one event loop.

    ``context_tokens`` is the longest sequence the model can hold. ``clock`` gives seconds, for idle times.
    """

    def __init__(
        self,
        engine: Engine,
        budget: KvBudget,
        model: ModelRef,
        *,
        context_tokens: int,
        agent: str,
        limits: Limits | None = None,
        max_frame: int = DEFAULT_MAX_FRAME,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.model = model
        self.span: Span = engine.model.span
        self.hidden_size = engine.model.config.hidden_size
        self.codecs: tuple[str, ...] = codecs.CODECS
        self.agent = agent
        self.limits = limits or Limits()
        self.max_frame = max_frame
        self.now = clock
        self.state = NodeState.ONLINE
        self._budget = budget
        self._context_tokens = context_tokens
        self._connections: set[PeerConnection] = set()
        self._connection_tally = Tally(self.limits.max_connections_per_peer)
        self._session_tally = Tally(self.limits.max_sessions_per_peer, self.limits.max_sessions)
        self._serials = itertools.count()
        self._idle = asyncio.Event()
        self._idle.set()

    async def handle(self, stream: Stream) -> None:
        """Serve one client's stream until it ends."""
        connection = Connection(stream, self.max_frame)
        peer_id = connection.peer_id
        if self._connection_tally.peer_is_full(peer_id):
            await connection.send(
                ErrorMessage(
                    None,
                    None,
                    ErrorCode.TOO_MANY_SESSIONS,
                    f"a peer may hold {self.limits.max_connections_per_peer} streams to this node",
                    True,
                )
            )
            connection.close()
            return
        served = PeerConnection(self, connection)
        self._connections.add(served)
        self._connection_tally.add(peer_id)
        try:
            await served.run()
        finally:
            self._connections.discard(served)
            self._connection_tally.remove(peer_id)

    def statistics(self) -> ServerStatistics:
        return ServerStatistics(
            state=self.state,
            connections=len(self._connections),
            sessions=len(self._session_tally),
            queued=self.engine.queued,
            free_kv_tokens=self._budget.free_tokens,
            total_kv_tokens=self._budget.total_tokens,
        )

    def sweep(self) -> None:
        """Close idle connections and sessions. Call it every few seconds."""
        now = self.now()
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

    # What a connection asks its server.

    def pong(self, nonce: int) -> Pong:
        return Pong(nonce, len(self._session_tally), self.engine.queued, self._budget.free_tokens, self.state)

    def refusal(self, request: Open) -> Refused | None:
        """Why a session can never be opened as asked; None if it could."""

        def refused(code: ErrorCode, message: str, hint: str = "") -> Refused:
            return Refused(request.session, code, message, hint)

        if self.state is NodeState.DRAINING:
            return refused(
                ErrorCode.DRAINING, "this node is leaving and takes no new sessions", "Use another peer."
            )
        if not self.span.covers(request.span):
            return refused(
                ErrorCode.SPAN_NOT_SERVED,
                f"blocks {request.span} are not served here; this node has {self.span}",
            )
        for codec in (request.codec, request.reply_codec):
            if codec not in self.codecs:
                return refused(
                    ErrorCode.UNSUPPORTED_CODEC, f"codec {codec} is not one of {', '.join(self.codecs)}"
                )
        if request.batch != 1:
            return refused(
                ErrorCode.UNSUPPORTED,
                f"a batch of {request.batch} sequences in one session is not offered",
                "Open one session for each sequence.",
            )
        if request.downstream is not None:
            return refused(ErrorCode.UNSUPPORTED, "this node does not send results on to another peer")
        if request.max_tokens > self._context_tokens:
            return refused(
                ErrorCode.CONTEXT_EXCEEDED,
                f"{request.max_tokens} tokens asked for, but the model holds {self._context_tokens}",
            )
        if not self._budget.could_ever_fit(request.max_tokens, len(request.span)):
            return refused(
                ErrorCode.CONTEXT_EXCEEDED,
                f"{request.max_tokens} tokens asked for, but this node's whole KV cache has "
                f"{self._budget.total_tokens}",
                "Ask for fewer tokens, or start the node with a larger --kv-cache-tokens.",
            )
        return None

    def reserve(self, peer_id: str, request: Open) -> int | Busy:
        """Take a session slot and KV cache; returns the key to release them, or BUSY, with nothing taken."""
        if self._session_tally.peer_is_full(peer_id):
            return Busy(
                request.session,
                RETRY_AFTER_MS,
                f"a peer may hold {self.limits.max_sessions_per_peer} sessions on this node",
            )
        if self._session_tally.is_full():
            return Busy(request.session, RETRY_AFTER_MS, f"all {self.limits.max_sessions} sessions are taken")
        key = next(self._serials)
        if not self._budget.reserve(key, request.max_tokens, len(request.span)):
            return Busy(
                request.session,
                RETRY_AFTER_MS,
                f"{request.max_tokens} tokens of KV cache asked for, {self._budget.free_tokens} are free",
            )
        self._session_tally.add(peer_id)
        self._idle.clear()
        return key

    def release(self, peer_id: str, key: int) -> None:
        """Give back what ``reserve`` took."""
        self._budget.release(key)
        self._session_tally.remove(peer_id)
        if not len(self._session_tally):
            self._idle.set()
