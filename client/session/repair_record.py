"""From when a route broke until tokens came again: what was lost, why, and what it has cost whom."""

from __future__ import annotations

from time import perf_counter

from ...swarm.codecs.activations import payload_bytes
from ..hops.route_session import RouteSession
from ..hops.trace import Repair, RepairKind
from .repair import Mending


class Incident:
    """``acked``: tokens that the broken route had computed. ``began`` on perf_counter."""

    def __init__(self, acked: int, began: float | None = None) -> None:
        self.began = perf_counter() if began is None else began
        self.acked = acked
        self.reopened = False
        self.lost: list[str] = []
        self._causes: list[str] = []
        self._tokens = self._node_bytes = self._client_bytes = 0

    def note(self, report: Mending) -> None:
        self.lost.extend(report.lost)
        self._causes.extend(report.causes)
        self._tokens += report.fed.tokens
        self._node_bytes += report.fed.node_bytes
        self._client_bytes += report.fed.client_bytes

    def feed_again(self, session: RouteSession, held: int) -> None:
        """A new route is about to be fed what the old one had computed."""
        tokens = max(0, self.acked - held)
        hidden = session.settings.session.hidden_size
        self._tokens += tokens * len(session.hops)
        for number, hop in enumerate(session.hops):
            size = payload_bytes(hop.codec, tokens, hidden)
            if not hop.upstream:  # from this client: what a hop before it sent, if any, came here first
                self._client_bytes += size
            if number:
                self._node_bytes += size

    def closed(self, kind: RepairKind | None = None) -> Repair:
        if kind is None:
            kind = "reopen" if self.reopened else "replay" if self.lost else "relay"
        return Repair(
            kind,
            tuple(dict.fromkeys(self.lost)),
            self._causes[0] if self._causes else "",
            perf_counter() - self.began,
            self._tokens,
            self._node_bytes,
            self._client_bytes,
        )
