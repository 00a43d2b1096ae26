"""Which client may make this node dial. Pure: ``now`` in seconds. Clients are counted by their authenticated
peer ids."""

from __future__ import annotations

from ...swarm.fairness.recent import RecentEvents
from ...swarm.fairness.shares import Holder, ShareLimits, Shares
from .quotas import Limits

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
