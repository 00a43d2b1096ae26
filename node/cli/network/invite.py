"""``swarm-node invite``: one line of text by which another machine gets into a swarm."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ....dht.joining.client import join_as_client
from ....swarm.discovery.local_networks import lan_addresses
from ....swarm.errors import PeerUnreachableError, UsageError
from ....swarm.identity import Identity
from ....swarm.membership.entry import SwarmEntry, read_invite
from ....swarm.membership.invite import Invite, describe_end, make_invite
from ....swarm.membership.membership import KeyedSwarm, swarm_name
from ....swarm.transport.addresses import PeerAddress, all_loopback, is_loopback
from ....swarm.types import NodeInfo, NodeState
from ..shared.arguments import entry_of
from ..shared.network_lines import by_distance, is_reached_from_outside
from ..shared.output import console, plural, print_json, print_text, shown
from ..shared.progress import progress_shown

MOST_PEERS = 3
"""Whose addresses an invite names: one that answers is enough."""
MOST_MADDRS = 2
USUAL_S = 30 * 86400.0
"""Seconds that an invite makes a member for, where ``--lasts`` is not given."""

REACHES = {
    "anywhere": "it leads in from other networks, too, unless a firewall is before the peer",
    "network": "it leads in from this network alone. For others, give --initial-peers with a public address "
    "or one through a relay",
    "computer": "it leads in on this computer alone",
    "mdns": "it leads in on this local network alone, where mDNS finds the peers",
    "nowhere": "[yellow]it leads nobody in[/]. Give --initial-peers with an address that a node prints",
}
"""From where an invite leads into the swarm, and that in words."""


async def run_invite(arguments: argparse.Namespace) -> None:
    made_key = _make_key(arguments.swarm_key)
    entry = entry_of(arguments)
    peers = await _find_peers(entry, speak=not arguments.json)
    invite = replace(_bare_invite(arguments, entry), peers=tuple(peers))
    if arguments.json:
        print_json(
            {
                "invite": str(invite),
                "swarm": invite.name,
                "peers": [str(peer) for peer in peers],
                "reach": reach(peers, by_mdns=_by_mdns(entry)),
                "ends": None if math.isinf(invite.ends) else int(invite.ends),
                "secret": invite.grant is not None,
                "made_key": made_key,
            }
        )
        return
    if made_key:
        console.print(
            f"Made the swarm's key {shown(str(arguments.swarm_key))}. Whoever has it can invite others."
        )
    whose = f"swarm {shown(repr(invite.name))}" if invite.name else "the unnamed swarm"
    kept = " Keep it secret." if invite.grant is not None else ""
    named = len({peer.peer_id for peer in peers})
    where = f"addresses of {plural(named, 'peer')}" if named else "no address"
    leads = REACHES[reach(peers, by_mdns=_by_mdns(entry))]
    console.print(f"Invite to {whose} with {where}: {leads}. It is valid {describe_end(invite)}.{kept}")
    print_text(f"{invite}\n")


def _make_key(path: str | None) -> bool:
    """Whether the key was not there before. Raises UsageError."""
    if path is None or Path(path).expanduser().exists():
        return False
    Identity.load_or_create(path)
    return True


def _bare_invite(arguments: argparse.Namespace, entry: SwarmEntry) -> Invite:
    """An invite without addresses. A machine that was invited passes on its own invite: it has no key to make
    others."""
    if arguments.join:
        if arguments.lasts is not None:
            raise UsageError(
                "--lasts cannot change an invite that was given with --join",
                hint="Leave --lasts out: the invite is passed on as it is. Whoever has the key makes others.",
            )
        return Invite.parse(read_invite(arguments.join))
    holder = entry.membership.holder if isinstance(entry.membership, KeyedSwarm) else None
    return make_invite(swarm_name(arguments.swarm), holder, (), time.time(), arguments.lasts or USUAL_S)


async def _find_peers(entry: SwarmEntry, *, speak: bool) -> list[PeerAddress]:
    """Addresses to give: those we were given, then those of nodes that serve now."""
    given = [PeerAddress.parse(text) for text in entry.initial_peers]
    if entry.is_alone:
        return []
    with progress_shown("Looking for nodes of the swarm ...", speak=speak) as line:
        try:
            network = await join_as_client(entry, line.update)
        except PeerUnreachableError:
            if given:
                raise
            return []
        try:
            nodes = await network.directory.all_nodes()
        finally:
            await network.close()
    return choose_addresses(given, nodes)


def choose_addresses(given: Sequence[PeerAddress], nodes: Iterable[NodeInfo]) -> list[PeerAddress]:
    """All of ``given``, then serving nodes until MOST_PEERS are named, each by addresses that lead to another
    machine: from other networks first, and one for this network."""
    chosen = list(given)
    serving = [node for node in nodes if node.state is NodeState.ONLINE]
    for node in serving:
        known = {peer.peer_id for peer in chosen}
        if node.peer_id in known or len(known) >= MOST_PEERS:
            continue
        addresses = [_address(node.peer_id, maddr) for maddr in by_distance(node.maddrs)]
        outside = [address for address in addresses if is_reached_from_outside(address.maddr)]
        far = [address for address in addresses if not is_loopback(address.maddr)]
        near = [address for address in far if address not in outside]
        chosen += [*outside[: MOST_MADDRS - bool(near)], *near][:MOST_MADDRS] or addresses[:MOST_MADDRS]
    return chosen


def reach(peers: Iterable[PeerAddress], *, by_mdns: bool) -> str:
    """A key of REACHES. ``by_mdns``: whether peers are found without an address."""
    maddrs = [peer.maddr for peer in peers]
    if any(map(is_reached_from_outside, maddrs)):
        return "anywhere"
    if not all_loopback(maddrs):
        return "network"
    if by_mdns:
        return "mdns"
    return "computer" if maddrs else "nowhere"


def _by_mdns(entry: SwarmEntry) -> bool:
    return entry.mdns and bool(lan_addresses())


def _address(peer_id: str, maddr: str) -> PeerAddress:
    return PeerAddress(peer_id, maddr.removesuffix(f"/p2p/{peer_id}"))
