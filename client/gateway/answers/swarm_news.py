"""What happens in the swarm while an answer is made, for readers that asked to be told.

Each is told once, under its key: ``queued`` (true: the answer waits for its turn at the gateway),
``forgotten`` (how many of the oldest messages the context had no room for), ``waiting`` (for what, told anew
as its seconds run down; null: it goes on), ``route`` (its hops), ``repaired`` (a list, one for each repair of
the route), and with the last token ``timings``.
"""

from __future__ import annotations

from typing import Any

from ....swarm.types import Route
from ...generation import Generation
from ...hops.trace import repair_sentence
from ...routing.route_wait import Waiting
from .generations import Answering


class SwarmNews:
    """Of an answer's first choice."""

    def __init__(self, answering: Answering, forgotten: int) -> None:
        self._answering = answering
        self._forgotten = forgotten
        self._queued = False
        self._waiting: Waiting | None = None
        self._route: Route | None = None
        self._repairs = 0

    def take(self, result: Generation | None = None) -> dict[str, Any]:
        """What was not told yet; nothing, mostly. ``result``: of the choice, with its last token."""
        news: dict[str, Any] = {}
        stream = self._answering.first
        if self._forgotten:
            news["forgotten"], self._forgotten = self._forgotten, 0
        if stream is None:
            if not self._queued:
                news["queued"] = self._queued = True
            return news
        if stream.waiting is not self._waiting:
            self._waiting = stream.waiting
            news["waiting"] = None if self._waiting is None else _waiting(self._waiting)
        route, repairs = stream.route, stream.repaired
        if len(repairs) > self._repairs:
            news["repaired"] = [
                {**repair.as_dict(), "text": repair_sentence(repair, self._route, route)[0]}
                for repair in repairs[self._repairs :]
            ]
            self._repairs = len(repairs)
        if route is not None and route is not self._route:
            if self._route is None or route.hops != self._route.hops:
                news["route"] = _route(route)
            self._route = route
        if result is not None:
            news["timings"] = result.timings.as_dict()
        return news


def _waiting(waiting: Waiting) -> dict[str, Any]:
    return {
        "text": waiting.text,
        "blocks": [str(span) for span in waiting.missing],
        "seconds_left": round(waiting.seconds_left, 1),
    }


def _route(route: Route) -> list[dict[str, Any]]:
    return [
        {"peer_id": hop.peer_id, "name": hop.name, "blocks": str(hop.span), "n_blocks": len(hop.span)}
        for hop in route.hops
    ]
