"""A router of a fake swarm, with time that passes only in its sleeps."""

from __future__ import annotations

from swarm_node.client.routing.route_finder import Need
from swarm_node.client.routing.router import Router
from swarm_node.swarm.errors import HopFailedError, StreamClosedError, SwarmError
from tests.doubles.fake_swarm import FakeSwarm

NEED = Need(kv_tokens=100, prompt_tokens=10, new_tokens=10)


class Clock:
    """Time that passes only in ``sleep``; ``at`` runs something when its time has come."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.events: list[tuple[float, object]] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        due = [event for at, event in self.events if at <= self.time]
        self.events = [(at, event) for at, event in self.events if at > self.time]
        for event in due:
            event()  # type: ignore[operator]


async def clocked_swarm(**spans: str) -> tuple[FakeSwarm, Router, Clock]:
    swarm, clock = await FakeSwarm(**spans).start(), Clock()
    return swarm, swarm.router(clock=clock.now, sleep=clock.sleep), clock


def hops(planned: object) -> list[tuple[str, str]]:
    return [(hop.peer_id, str(hop.span)) for hop in planned.route.hops]  # type: ignore[attr-defined]


def failure(peer_id: str, cause: SwarmError | None = None) -> HopFailedError:
    return HopFailedError(peer_id, cause or StreamClosedError(f"{peer_id} closed the stream"))
