"""Who may take how much KV cache, who must give some back, and when there will be more. No clock, no memory.

While there is room, a peer may hold all of the cache (up to the node's ``kv_share_per_peer``). Once somebody
finds none, the cache is divided: for WANT_SECONDS from then nobody may grow beyond an equal share among those
who hold or want some, and sessions that rest are taken from those who are beyond it. A peer's first session
is always within its share, so no share is too small to work with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..swarm.errors import UsageError

WANT_SECONDS = 30.0
"""How long a peer that found no room counts as waiting: it was told to be back before."""
MAX_WANTING = 256
"""Peers remembered as waiting; identities cost nothing, so there must be an end."""
MIN_RETRY_S, MAX_RETRY_S = 0.05, 30.0
"""Bounds of the advice in BUSY: a round trip of a far peer, and WANT_SECONDS."""
FIRST_LIFETIME_S = 2.0
"""How long sessions last before the first one has ended: a short answer."""
NO_BOUND = 2**62
"""More cells than there can be."""
_LIFETIME_WEIGHT = 0.2
"""Of the newest session in the mean lifetime: a change of habits shows after some five sessions."""


@dataclass(frozen=True, slots=True)
class Resting:
    """A session without a step under way: whose, its reservation, and when it was last used."""

    peer_id: str
    kv_cells: int
    last_used: float


class Admission:
    """Decides for one cache of ``total_cells`` (token, block) pairs. Times are seconds of any one clock."""

    def __init__(self, total_cells: int, kv_share_per_peer: float = 1.0) -> None:
        if total_cells < 1 or not 0 < kv_share_per_peer <= 1:
            raise UsageError(f"{total_cells} cells and a share of {kv_share_per_peer} cannot be divided")
        self.total_cells = total_cells
        # Shared pages count for every session that has them: what is counted may exceed the whole cache.
        whole = kv_share_per_peer == 1
        self.most_cells = NO_BOUND if whole else max(1, int(total_cells * kv_share_per_peer))
        """What one peer may ever hold."""
        self._lifetime_s = FIRST_LIFETIME_S
        self._any_ended = False
        self._wanting: dict[str, tuple[float, int]] = {}  # peer: (until when, cells)

    def equal_share(self, holders: Iterable[str], now: float) -> int:
        """Cells for each peer that holds or wants some."""
        self._forget_wanting(now)
        peers = self._wanting.keys() | set(holders)
        return min(self.most_cells, self.total_cells // max(1, len(peers)))

    def allowance(self, peer_id: str, held: Mapping[str, int], now: float) -> int:
        """Cells that the peer may hold in all now; ``held`` has those of every peer that holds any."""
        self._forget_wanting(now)
        if not (self._wanting.keys() - {peer_id}) or not held.get(peer_id):
            return self.most_cells
        return self.equal_share(held.keys() | {peer_id}, now)

    def want(self, peer_id: str, cells: int, now: float) -> None:
        """The peer found no room for ``cells``."""
        self._forget_wanting(now)
        if peer_id not in self._wanting and len(self._wanting) >= MAX_WANTING:
            del self._wanting[next(iter(self._wanting))]
        self._wanting[peer_id] = (now + WANT_SECONDS, cells)

    def satisfied(self, peer_id: str) -> None:
        """The peer got its room, or left."""
        self._wanting.pop(peer_id, None)

    def ended(self, seconds: float) -> None:
        """A session ended after so long."""
        weight = _LIFETIME_WEIGHT if self._any_ended else 1.0
        self._any_ended = True
        self._lifetime_s += weight * (max(0.0, seconds) - self._lifetime_s)

    def ahead_of(self, peer_id: str, now: float) -> int:
        """Cells that other peers wait for."""
        self._forget_wanting(now)
        return sum(cells for peer, (_, cells) in self._wanting.items() if peer != peer_id)

    def retry_after_s(self, missing: int, in_use: int) -> float:
        """When ``missing`` of the ``in_use`` cells (or sessions) should be free again.

        Sessions last their usual time, so ``in_use`` / lifetime of them become free a second.
        """
        expected = self._lifetime_s * missing / max(1, in_use)
        return min(MAX_RETRY_S, max(MIN_RETRY_S, expected))

    def to_reclaim(
        self,
        peer_id: str,
        missing: int,
        resting: Sequence[Resting],
        held: Mapping[str, int],
        now: float,
    ) -> list[int]:
        """Which of ``resting`` to drop so that ``peer_id`` finds ``missing`` cells: indices, longest unused
        first.

        Only of other peers beyond their equal share, and none falls below it except by its last drop. Empty
        when that would not be enough.
        """
        share = self.equal_share(held.keys() | {peer_id}, now)
        left = dict(held)
        chosen: list[int] = []
        for index in sorted(range(len(resting)), key=lambda i: (resting[i].last_used, i)):
            if missing <= 0:
                break
            session = resting[index]
            if session.peer_id != peer_id and left.get(session.peer_id, 0) > share:
                left[session.peer_id] -= session.kv_cells
                missing -= session.kv_cells
                chosen.append(index)
        return chosen if missing <= 0 else []

    def _forget_wanting(self, now: float) -> None:
        for peer_id in [peer for peer, (until, _) in self._wanting.items() if until <= now]:
            del self._wanting[peer_id]
