"""From a route's break until tokens came again: what was lost, why, and what it has cost each side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...swarm.errors import SwarmError, reason_of
from ..hops.route_session import RouteSession
from ..hops.trace import Repair, RepairKind


@dataclass(slots=True)
class ReplayCost:
    """What was computed once more, and which side sent the activations for it."""

    tokens: int = 0
    node_bytes: int = 0
    client_bytes: int = 0

    def by_nodes(self, tokens: int, size: int) -> None:
        self.tokens += tokens
        self.node_bytes += size

    def by_client(self, tokens: int, size: int) -> None:
        self.tokens += tokens
        self.client_bytes += size


class RepairRecord:
    """``acked``: tokens that the broken route had computed. ``began``: when it broke, on ``clock``. ``lost``:
    peer ids of hops that were replaced."""

    def __init__(self, acked: int, clock: Callable[[], float]) -> None:
        self.began = clock()
        self._clock = clock
        self.acked = acked
        self.lost: list[str] = []
        self.cost = ReplayCost()
        self._causes: list[SwarmError] = []
        self._reopened = self._went_back = False

    def hop_lost(self, peer_id: str, cause: SwarmError) -> None:
        self.lost.append(peer_id)
        self._causes.append(cause)

    def edge_lost(self, cause: SwarmError) -> None:
        self._causes.append(cause)

    def went_back(self, cause: SwarmError) -> None:
        """A hop kept its session, and was fed the end of it again."""
        self._went_back = True
        self._causes.append(cause)

    def reached(self, acked: int) -> None:
        """The route had computed ``acked`` tokens before it broke once more."""
        self.acked = max(self.acked, acked)

    def reopen(self, lost: str | None) -> None:
        """Nothing of the route was kept. ``lost``: the hop to blame, if one is."""
        self._reopened = True
        if lost is not None:
            self.lost.append(lost)

    def feed_again(self, session: RouteSession, held: int) -> None:
        """A new route is about to be fed what the old one had computed."""
        tokens = max(0, self.acked - held)
        self.cost.by_nodes(tokens * len(session.hops), 0)
        for number, hop in enumerate(session.hops):
            size = hop.codec.payload_bytes(tokens, hop.width)
            if not hop.upstream:  # from this client: what a hop before it sent, if any, came here first
                self.cost.by_client(0, size)
            if number:
                self.cost.by_nodes(0, size)

    def closed(self, kind: RepairKind | None = None) -> Repair:
        if kind is None:
            kind = "reopen" if self._reopened else "replay" if self.lost or self._went_back else "relay"
        cause = self._causes[0] if self._causes else None
        return Repair(
            kind,
            tuple(dict.fromkeys(self.lost)),
            cause.message if cause is not None else "",
            self._clock() - self.began,
            self.cost.tokens,
            self.cost.node_bytes,
            self.cost.client_bytes,
            reason_of(cause) if cause is not None else "",
        )
