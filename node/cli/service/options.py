"""The options of ``swarm-node service``."""

from __future__ import annotations

import argparse

from ..settings.options import WORDS

SERVICE_EXAMPLES = """\
examples:
  swarm-node service install serve -- --model NAME --initial-peers ADDR    start it now, and with the machine
  swarm-node service install gateway --config gateway.toml                   options from a file
  swarm-node service install serve --dry-run -- --model NAME                 only print what would be written
  swarm-node service status                                                  all that are installed
  swarm-node service uninstall serve

What follows -- are options of the command. The service runs with this Python, in this folder, and with the
variables SWARM_NODE_... that are set here. As root it is a service of the system, else one of yours.
"""
ACTIONS = ("install", "status", "uninstall")


def add_service(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=ACTIONS, help="what to do with the service")
    command.add_argument(
        "what",
        nargs="?",
        metavar="COMMAND",
        help="serve, gateway, bootstrap or dashboard (default: serve; for status, all that are installed)",
    )
    command.set_defaults(**{WORDS: []})
    scope = command.add_mutually_exclusive_group()
    scope.add_argument(
        "--user", dest="system", action="store_false", default=None, help="a service of this user"
    )
    scope.add_argument(
        "--system",
        dest="system",
        action="store_true",
        default=None,
        help="a service of the machine (as root)",
    )
    command.add_argument(
        "--run-as",
        default=None,
        metavar="USER",
        help="whose files and rights a service of the machine has (default: who called sudo, else root)",
    )
    command.add_argument(
        "--dry-run", action="store_true", help="print what would be written and run, and do none of it"
    )
