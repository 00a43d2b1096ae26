"""Which announced nodes count when blocks are chosen: those that answered.

An announcement is a claim, and costs a stranger nothing. A node that says that it serves, or that it is about
to, is dialled; one that gives no answer fills no hole. If more are announced than can be asked, those come
first whose claims decide: of blocks that no node is known to serve. The others count as more of the same
beside nodes that answered, never in their place.

A node that answers may still never get ready. So one that joins or leaves counts for UNREADY_S only, and a
node that has waited for that time beside a hole (three times as long if it serves) does not wait any more.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...swarm.errors import PeerError, SwarmError
from ...swarm.fairness.recent import RecentMap
from ...swarm.faults import Faults
from ...swarm.peer_health import PeerHealth
from ...swarm.types import NodeInfo, NodeState
from .link_probe import Links

logger = logging.getLogger(__name__)

PING_TIMEOUT_S = 3.0
FAILURES = 2
"""After this many failures in a row, one a look, a node that answered before is dead: one may be a lost
packet."""
MOST_MET = 16
"""One look asks at most this many nodes that have not answered yet."""
MOST_ASKED_AGAIN = 16
"""One look asks at most this many nodes that have answered before; in a larger swarm they are a random
sample."""
MOST_WEIGHED = 256
"""The nodes whose claims decide are sought among at most this many; in a larger swarm they are a random
sample."""
MOST_KNOWN = 1024
"""At most this many nodes are remembered; above it those heard of longest ago are forgotten."""
SERVING_PATIENCE = 3.0
"""A node that serves waits this many times as long beside a hole: it would have to leave its own blocks."""
UNREADY_LOOK_S = 5.0
"""Seconds between questions to a node that has answered that it does not serve yet: each is a dial."""
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
"""A node that never answered is left alone for a time that doubles with each failure, up to this many
seconds."""
UNREADY_S = 60.0
"""A node that answers and serves nothing yet, or nothing any more, counts for this many seconds: longer than
loading from a disk takes. A node that fetches its weights for longer may then find others at its blocks."""


@dataclass(slots=True)
class _Known:
    """``answered``: ever. ``failures``: in a row, since. ``unready_since``: since when it has not served."""

    asked_at: float
    answered: bool = False
    failures: int = 0
    unready_since: float | None = None


class Liveness:
    """``observed(peer_id, rtt_s)`` is told each round trip. ``clock`` in seconds. One caller at a time."""

    def __init__(
        self,
        links: Links,
        observed: Callable[[str, float], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._links = links
        self._observed = observed
        self._clock = clock
        self._random = rng or random.Random()
        self._faults = Faults("asking who lives")
        self._known: RecentMap[str, _Known] = RecentMap(MOST_KNOWN)
        self._silent = PeerHealth(
            first_ban_s=FIRST_PAUSE_S, longest_ban_s=LONGEST_PAUSE_S, forget_after_s=2 * LONGEST_PAUSE_S
        )
        self._whole_at = clock()  # when nodes that answered last served every block, or the first look

    async def living(self, nodes: Sequence[NodeInfo], own: str, *, waits: bool = False) -> list[NodeInfo]:
        """The ``nodes`` that count. Asks some of them, all at once. ``waits``: this node serves nothing and
        waits for a hole."""
        others = [node for node in nodes if node.peer_id != own]
        async with asyncio.TaskGroup() as tasks:
            for node in self._to_ask(others):
                tasks.create_task(self._ask_safely(node))
        now = self._clock()
        served = _blocks(node for node in others if self._serves(node))
        here = _blocks(node for node in nodes if node.peer_id == own and node.state is NodeState.ONLINE)
        if all(block in served or block in here for node in nodes for block in range(node.model.n_blocks)):
            self._whole_at = now
        waited = now - self._whole_at >= UNREADY_S * (1 if waits else SERVING_PATIENCE)
        return [node for node in nodes if node.peer_id == own or self._counts(node, served, waited, now)]

    def answered(self, peer_id: str) -> bool | None:
        """Whether a node did, or else did so a moment ago; None if it was not asked."""
        known = self._known.get(peer_id)
        return None if known is None else known.answered and known.failures < FAILURES

    def _counts(self, node: NodeInfo, served: set[int], waited: bool, now: float) -> bool:
        known = self._known.get(node.peer_id)
        if known is None:  # there are too many to ask all of them
            return node.state is NodeState.ONLINE and served.issuperset(range(node.span.start, node.span.end))
        if not known.answered or known.failures >= FAILURES:
            return False
        if node.state is NodeState.ONLINE:
            return True
        if known.unready_since is None:
            known.unready_since = now
        return not waited and now - known.unready_since < UNREADY_S

    def _serves(self, node: NodeInfo) -> bool:
        return node.state is NodeState.ONLINE and self.answered(node.peer_id) is True

    def _to_ask(self, others: Sequence[NodeInfo]) -> list[NodeInfo]:
        now = self._clock()
        met, new = list[NodeInfo](), list[NodeInfo]()
        for node in others:
            known = self._known.get(node.peer_id)
            if known is None or not known.answered:
                if not self._silent.is_banned(node.peer_id, now):
                    new.append(node)
            elif node.state is NodeState.ONLINE or now - known.asked_at >= UNREADY_LOOK_S:
                met.append(node)
        served = _blocks(node for node in others if self._serves(node))
        again = self._random.sample(met, min(len(met), MOST_ASKED_AGAIN))
        new = self._random.sample(new, min(len(new), MOST_WEIGHED))
        if len(new) <= MOST_MET:
            return again + new
        claims = [0] * max(node.span.end for node in new)  # of those chosen, by block
        chosen: list[NodeInfo] = []
        for _ in range(MOST_MET):
            node = min(
                (node for node in new if node not in chosen),
                key=lambda node: min(
                    claims[block] + MOST_MET * (block in served)
                    for block in range(node.span.start, node.span.end)
                ),
            )
            chosen.append(node)
            for block in range(node.span.start, node.span.end):
                claims[block] += 1
        return again + chosen

    async def _ask_safely(self, node: NodeInfo) -> None:
        with self._faults.survived():
            await self._ask(node)

    async def _ask(self, node: NodeInfo) -> None:
        known = self._known[node.peer_id] = self._known.get(node.peer_id) or _Known(self._clock())
        known.asked_at = self._clock()
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                link = await self._links.get(node.peer_id, node.dial_maddrs)
                rtt_s = await link.ping()
        except PeerError as error:
            if node.state is NodeState.ONLINE:
                self._failed(node, known, str(error))  # it serves nothing, in spite of its announcement
            else:
                known.answered, known.failures = True, 0  # as it must: it does not serve yet
        except (SwarmError, TimeoutError) as error:
            self._failed(node, known, str(error))
        else:
            known.answered, known.failures = True, 0
            if node.state is NodeState.ONLINE:
                known.unready_since = None
            self._silent.succeeded(node.peer_id)
            self._observed(node.peer_id, rtt_s)

    def _failed(self, node: NodeInfo, known: _Known, why: str) -> None:
        known.failures += 1
        if not known.answered:
            self._silent.failed(node.peer_id, self._clock(), why)
        elif known.failures == FAILURES:
            logger.info("event=peer_dead peer=%s error=%r", node.peer_id, why)


def _blocks(nodes: Iterable[NodeInfo]) -> set[int]:
    return {block for node in nodes for block in range(node.span.start, node.span.end)}
