"""The options of ``swarm-node config`` and ``swarm-node completion``."""

from __future__ import annotations

import argparse

CONFIG_EXAMPLES = """\
examples:
  swarm-node config                           what the file and variables set, for every command
  swarm-node config serve                     every option of serve: what is in force, and where it comes from
  swarm-node config serve -- --port 4000      the same beside these options
  swarm-node config --check                   all that is wrong in the file
  swarm-node config init                      write a file with every option, all of them commented out

An option of a command counts first, then a variable such as SWARM_NODE_SERVE_PORT, then the file.
"""
COMPLETION_EXAMPLES = """\
examples:
  swarm-node completion bash > ~/.local/share/bash-completion/completions/swarm-node
  swarm-node completion zsh > ~/.zfunc/_swarm-node             a folder of zsh's fpath
  swarm-node completion fish > ~/.config/fish/completions/swarm-node.fish
"""
WORDS = "words"
"""A command that is about another one has a default of this name. What follows ``--`` is put there: options
of the other command."""

SHELLS = ("bash", "zsh", "fish")


def add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "what", nargs="?", metavar="COMMAND", help="show every option of this command; init: write a file"
    )
    command.set_defaults(**{WORDS: []})
    command.add_argument("--check", action="store_true", help="say all that is wrong in the file")


def add_completion(command: argparse.ArgumentParser) -> None:
    command.add_argument("shell", choices=SHELLS, help="the shell that is to complete words of swarm-node")
