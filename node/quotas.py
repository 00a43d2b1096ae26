"""What one peer may use of a node. Plain ints: who is counted is the authenticated peer id."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..swarm.errors import UsageError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a node. ``pending_bytes``: payloads of one connection that wait for the engine before its
    reader pauses. Seconds for times."""

    max_sessions: int = 256
    max_sessions_per_peer: int = 64
    max_connections_per_peer: int = 32
    max_step_tokens: int = 512
    pending_bytes: int = 32 * 1024 * 1024
    hello_seconds: float = 10.0
    idle_session_seconds: float = 600.0
    idle_connection_seconds: float = 120.0
    farewell_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} {getattr(self, name)} must be more than 0")


class Tally:
    """Counts by peer against one bound per peer and one for all."""

    __slots__ = ("_by_peer", "_per_peer", "_total")

    def __init__(self, per_peer: int, total: int | None = None) -> None:
        self._per_peer = per_peer
        self._total = total
        self._by_peer: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._by_peer.total()

    def of(self, peer_id: str) -> int:
        return self._by_peer[peer_id]

    def peer_is_full(self, peer_id: str) -> bool:
        return self._by_peer[peer_id] >= self._per_peer

    def is_full(self) -> bool:
        return self._total is not None and len(self) >= self._total

    def add(self, peer_id: str) -> None:
        self._by_peer[peer_id] += 1

    def remove(self, peer_id: str) -> None:
        if self._by_peer[peer_id] <= 1:
            del self._by_peer[peer_id]
        else:
            self._by_peer[peer_id] -= 1
