"""Which of the announced nodes answer, asked once: for people that look at a swarm from outside.

Asked as a client asks, at the addresses of each node's own announcement. A process that only looks announces
none, so by a node's rule it would dial no private address, and find such a node only by what others tell,
which may be an old address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from ...swarm.links.dialler import MAX_ANSWER_FRAME
from ...swarm.links.pool import LinkPool
from ...swarm.transport.dial_guard import DialGuard
from ...swarm.transport.interface import Transport
from ...swarm.types import ModelRef, NodeInfo, PeerLink
from .liveness import Liveness
from .presence import AGENT

MODELS_AT_ONCE = 8
"""Models whose nodes are asked side by side: some 100 dials."""


@dataclass(frozen=True, slots=True)
class RollCall:
    """``living``: nodes that count (see ``Liveness``). ``silent``: those that gave no answer from here.
    ``links``: round trips to those that did."""

    living: tuple[NodeInfo, ...] = ()
    silent: tuple[NodeInfo, ...] = ()
    links: tuple[PeerLink, ...] = ()


async def call_roll(
    transport: Transport, model: ModelRef, nodes: Sequence[NodeInfo], guard: DialGuard | None = None
) -> RollCall:
    """Ask nodes of one model; of many, a few whose claims decide. ``guard``: a client's, shared by several
    calls."""
    rtts: dict[str, float] = {}
    guard = guard or DialGuard(for_client=True)
    links = LinkPool(transport, model, agent=AGENT, max_frame=MAX_ANSWER_FRAME, guard=guard)
    liveness = Liveness(links, rtts.__setitem__)
    try:
        living = await liveness.living(nodes, transport.peer_id)
    finally:
        await links.close()
    silent = (node for node in nodes if liveness.answered(node.peer_id) is False)
    measured = (PeerLink(peer_id, rtt_s) for peer_id, rtt_s in sorted(rtts.items()))
    return RollCall(tuple(living), tuple(silent), tuple(measured))


async def silent_nodes(transport: Transport, nodes: Sequence[NodeInfo]) -> frozenset[str]:
    """Peer ids of those, of any model, that gave no answer from here."""
    by_model: dict[ModelRef, list[NodeInfo]] = {}
    for node in nodes:
        by_model.setdefault(node.model, []).append(node)
    slots = asyncio.Semaphore(MODELS_AT_ONCE)
    guard = DialGuard(for_client=True)

    async def call(model: ModelRef, of_model: Sequence[NodeInfo]) -> RollCall:
        async with slots:
            return await call_roll(transport, model, of_model, guard)

    calls = await asyncio.gather(*(call(*each) for each in by_model.items()))
    return frozenset(node.peer_id for found in calls for node in found.silent)
