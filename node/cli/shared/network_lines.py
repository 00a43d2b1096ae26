"""What a node says of its network: where it listens, how a next peer joins, what became of it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ....swarm.discovery.local_networks import is_lan
from ....swarm.transport.addresses import all_loopback
from ....swarm.transport.dial_guard import Reach, reach_of, socket_of
from ...config import NodeEvent
from .output import console, shown
from .pasting import pasteable

ONLY_HERE = ("127.0.0.1", "::1", "[::1]", "localhost")
"""Hosts to listen on that no other machine reaches."""


def print_addresses(arguments: argparse.Namespace, event: NodeEvent, what: str) -> None:
    console.print(f"{what} {shown(event.peer_id)} listens at")
    for maddr in by_distance(event.maddrs):
        console.print(f"  {shown(maddr)}")
    if note := reach_note(arguments.host, event.maddrs):
        console.print(f"[yellow]{shown(note)}[/]")


def print_direct(event: NodeEvent) -> None:
    """Where peers dial the process itself, which a firewall may have to let through."""
    if isinstance(direct := event.details.get("direct"), list) and direct:
        console.print(f"Directly, without daemons, at {shown(', '.join(map(str, direct)))}")


def reach_note(host: str, maddrs: tuple[str, ...]) -> str:
    """What is to be known of a node that only its own computer reaches; "" of others."""
    if not all_loopback(_without_peers(maddrs)):
        return ""
    if host in ONLY_HERE:
        return f"With --host {host} only this computer reaches it, and it looks for no peers of the network."
    return "Only this computer reaches the node: it has no other address. Give others one with --announce."


def print_network(event: NodeEvent) -> None:
    if event.event == "network_lost":
        console.print(
            f"[yellow]Network lost[/]: {shown(str(event.details['message']))}; starting it again ..."
        )
    else:
        console.print(f"[green]Network restored[/] after {event.details['seconds']:.1f} s.")


def print_join(arguments: argparse.Namespace, event: NodeEvent, model: str, *, shares: bool = False) -> None:
    """How others get in. ``shares``: whether they get the model's files by its name from this node."""
    name = model
    if Path(model).exists() and arguments.host not in ONLY_HERE:
        name = event.model  # other machines have no such path
    command = join_command(arguments, event, name)
    near = "" if "--initial-peers" in command or "--join" in command else " on this network"
    console.print(f"The next peer{near} joins with:")
    console.print(f"  {shown(command)}")
    notes = (
        lan_note(arguments, event.maddrs),
        invite_note(arguments, event),
        outside_note(arguments, event, name),
    )
    for note in notes:
        if note:
            console.print(f"  {shown(note)}")
    if name != model and not shares:
        where = "~/.swarm-node/models or $SWARM_NODE_HOME/models"
        console.print(
            f"  It needs a copy of the model's files there, in {where}: this node does not share them."
        )


def join_command(arguments: argparse.Namespace, event: NodeEvent, model: str) -> str:
    """What to type on another machine, or on this one if nothing else reaches the node, to serve beside it.
    The machine chooses its blocks itself: it sees which ones are missing then."""
    words = ["swarm-node serve --model", shlex.quote(model)]
    if arguments.join or arguments.swarm_key:
        words.append("--join INVITE")  # which has the addresses, too
    else:
        if arguments.swarm:
            words.append(f"--swarm {shlex.quote(arguments.swarm)}")
        if not arguments.mdns or arguments.host in ONLY_HERE or not _is_met(event.maddrs):
            words.append(f"--initial-peers {by_distance(event.maddrs)[0] if event.maddrs else 'ADDR'}")
    if arguments.host in ONLY_HERE:
        words.append(f"--host {arguments.host}")
    if not arguments.mdns:
        words.append("--no-mdns")
    return " ".join(words)


def invite_note(arguments: argparse.Namespace, event: NodeEvent) -> str:
    """How to get the INVITE of ``join_command``; "" where an address will do."""
    if not (arguments.join or arguments.swarm_key):
        return ""
    known = arguments.join or arguments.initial_peers or not event.maddrs
    here = "" if known else f" --initial-peers {by_distance(event.maddrs)[0]}"
    return pasteable(f"`swarm-node invite{here}` prints INVITE.", arguments)


def lan_note(arguments: argparse.Namespace, maddrs: tuple[str, ...]) -> str:
    """What mDNS cannot tell others on this network; "" where it tells them all, or shall not."""
    if not arguments.mdns or arguments.host in ONLY_HERE or all_loopback(_without_peers(maddrs)):
        return ""
    hosts = [socket.host for socket in map(socket_of, maddrs) if socket and not socket.host.is_loopback]
    private = [host for host in hosts if is_lan(str(host))]
    apart = ", ".join(str(host) for host in hosts if host.version == 4 and host not in private)
    if not private:
        return "Nobody on this network finds it by mDNS, which tells of private addresses only: it has none."
    if apart and all(host.version == 6 for host in private):
        return (
            f"On this network mDNS tells of it over IPv6 alone: {apart} is no private address. Machines "
            "without IPv6 need --initial-peers."
        )
    return ""


def outside_note(arguments: argparse.Namespace, event: NodeEvent, model: str) -> str:
    """What is known of how machines in other networks get in; "" of a node for this computer only."""
    if arguments.host in ONLY_HERE or all_loopback(_without_peers(event.maddrs)):
        return ""
    best = by_distance(event.maddrs)[0]
    if not is_reached_from_outside(best):
        return (
            "Other networks do not reach it: it has no public address. --relay with the address of a "
            "`swarm-node bootstrap --relay`, or --announce behind a port forwarding, changes that."
        )
    way = "through its relay" if "/p2p-circuit" in best else "if no firewall is before it"
    command = join_command(arguments, event, model)
    if "--join" in command:
        return f"Other networks reach it {way}."
    if "--initial-peers" not in command:
        command = f"{command} --initial-peers {best}"
    return f"From another network, {way}: {command}"


def is_reached_from_outside(maddr: str) -> bool:
    """Whether it leads to a name, or a public address, of a peer or of its relay."""
    socket = socket_of(maddr)
    return maddr.startswith("/dns") if socket is None else reach_of(socket.host) is Reach.PUBLIC


def _is_met(maddrs: tuple[str, ...]) -> bool:
    """Whether mDNS can tell others on this network of the node."""
    found = map(socket_of, maddrs)
    return any(each is not None and is_lan(str(each.host)) for each in found) or not maddrs


def _without_peers(maddrs: tuple[str, ...]) -> list[str]:
    return [maddr.partition("/p2p/")[0] for maddr in maddrs]


def by_distance(maddrs: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses by how far they lead: those through a relay first, then public ones and names, and those
    of this machine only at the end."""

    def nearness(maddr: str) -> int:
        if is_reached_from_outside(maddr):
            return 0 if "/p2p-circuit" in maddr else 1
        return 3 if maddr.startswith(("/ip4/127.", "/ip6/::1/")) else 2

    return tuple(sorted(maddrs, key=nearness))
