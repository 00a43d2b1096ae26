"""Which of the announced nodes live: a record outlives a node that was killed by up to a minute.

Only a node that answered this one before and refuses now counts as dead, and only after it was asked twice:
that it cannot be dialled from here alone says nothing of what others can.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from ..swarm.errors import SwarmError
from ..swarm.faults import Faults
from ..swarm.types import NodeInfo, NodeState
from .link_probe import Links

log = logging.getLogger(__name__)

PING_TIMEOUT_S = 3.0
FAILURES = 2
"""In a row, one a look, after which a node that answered before is dead."""
MOST_PINGED = 32
"""Nodes asked in one look, in a larger swarm those of a random sample."""
MOST_MET = 1024
"""Nodes remembered to have answered; above it the first are forgotten."""


class Liveness:
    """``observed(peer_id, rtt_s)`` is told each round trip. For one caller at a time."""

    def __init__(
        self, links: Links, observed: Callable[[str, float], None], *, rng: random.Random | None = None
    ) -> None:
        self._links = links
        self._observed = observed
        self._random = rng or random.Random()
        self._faults = Faults("asking who lives")
        self._failures: dict[str, int] = {}  # of nodes that have answered, in a row

    async def living(self, nodes: Sequence[NodeInfo], own: str) -> list[NodeInfo]:
        """``nodes`` without the dead. Asks those that should answer, all at once."""
        serving = [node for node in nodes if node.peer_id != own and node.state is not NodeState.JOINING]
        if len(serving) > MOST_PINGED:
            serving = self._random.sample(serving, MOST_PINGED)
        async with asyncio.TaskGroup() as tasks:
            for node in serving:
                tasks.create_task(self._ask_safely(node))
        return [node for node in nodes if not self._is_dead(node)]

    def _is_dead(self, node: NodeInfo) -> bool:
        return node.state is not NodeState.JOINING and self._failures.get(node.peer_id, 0) >= FAILURES

    async def _ask_safely(self, node: NodeInfo) -> None:
        with self._faults.survived():
            await self._ask(node)

    async def _ask(self, node: NodeInfo) -> None:
        peer_id = node.peer_id
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                link = await self._links.get(peer_id, node.maddrs)
                rtt_s = await link.ping()
        except (SwarmError, TimeoutError) as error:
            if peer_id in self._failures:
                self._failures[peer_id] += 1
                if self._failures[peer_id] == FAILURES:
                    log.info("event=peer_dead peer=%s error=%r", peer_id, str(error))
            return
        self._failures.pop(peer_id, None)
        self._failures[peer_id] = 0
        if len(self._failures) > MOST_MET:
            del self._failures[next(iter(self._failures))]
        self._observed(peer_id, rtt_s)
