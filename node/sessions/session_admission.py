"""Which peer gets a session on this node now, which is told to come back later, and which session ends for
it."""

from __future__ import annotations

from collections.abc import Sequence

from ...swarm.fairness.shares import Holder
from ...swarm.protocol.messages import Busy, Open
from ..engine.engine import Engine
from ..limits.admission import Admission, Holding, Reclaimable
from ..limits.quotas import Ledger, Limits, PeerAccount
from .session import NodeSession


class SessionAdmission:
    """``cells``: see ``SessionMemory``. Times are seconds of the server's clock."""

    def __init__(self, engine: Engine, limits: Limits, ledger: Ledger) -> None:
        self._engine = engine
        self._limits = limits
        self._ledger = ledger
        self._admission = Admission(engine.memory.total_cells, limits.max_sessions, limits.kv_share_per_peer)

    @property
    def most_cells(self) -> int:
        """What one peer may ever hold."""
        return self._admission.most_cells

    @property
    def is_full(self) -> bool:
        """True if there is no place for another session of any size."""
        return self._ledger.sessions >= self._limits.max_sessions

    def satisfied(self, holder: Holder) -> None:
        """The peer got its session, or left."""
        self._admission.satisfied(holder)

    def ended(self, seconds: float) -> None:
        """A session ended after ``seconds``."""
        self._admission.ended(seconds)

    def limit_of(self, request: Open, account: PeerAccount, cells: int, now: float) -> Busy | None:
        """A limit of the peer's own that one more session would be beyond."""
        limits, admission = self._limits, self._admission
        if account.sessions >= limits.max_sessions_per_peer:
            return _busy(
                request,
                admission.retry_after_s(1, account.sessions),
                f"a peer may hold {limits.max_sessions_per_peer} sessions on this node; close some first",
            )
        allowed = admission.allowance(account.holder, self._held(), now)
        if account.sessions >= allowed.places:
            return _busy(
                request,
                admission.retry_after_s(1, account.sessions),
                f"you hold {account.sessions} sessions, but while others wait a peer may hold "
                f"{allowed.places}; close sessions, or use another peer",
            )
        if account.kv_cells + cells <= allowed.cells:
            return None
        memory, span = self._engine.memory, self._engine.model.span
        amounts = (account.kv_cells, cells, allowed.cells)
        tokens = [memory.tokens_of(amount, span) for amount in amounts]
        return _busy(
            request,
            admission.retry_after_s(account.kv_cells + cells - allowed.cells, account.kv_cells),
            f"you hold {tokens[0]} tokens of KV cache and ask for {tokens[1]}, but while others wait a peer "
            f"may hold {tokens[2]}; close sessions, or use another peer",
        )

    def none_left(self, request: Open, account: PeerAccount, cells: int, now: float) -> Busy:
        """There is no room for the session; the peer counts as waiting from now on."""
        ledger, admission = self._ledger, self._admission
        ahead = admission.ahead_of(account.holder, now)
        admission.want(account.holder, cells, now)
        if self.is_full:
            most = self._limits.max_sessions
            text = f"all {most} sessions of this node are taken; use another peer, or wait"
            return _busy(request, admission.retry_after_s(1, ledger.sessions), text)
        memory = self._engine.memory
        free = memory.free_cells
        return _busy(
            request,
            admission.retry_after_s(max(1, cells - free) + ahead, ledger.kv_cells),
            f"{request.max_tokens} tokens of KV cache asked for, {memory.free_tokens(request.span)} are free",
        )

    def losers(
        self, account: PeerAccount, cells: int, sessions: Sequence[NodeSession], now: float
    ) -> list[NodeSession]:
        """Which of all ``sessions`` are to end so that this peer finds room; none if that is not to be."""
        if self._admission.asked_just_now(account.holder, now):
            return []
        rest_s = self._limits.rest_seconds
        reclaimable = [
            Reclaimable(
                each.account.holder,
                each.kv_cells,
                each.usage.tokens_per_s(now),
                each.last_used,
                each.is_active(now, rest_s),
            )
            for each in sessions
        ]
        lacking = cells - self._engine.memory.free_cells
        missing = Holding(lacking if self.is_full else max(1, lacking), int(self.is_full))
        chosen = self._admission.to_reclaim(account.holder, cells, missing, reclaimable, self._held(), now)
        return [sessions[index] for index in chosen]

    def _held(self) -> dict[Holder, Holding]:
        return {each.holder: Holding(each.kv_cells, each.sessions) for each in self._ledger.holders()}


def _busy(request: Open, seconds: float, reason: str) -> Busy:
    return Busy(request.session, round(seconds * 1000), reason)
