"""The options of ``swarm-node run``: those of ``chat``, and a few of the node that it may start."""

from __future__ import annotations

import argparse

from ..chat.commands import add_chat
from ..shared.arguments import add_cache_size, add_memory, positive_int

RUN_EXAMPLES = """\
examples:
  swarm-node run qwen3-0.6b                      a model of the catalogue, in this network's swarm
  swarm-node run NAME --initial-peers ADDR       in that swarm
  swarm-node run PATH --no-mdns                  alone on this machine: nobody else is asked, or let in

Where the swarm serves the model, this is a chat and no more. Else a node of this machine serves the blocks
that are missing, if they fit, until the chat ends: others of the swarm can use it as well.
"""


def add_run(command: argparse.ArgumentParser) -> None:
    add_chat(command, positional=True)
    add_memory(command)
    add_cache_size(command)
    command.add_argument(
        "--kv-cache-tokens",
        type=positive_int,
        default=None,
        metavar="N",
        help="tokens of KV cache of a node that is started (default: one full context, or 16384 where only "
        "that fits)",
    )
