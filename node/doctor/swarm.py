"""The swarm as a client sees it: who is found, what the directory says, whether the clocks agree."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from ...dht.directory import TTL_S
from ...dht.joining.client import join_as_client
from ...swarm.errors import NetworkError, NotAdmittedError
from ...swarm.membership.entry import SwarmEntry
from ...swarm.names import told_apart
from ...swarm.naming.announced import by_model, model_of
from ...swarm.routing.best_route import missing_blocks
from ...swarm.types import NodeInfo, NodeState
from .finding import Finding, Health

CLOCK_S = 20.0
"""A clock that is this many seconds apart from the others' makes announcements end early, or be refused."""
MOST_MODELS = 16
"""Models that lack blocks are named up to this number, those with the most nodes first: strangers may
announce any number of them."""


async def look_at_swarm(entry: SwarmEntry) -> Sequence[Finding]:
    named = bool(entry.initial_peers or entry.may_meet)
    if entry.is_alone:
        return [Finding("swarm", Health.UNKNOWN, "no address was given, and mDNS shall not look for one")]
    try:
        network = await join_as_client(entry)
    except NotAdmittedError as error:
        advice = "Ask for a new invite: whoever has the swarm's key runs `swarm-node invite`."
        return [Finding("swarm", Health.FAIL, "it does not admit us", advice, {"error": error.message})]
    except NetworkError as error:
        details = {"error": error.message}
        if named:
            advice = "Check that the address is right, and that a node runs there."
            return [
                Finding(
                    "swarm", Health.FAIL, "no peer answers at the address that was given", advice, details
                )
            ]
        advice = "If there is one, give its address: swarm-node doctor --initial-peers ADDR"
        return [Finding("swarm", Health.UNKNOWN, "mDNS found none on this network", advice, details)]
    try:
        nodes = list(await network.directory.all_nodes())
        left_out, is_alone = network.directory.left_out, network.directory.is_alone
    finally:
        await network.close()
    found = [_directory(nodes, is_alone=is_alone, left_out=len(left_out)), clock_of(nodes, time.time())]
    return [*found, *models_of(nodes)]


def _directory(nodes: Sequence[NodeInfo], *, is_alone: bool, left_out: int) -> Finding:
    says = f"{len(nodes)} nodes are announced" if len(nodes) != 1 else "1 node is announced"
    if left_out:
        says += f"; {left_out} more announce what cannot be used"
    if is_alone:
        advice = "Ask again in a minute, or by way of another peer."
        return Finding("swarm", Health.WARN, f"{says}; the peers that were asked reach no other", advice)
    return Finding("swarm", Health.WARN if left_out else Health.OK, says)


def clock_of(nodes: Sequence[NodeInfo], now: float) -> Finding:
    """``now``: seconds of Unix time. A fresh announcement ends TTL_S after its node's own time."""
    ends = [node.record.expiration for node in nodes if node.record is not None]
    if not ends:
        return Finding("clock", Health.UNKNOWN, "no node announces itself by whose clock to go")
    # Announcements are renewed at a third of their time: on average they are a sixth of it old.
    apart = median(ends) - now - TTL_S * 5 / 6
    if abs(apart) > CLOCK_S:
        way = "behind" if apart > 0 else "ahead of"
        advice = "Let the system set the clock: timedatectl set-ntp true (Linux), or Date & Time (macOS)."
        return Finding(
            "clock", Health.FAIL, f"it is about {abs(apart):.0f} s {way} that of the nodes", advice
        )
    return Finding("clock", Health.OK, "it agrees with that of the nodes")


def models_of(nodes: Sequence[NodeInfo]) -> list[Finding]:
    found = by_model(nodes)
    models = {digest: model_of(of_model) for digest, of_model in found.items()}
    lacking = {}
    for digest, of_model in found.items():
        online = [node for node in of_model if node.state is NodeState.ONLINE]
        if missing := missing_blocks(online, models[digest].n_blocks):
            lacking[digest] = ", ".join(map(str, missing))
    if not found:
        return []
    says = f"{len(found) - len(lacking)} of {len(found)} models have all blocks served"
    if not lacking:
        return [Finding("models of the swarm", Health.OK, says)]
    advice = "`swarm-node status` names the blocks, and the commands that serve them."
    known = [(model.name, model.digest) for model in models.values()]
    largest = sorted(lacking, key=lambda digest: (-len(found[digest]), digest))[:MOST_MODELS]
    details = {
        told_apart(models[digest].name, digest, known): f"no node serves {lacking[digest]}"
        for digest in largest
    }
    return [Finding("models of the swarm", Health.WARN, says, advice, details)]
