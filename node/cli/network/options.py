"""The options of ``swarm-node status`` and ``swarm-node invite``."""

from __future__ import annotations

import argparse
import math
import re

from ..shared.arguments import above_zero, add_peers

INVITE_EXAMPLES = """\
examples:
  swarm-node invite --swarm home --swarm-key ~/home.key        the first time: makes the key as well
  swarm-node serve --model PATH --swarm home --swarm-key ~/home.key      a node that has the key
  swarm-node serve --model PATH --join swn1...                           a node that was invited
  swarm-node chat --model PATH --join invite.txt                         the invite in a file
  swarm-node invite --initial-peers ADDR                                 without a key: addresses only

The invite goes to standard output. If the swarm has a key, keep it secret: a machine that has the invite can
join until it ends.
"""
STATUS_EXAMPLES = """\
examples:
  swarm-node status --initial-peers ADDR
  swarm-node status --watch                     again every two seconds
  swarm-node status --initial-peers ADDR --json | jq '.models[].missing'
"""


def add_status(command: argparse.ArgumentParser) -> None:
    add_peers(command)
    command.add_argument(
        "--watch",
        nargs="?",
        type=above_zero,
        const=2.0,
        default=None,
        metavar="SECONDS",
        help="look again and again, this many seconds apart (default: 2), until Ctrl-C; with --json a line "
        "each time",
    )


_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_DURATION = re.compile(r"(\d{1,5})([mhdw])")


def duration(text: str) -> float:
    """``30d`` in seconds; ``ever`` is inf."""
    if text == "ever":
        return math.inf
    if (match := _DURATION.fullmatch(text)) and int(match[1]):
        return int(match[1]) * _SECONDS[match[2]]
    raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 12h, 30d, 8w or ever")


def add_invite(command: argparse.ArgumentParser) -> None:
    add_peers(command)
    command.add_argument(
        "--lasts",
        type=duration,
        default=None,
        metavar="TIME",
        help="how long a machine that joins with the invite is a member: 90m, 12h, 30d, 8w or ever (default: "
        "30d)",
    )
