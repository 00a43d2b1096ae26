"""The words of ``swarm-node chat``: a part of ``cli_parser``."""

from __future__ import annotations

import argparse

from ..shared.arguments import (
    add_compute,
    add_draft,
    add_model,
    add_peers,
    add_sampling,
    add_speculate,
    add_wait,
    add_wire_codec,
    positive_int,
    typed_text,
)

CHAT_EXAMPLES = """\
examples:
  swarm-node chat --model PATH --initial-peers ADDR
  swarm-node chat --model PATH --initial-peers ADDR --system "You answer in French." --temperature 0.7
  swarm-node chat --model PATH --initial-peers ADDR --load chat.json
  printf 'Hello!\\nAnd now in Latin.\\n' | swarm-node chat --model PATH --initial-peers ADDR

Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves; /help shows the commands.
From a pipe, each line is a message, and the first error ends the chat with its exit code.
"""
DEFAULT_MAX_NEW_TOKENS = 1024


def add_chat(command: argparse.ArgumentParser) -> None:
    add_model(command)
    add_peers(command)
    command.add_argument("--system", type=typed_text, default="", metavar="TEXT", help="the system prompt")
    command.add_argument(
        "--load", default=None, metavar="FILE", help="go on with a chat that /save has written"
    )
    command.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=None,
        metavar="N",
        help=f"longest answer, in tokens (default: {DEFAULT_MAX_NEW_TOKENS})",
    )
    add_sampling(command, unset=True)
    add_speculate(command, unset=True)
    add_draft(command)
    command.add_argument(
        "--no-history",
        dest="history",
        action="store_false",
        help="do not keep what is typed in ~/.swarm-node (or $SWARM_NODE_HOME)",
    )
    command.add_argument(
        "--plain", action="store_true", help="show answers as they are, without Markdown and movement"
    )
    add_wire_codec(command)
    add_compute(command, "the head's weights")
    add_wait(command)
