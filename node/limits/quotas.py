"""What one peer uses of a node, and what it may use. Plain ints by authenticated peer id."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ...swarm.errors import LocalProtocolError, UsageError
from ...swarm.fairness.recent import RecentEvents
from ...swarm.fairness.shares import Holder, ShareLimits, Shares


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a node; times in seconds.

    ``dials_per_peer`` under way, and ``dials_per_minute_per_peer`` begun: to next hops, for a client;
    ``dials_per_minute_per_group``: for all clients of one address group; ``dials`` under way for all of them.
    ``link_seconds``: for one of them, from dial to WELCOME.

    ``line_bytes_per_s``: what a person limits the node's line to.
    ``kv_share_per_peer``: the part of the KV cache that one peer may ever hold. ``queued_tokens_per_peer``
    and ``queued_bytes_per_peer``: of steps without an answer, over all streams of a peer; above, they are not
    read. ``queued_bytes``: of all peers; above, no peer is read that has more than an equal part.
    ``work_per_second`` and ``work_at_once``: what one peer may ask beside steps, in units of a PING; above,
    it is read more slowly. ``rest_seconds``: after this time a session that is hardly used counts as idle,
    and is dropped where a peer that holds less than its share finds no room.
    """

    max_sessions: int = 256
    max_sessions_per_peer: int = 64
    max_connections: int = 1024
    max_connections_per_peer: int = 32
    max_step_tokens: int = 512
    kv_share_per_peer: float = 1.0
    queued_tokens_per_peer: int = 128 * 1024
    queued_bytes_per_peer: int = 64 * 1024 * 1024
    queued_bytes: int = 256 * 1024 * 1024
    work_per_second: float = 1000.0
    work_at_once: float = 2000.0
    dials: int = 32
    dials_per_peer: int = 4
    dials_per_minute_per_peer: int = 60
    dials_per_minute_per_group: int = 240
    link_seconds: float = 3.0
    line_bytes_per_s: float = math.inf
    hello_seconds: float = 10.0
    rest_seconds: float = 10.0
    idle_session_seconds: float = 600.0
    idle_connection_seconds: float = 120.0
    farewell_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} {getattr(self, name)} must be more than 0")
        if self.kv_share_per_peer > 1:
            raise UsageError(f"kv_share_per_peer {self.kv_share_per_peer} is more than all of the cache")


FED_FACTOR = 4
"""How far beyond its limits a client's steps are taken from another hop: that hop's stream serves others too,
so it cannot be left unread."""


