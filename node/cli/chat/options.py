"""The words of ``swarm-node chat``: a part of ``cli_parser``."""

from __future__ import annotations

import argparse

from ..shared.arguments import (
    add_compute,
    add_model,
    add_peers,
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
From a pipe each line is a message, and errors end the chat with their exit code.
"""
DEFAULT_MAX_NEW_TOKENS = 1024
_SAMPLING = {
    "--temperature": (float, "0 is greedy (default)"),
    "--top-k": (int, "0 is off (default)"),
    "--top-p": (float, "1 is off (default)"),
    "--min-p": (float, "0 is off (default)"),
    "--repetition-penalty": (float, "1 is off (default)"),
    "--frequency-penalty": (float, "-2 to 2; 0 is off (default)"),
    "--presence-penalty": (float, "-2 to 2; 0 is off (default)"),
    "--seed": (int, "makes sampling repeatable"),
}
"""Unset where they are not given, so that a chat keeps only what was chosen."""


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
        help=f"of an answer (default: {DEFAULT_MAX_NEW_TOKENS})",
    )
    for option, (kind, text) in _SAMPLING.items():
        command.add_argument(option, type=kind, default=None, help=text)
    command.add_argument(
        "--speculate",
        default=None,
        choices=("auto", "off"),
        help="check guesses of the next tokens in one pass, where that is faster (default: auto)",
    )
    command.add_argument(
        "--draft",
        default=None,
        metavar="PATH_OR_NAME",
        help="a small model of the same family that guesses, on this machine",
    )
    command.add_argument(
        "--no-history",
        dest="history",
        action="store_false",
        help="do not keep what is typed in ~/.swarm-node (or $SWARM_NODE_HOME)",
    )
    command.add_argument(
        "--plain", action="store_true", help="answers as they are: no Markdown, nothing that moves"
    )
    add_wire_codec(command)
    add_compute(command, "the head's weights")
    add_wait(command)
