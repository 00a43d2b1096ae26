"""Which of many announced nodes, of several models, are there and serve what they announce. They are asked
once, side by side and within bounds, since false records cost nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

from ..errors import PeerError, PeerSparedError, SwarmError
from ..links.pool import LinkPool
from ..membership.transport import MembersTransport
from ..runtime.tasks import cancel_all
from ..transport.address_groups import UNKNOWN, groups_of
from ..transport.dial_guard import DialGuard
from ..transport.interface import Transport
from ..types import ModelRef, NodeInfo, NodeState

MOST_ASKED = 192
"""At most this many nodes are dialled, of all models together."""
AT_ONCE = 32
ANSWER_S = 3.0
"""Seconds for one node to be dialled and to answer HELLO."""
ALL_S = 8.0
"""Seconds for all of them: the longest that a name with several models waits."""


@dataclass(frozen=True, slots=True)
class Answers:
    """``came_from``: of those that serve what they announce, by peer id, the address where they answered.
    ``here``: those, and those that answered that they do not serve yet. ``asked``: all nodes that had the
    time to answer."""

    came_from: dict[str, str] = field(default_factory=dict)
    here: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)


class Witnesses:
    """``transport``: this process's. ``members``: whether every peer in its swarm was let in by a member."""

    def __init__(self, transport: Transport, *, rng: random.Random | None = None) -> None:
        self.members = isinstance(transport, MembersTransport) and transport.is_keyed
        self._transport = transport
        self._random = rng or random.SystemRandom()

    async def ask(self, nodes: Sequence[NodeInfo]) -> Answers:
        """Ask as many of the nodes as the bounds allow, of every network in turn."""
        answers = Answers()
        by_model: dict[ModelRef, list[NodeInfo]] = {}
        for node in nodes:
            if node.peer_id != self._transport.peer_id:
                by_model.setdefault(node.model, []).append(node)
        guard = DialGuard(for_client=True)
        pools = {
            model: LinkPool(self._transport, model, agent="swarm-node", guard=guard) for model in by_model
        }
        slots = asyncio.Semaphore(AT_ONCE)

        async def ask(node: NodeInfo) -> None:
            async with slots:
                await _ask(pools[node.model], node, answers)

        known = [node for of_model in by_model.values() for node in of_model]
        tasks = [asyncio.create_task(ask(node)) for node in self._in_turn(known)[:MOST_ASKED]]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=ALL_S)
        finally:
            await cancel_all(tasks)
            await asyncio.gather(*(pool.close() for pool in pools.values()))
        for task in tasks:
            if not task.cancelled() and (fault := task.exception()) is not None:
                raise fault
        return answers

    def _in_turn(self, nodes: Iterable[NodeInfo]) -> list[NodeInfo]:
        """One of each network that they name, by chance, then the next of each, of another model if there is
        one. A network that announces a hundred models has one turn in each round."""
        groups: dict[str, dict[ModelRef, list[NodeInfo]]] = {}
        for node in self._random.sample(found := list(nodes), len(found)):
            group = groups.setdefault(min(groups_of(node.maddrs), default=UNKNOWN), {})
            group.setdefault(node.model, []).append(node)
        return _dealt([_dealt(list(by_model.values())) for by_model in groups.values()])


def _dealt(queues: Sequence[Sequence[NodeInfo]]) -> list[NodeInfo]:
    """The first of each, then the second of each, and so on."""
    return [node for node in chain.from_iterable(zip_longest(*queues)) if node is not None]


async def _ask(pool: LinkPool, node: NodeInfo, answers: Answers) -> None:
    try:
        async with asyncio.timeout(ANSWER_S):
            link = await pool.get(node.peer_id, node.dial_maddrs)
            await asyncio.shield(link.welcome)
    except PeerSparedError:
        return  # no node was asked
    except PeerError:
        if node.state is not NodeState.ONLINE:  # as it must: it does not serve yet
            answers.here.add(node.peer_id)
    except (SwarmError, TimeoutError):
        pass
    else:
        answers.came_from[node.peer_id] = link.remote_maddr
        answers.here.add(node.peer_id)
    answers.asked.add(node.peer_id)