class WorkRate:
    """What a peer makes the event loop do, in units of a PING: a number a second, and ``burst`` at once."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = self._left = burst
        self._since = 0.0

    def spend(self, units: float, now: float) -> float:
        """Seconds in which the peer is not to be read, for what it has asked."""
        self._left = min(self._burst, self._left + (now - self._since) * self._per_s) - units
        self._since = now
        return max(0.0, -self._left / self._per_s)


class PeerAccount:
    """One peer's use of the node, over all its streams.

    ``holder``: its id, and the address group of its first stream. ``kv_cells`` are (token, block) pairs
    reserved. ``room`` is set while its steps may be read. Bytes are queued until they are computed, and again
    while what was computed waits for a slow next hop or for a client that does not read.
    """

    __slots__ = (
        "connections",
        "holder",
        "kv_cells",
        "queued_bytes",
        "queued_tokens",
        "room",
        "sessions",
        "work",
    )

    def __init__(self, holder: Holder, work: WorkRate) -> None:
        self.holder = holder
        self.work = work
        self.connections = 0
        self.sessions = 0
        self.kv_cells = 0
        self.queued_tokens = 0
        self.queued_bytes = 0
        self.room = asyncio.Event()
        self.room.set()

    @property
    def peer_id(self) -> str:
        return self.holder.peer_id

    @property
    def is_empty(self) -> bool:
        return not (self.connections or self.sessions or self.queued_tokens or self.queued_bytes)


class Ledger:
    """The accounts of all peers that are connected or still hold something, and their sums."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._accounts: dict[str, PeerAccount] = {}
        self._streams = Shares(ShareLimits(limits.max_connections, per_peer=limits.max_connections_per_peer))
        self._waiting: set[PeerAccount] = set()  # have no room
        self.sessions = 0
        self.kv_cells = 0
        self.queued_bytes = 0

    def __len__(self) -> int:
        return len(self._accounts)

    @property
    def connections(self) -> int:
        """Streams of all peers."""
        return int(self._streams.held)

    def holders(self) -> list[PeerAccount]:
        """Peers that hold sessions."""
        return [account for account in self._accounts.values() if account.sessions]

    def connect(self, holder: Holder) -> PeerAccount | str:
        """Count a stream of the peer; or, with nothing counted, say which limit it is beyond."""
        account = self._accounts.get(holder.peer_id)
        if why := self._streams.take(holder if account is None else account.holder):
            return why
        if account is None:
            account = self._accounts[holder.peer_id] = PeerAccount(
                holder, WorkRate(self._limits.work_per_second, self._limits.work_at_once)
            )
        account.connections += 1
        return account

    def stream_to_close(self, holder: Holder, may_lose: Callable[[Holder], bool]) -> Holder | None:
        """The peer that must give a stream up so that this one can have it; None: it has to wait, or has
        enough."""
        account = self._accounts.get(holder.peer_id)
        if account is not None and account.connections >= self._limits.max_connections_per_peer:
            return None
        return self._streams.loser(holder if account is None else account.holder, 1, may_lose)

    def disconnect(self, account: PeerAccount) -> None:
        self._check(account.connections >= 1, "a stream that was not counted")
        account.connections -= 1
        self._streams.give_back(account.holder)
        self._forget_empty(account)

    def take(self, account: PeerAccount, kv_cells: int) -> None:
        """Count a session with its reservation."""
        account.sessions += 1
        account.kv_cells += kv_cells
        self.sessions += 1
        self.kv_cells += kv_cells

    def give_back(self, account: PeerAccount, kv_cells: int) -> None:
        """The session is gone, and its memory free."""
        self._check(account.sessions >= 1 and account.kv_cells >= kv_cells, "a session that was not counted")
        account.sessions -= 1
        account.kv_cells -= kv_cells
        self.sessions -= 1
        self.kv_cells -= kv_cells
        self._forget_empty(account)

    def queue(self, account: PeerAccount, tokens: int, size: int) -> None:
        """A step waits for the engine with a payload of ``size`` bytes."""
        account.queued_tokens += tokens
        account.queued_bytes += size
        self.queued_bytes += size
        if self._is_over(account):
            account.room.clear()
            self._waiting.add(account)

    def unqueue(self, account: PeerAccount, tokens: int, size: int) -> None:
        """The step has an outcome."""
        self._check(account.queued_tokens >= tokens and account.queued_bytes >= size, "a step not counted")
        account.queued_tokens -= tokens
        account.queued_bytes -= size
        self.queued_bytes -= size
        if self._waiting:
            for waiting in [each for each in self._waiting if not self._is_over(each)]:
                self._waiting.discard(waiting)
                waiting.room.set()
        self._forget_empty(account)

    def is_beyond(self, account: PeerAccount) -> bool:
        """Whether not even another hop's steps for it may be taken."""
        return not account.room.is_set() and self._is_over(account, FED_FACTOR)

    def _is_over(self, account: PeerAccount, factor: int = 1) -> bool:
        limits = self._limits
        if (
            account.queued_tokens > factor * limits.queued_tokens_per_peer
            or account.queued_bytes > factor * limits.queued_bytes_per_peer
        ):
            return True
        return self.queued_bytes > limits.queued_bytes and account.queued_bytes > self._part(account)

    def _part(self, account: PeerAccount) -> float:
        """Bytes of an equal part of what may wait: among address groups, then among the peers of one."""
        groups = Counter(each.holder.group for each in self._accounts.values() if each.queued_bytes)
        return self._limits.queued_bytes / max(1, len(groups)) / max(1, groups[account.holder.group])

    def _forget_empty(self, account: PeerAccount) -> None:
        if account.is_empty:
            self._accounts.pop(account.peer_id, None)

    @staticmethod
    def _check(fits: bool, what: str) -> None:
        if not fits:
            raise LocalProtocolError(f"the quotas are asked to take back {what}")


MINUTE_S = 60.0
MAX_CLIENTS = 4096
"""Clients, and address groups, whose dials of the last minute are remembered."""


class DialQuota:
    """Dials to next hops: under way, of all and of each client, and begun within a minute."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._under_way = Shares(ShareLimits(limits.dials, per_peer=limits.dials_per_peer))
        self._of_peer = RecentEvents(MINUTE_S, MAX_CLIENTS)
        self._of_group = RecentEvents(MINUTE_S, MAX_CLIENTS)

    def refusal(self, client: Holder, now: float) -> str:
        """Which limit of its own one more dial of the client would be beyond; "" if none."""
        limits = self._limits
        if self._of_peer.count(client.peer_id, now) >= limits.dials_per_minute_per_peer:
            return f"a peer may cause {limits.dials_per_minute_per_peer} dials a minute"
        if self._of_group.count(client.group, now) >= limits.dials_per_minute_per_group:
            return f"the peers of one network may cause {limits.dials_per_minute_per_group} dials a minute"
        if self._under_way.of_peer(client) >= limits.dials_per_peer:
            return f"{limits.dials_per_peer} dials of yours are under way"
        return ""

    def begin(self, client: Holder, now: float) -> str:
        """Count one more; or, with nothing counted, say why not."""
        if problem := self.refusal(client, now):
            return problem
        if self._under_way.take(client):
            return f"{self._limits.dials} dials are under way"
        self._of_peer.add(client.peer_id, now)
        self._of_group.add(client.group, now)
        return ""

    def end(self, client: Holder) -> None:
        self._under_way.give_back(client)

    def loser(self, client: Holder, now: float) -> Holder | None:
        """Whose dial is to end so that this client can have one, while too many are under way."""
        if self._under_way.held < self._limits.dials or self.refusal(client, now):
            return None
        return self._under_way.loser(client)
