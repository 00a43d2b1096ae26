"""``swarm-node bootstrap``: a node that serves no blocks."""

from __future__ import annotations

import argparse
import asyncio
import contextlib

from ....dht.joining.network import NetworkFigures
from ....swarm.types import short_peer_id
from ...bootstrap import run_bootstrap
from ...config import BootstrapConfig, NodeEvent
from ...identity_files import IdentityClaim
from ..metrics.node import bootstrap_metrics
from ..shared.arguments import entry_of
from ..shared.board import Board
from ..shared.network_lines import print_addresses, print_join, print_network
from ..shared.output import console, events, format_bytes, plural
from ..shared.signals import on_stop_signals


def figures_line(figures: NetworkFigures) -> str:
    """What a bootstrap node does now, and has done since it started."""
    parts = [f"connected to {plural(figures.peers or 0, 'peer')}"]
    if figures.relayed_bytes is not None:
        parts.append(f"{format_bytes(figures.relayed_bytes)} relayed")
    return " · ".join(parts)


async def run_bootstrap_command(arguments: argparse.Namespace) -> None:
    def on_event(event: NodeEvent) -> None:
        if arguments.json:
            events.print(event.as_dict())
        elif event.event == "peer_found":
            console.print(f"Found peer {short_peer_id(str(event.details['found']))}.")
        elif event.event.startswith("network_"):
            print_network(event)
        elif event.event == "listening":
            print_addresses(arguments, event, "Bootstrap node")
            print_join(arguments, event, "PATH_OR_NAME")
            console.print("Ctrl-C stops it.")
        elif event.event == "stopped":
            console.print("Stopped.")

    def on_figures(figures: NetworkFigures) -> None:
        board.status(figures_line(figures))

    entry = entry_of(arguments)
    with (
        IdentityClaim(arguments.identity, "bootstrap") as identity,
        Board("Starting ...", speak=console.is_terminal and not arguments.json) as board,
    ):
        config = BootstrapConfig(
            identity=identity.path,
            host=arguments.host,
            port=arguments.port,
            announce_maddrs=tuple(arguments.announce or ()),
            initial_peers=entry.initial_peers,
            may_meet=entry.may_meet,
            membership=entry.membership,
            mdns=entry.mdns,
            relay=arguments.relay,
        )
        if arguments.relay and not arguments.json:
            console.print("Starting the relay, and trying it with two peers of its own ...")
        async with bootstrap_metrics(arguments, on_event) as told:
            running = asyncio.ensure_future(
                run_bootstrap(config, told, on_figures=on_figures if board.is_live else None)
            )
            with on_stop_signals(running.cancel), contextlib.suppress(asyncio.CancelledError):
                await running
