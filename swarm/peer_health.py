"""Which peers failed lately, and until when to keep away from each.

A pure ledger: it has no clock, every call brings ``now`` (seconds on any monotonic clock). Each failure in
a row doubles the ban, one success forgives all of them, and a peer that has been quiet for long starts
afresh.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .errors import UsageError

FIRST_BAN_S = 2.0
"""Seconds of the ban after one failure: long enough to route around a restart, short enough to notice that
the peer is back."""
LONGEST_BAN_S = 300.0
"""Seconds of the longest ban: a peer that always fails costs one attempt in five minutes."""
FORGET_AFTER_S = 1800.0
"""Failures older than this many seconds say nothing about a peer any more."""
MAX_PEERS = 4096
"""At most this many peers are remembered. Above it the one whose ban ends first is forgotten."""
_MAX_DOUBLINGS = 64


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """What is held against a peer. ``failures`` are those in a row; times are on the caller's clock."""

    failures: int
    last_failure: float
    banned_until: float
    reason: str = ""


class PeerHealth:
    """Failures and bans of the peers that a client knows. Not thread-safe: one owner."""

    def __init__(
        self,
        *,
        first_ban_s: float = FIRST_BAN_S,
        longest_ban_s: float = LONGEST_BAN_S,
        forget_after_s: float = FORGET_AFTER_S,
        max_peers: int = MAX_PEERS,
    ) -> None:
        if not 0 < first_ban_s <= longest_ban_s <= forget_after_s or max_peers < 1:
            raise UsageError(
                "bans need 0 < first ban <= longest ban <= time to forget, and room for one peer"
            )
        self._first_ban_s = first_ban_s
        self._longest_ban_s = longest_ban_s
        self._forget_after_s = forget_after_s
        self._max_peers = max_peers
        self._records: dict[str, PeerRecord] = {}

    def failed(self, peer_id: str, now: float, reason: str = "") -> float:
        """Note a failure; returns until when the peer is banned."""
        earlier = self._current(peer_id, now)
        failures = 1 + (earlier.failures if earlier else 0)
        ban_s = min(self._longest_ban_s, self._first_ban_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
        until = max(now + ban_s, earlier.banned_until if earlier else now)
        self._put(peer_id, PeerRecord(failures, now, until, reason))
        return until

    def ban(self, peer_id: str, now: float, seconds: float, reason: str = "") -> float:
        """Keep away for at least ``seconds``, with any count of failures (a peer that lied, or asked for a
        pause)."""
        if not seconds > 0:
            raise UsageError(f"a ban must last more than 0 seconds, not {seconds}")
        earlier = self._current(peer_id, now)
        until = max(now + seconds, earlier.banned_until if earlier else now)
        self._put(peer_id, PeerRecord(earlier.failures if earlier else 0, now, until, reason))
        return until

    def succeeded(self, peer_id: str) -> None:
        """The peer answered rightly: forgive it everything."""
        self._records.pop(peer_id, None)

    def release(self, peer_id: str, now: float) -> None:
        """End the peer's ban, but remember its failures: it deserves another try, not yet trust."""
        record = self._records.get(peer_id)
        if record is not None and now < record.banned_until:
            self._records[peer_id] = replace(record, banned_until=now)

    def is_banned(self, peer_id: str, now: float) -> bool:
        record = self._records.get(peer_id)
        return record is not None and now < record.banned_until

    def banned(self, now: float) -> frozenset[str]:
        """Every peer to keep away from at ``now``."""
        return frozenset(peer_id for peer_id, record in self._records.items() if now < record.banned_until)

    def next_release(self, now: float) -> float | None:
        """When the next ban ends, None if there is none. A wait for a route makes sense until then."""
        return min((r.banned_until for r in self._records.values() if now < r.banned_until), default=None)

    def statistics(self) -> dict[str, PeerRecord]:
        """A copy of all records, for traces and people."""
        return dict(self._records)

    def _current(self, peer_id: str, now: float) -> PeerRecord | None:
        """The record, unless it is so old that it counts no more."""
        record = self._records.get(peer_id)
        if record is None or now - max(record.last_failure, record.banned_until) > self._forget_after_s:
            return None
        return record

    def _put(self, peer_id: str, record: PeerRecord) -> None:
        self._records[peer_id] = record
        if len(self._records) > self._max_peers:
            others = (other for other in self._records if other != peer_id)
            del self._records[min(others, key=lambda other: (self._records[other].banned_until, other))]
