"""What can be wrong with a command before a model is read or a peer dialled: said before anything heavy is
imported."""

from __future__ import annotations

import argparse

from ...swarm.errors import UsageError
from ...swarm.transport.addresses import listen_maddrs, listenable
from .shared.arguments import entry_of


def check_words(arguments: argparse.Namespace) -> None:
    """Addresses, invites and key files can be read, and ports are free. Raises UsageError, ListenError."""
    if arguments.command == "plan" and not arguments.model:
        raise UsageError(
            "plan needs the name of a model",
            hint="`swarm-node models --catalogue` lists some: `swarm-node plan qwen3-8b`",
        )
    if "initial_peers" in arguments and arguments.command != "invite":  # which makes the key if need be
        entry_of(arguments)
    if arguments.command in ("serve", "bootstrap"):
        listenable(listen_maddrs(arguments.host, arguments.port))
        if arguments.metrics is not None:
            listenable(listen_maddrs(arguments.metrics_host, arguments.metrics))
    if arguments.command == "serve" and arguments.dashboard is not None:
        listenable(listen_maddrs("127.0.0.1", arguments.dashboard))
