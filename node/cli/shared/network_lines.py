"""What a node says of its network: where it listens, how a next peer joins, what became of it."""

from __future__ import annotations

import argparse
import shlex

from ....swarm.transport.addresses import all_loopback
from ...config import NodeEvent
from .output import console, shown
from .pasting import pasteable

ONLY_HERE = ("127.0.0.1", "::1", "[::1]", "localhost")
"""Hosts to listen on that no other machine reaches."""


def print_addresses(arguments: argparse.Namespace, event: NodeEvent, what: str) -> None:
    console.print(f"{what} {shown(event.peer_id)} listens at")
    for maddr in _dialable(event.maddrs):
        console.print(f"  {shown(maddr)}")
    if note := reach_note(arguments.host, event.maddrs):
        console.print(f"[yellow]{shown(note)}[/]")


def print_direct(event: NodeEvent) -> None:
    """Where peers dial the process itself, which a firewall may have to let through."""
    if isinstance(direct := event.details.get("direct"), list) and direct:
        console.print(f"Directly, without daemons, at {shown(', '.join(map(str, direct)))}")


def reach_note(host: str, maddrs: tuple[str, ...]) -> str:
    """What is to be known of a node that only its own computer reaches; "" of others."""
    if not all_loopback([maddr.partition("/p2p/")[0] for maddr in maddrs]):
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


def print_join(arguments: argparse.Namespace, event: NodeEvent, model: str) -> None:
    command = join_command(arguments, event, model)
    near = "" if "--initial-peers" in command or "--join" in command else " on this network"
    console.print(f"The next peer{near} joins with:")
    console.print(f"  {shown(command)}")
    if note := invite_note(arguments, event):
        console.print(f"  {shown(note)}")


def join_command(arguments: argparse.Namespace, event: NodeEvent, model: str) -> str:
    """What to type on another machine to serve beside this node. The machine chooses its blocks itself: it
    sees which ones are missing then."""
    words = ["swarm-node serve --model", shlex.quote(model)]
    if arguments.join or arguments.swarm_key:
        words.append("--join INVITE")  # which has the addresses, too
    else:
        if arguments.swarm:
            words.append(f"--swarm {shlex.quote(arguments.swarm)}")
        if not arguments.mdns or arguments.host in ONLY_HERE:
            words.append(f"--initial-peers {_dialable(event.maddrs)[0] if event.maddrs else 'ADDR'}")
    return " ".join(words)


def invite_note(arguments: argparse.Namespace, event: NodeEvent) -> str:
    """How to get the INVITE of ``join_command``, or one for another network; "" where an address will do."""
    if arguments.join or arguments.swarm_key:
        known = arguments.join or arguments.initial_peers or not event.maddrs
        here = "" if known else f" --initial-peers {_dialable(event.maddrs)[0]}"
        return pasteable(f"`swarm-node invite{here}` prints INVITE.", arguments)
    if not arguments.mdns or arguments.host in ONLY_HERE:
        return ""
    return pasteable("On another network: see `swarm-node invite`.", arguments)


def _dialable(maddrs: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses with those of this machine only at the end."""
    return tuple(sorted(maddrs, key=lambda maddr: maddr.startswith(("/ip4/127.", "/ip6/::1/"))))
