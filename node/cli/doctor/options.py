"""The options of ``swarm-node doctor``."""

from __future__ import annotations

import argparse

from ..shared.arguments import add_peers, comma_list

DOCTOR_EXAMPLES = """\
examples:
  swarm-node doctor                                     this machine, and the swarm of its network
  swarm-node doctor --initial-peers ADDR --model NAME   a swarm elsewhere, and one model wholly
  swarm-node doctor --relay ADDR                        whether others reach this machine through it
  swarm-node doctor --share > report.txt                for others to read: no addresses, keys or paths

Exit code 0: nothing is broken; 1: something is.
"""


def add_doctor(command: argparse.ArgumentParser) -> None:
    add_peers(command)
    command.add_argument(
        "--model", default="", metavar="PATH_OR_NAME", help="check all of this model's files"
    )
    command.add_argument(
        "--relay",
        metavar="ADDR",
        type=comma_list,
        action="extend",
        default=None,
        help="check whether others reach this machine through this relay (repeatable)",
    )
    command.add_argument(
        "--share",
        action="store_true",
        help="print a report that may be given to others: no addresses, keys, paths and names",
    )
