"""The swarm as a client sees it: who is found, what the directory says, whether the clocks agree."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from ...dht.directory import TTL_S
from ...dht.joining.client import join_as_client
from ...swarm.errors import NetworkError, NotAdmittedError
from ...swarm.membership.entry import SwarmEntry
from ...swarm.routing.best_route import missing_blocks
from ...swarm.types import NodeInfo, NodeState
from .finding import Finding, Health

CLOCK_S = 20.0
"""A clock that is this many seconds apart from the others' makes announcements end early, or be refused."""


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
    return [*found, *_models(nodes)]


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


def _models(nodes: Sequence[NodeInfo]) -> list[Finding]:
    by_digest: dict[str, list[NodeInfo]] = {}
    for node in nodes:
        by_digest.setdefault(node.model.digest, []).append(node)
    lacking = {}
    for of_model in by_digest.values():
        online = [node for node in of_model if node.state is NodeState.ONLINE]
        model = of_model[0].model
        if missing := missing_blocks(online, model.n_blocks):
            lacking[model.name] = ", ".join(map(str, missing))
    if not by_digest:
        return []
    whole = len(by_digest) - len(lacking)
    says = f"{whole} of {len(by_digest)} models have all blocks served"
    if not lacking:
        return [Finding("models of the swarm", Health.OK, says)]
    advice = "`swarm-node status` names the blocks, and the commands that serve them."
    details = {name: f"no node serves {blocks}" for name, blocks in lacking.items()}
    return [Finding("models of the swarm", Health.WARN, says, advice, details)]
