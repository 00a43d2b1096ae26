"""The words of ``swarm-node models``."""

from __future__ import annotations

import argparse

from .shared.arguments import add_peers

MODELS_EXAMPLES = """\
examples:
  swarm-node models                          on this machine, in the swarm, and wanted there
  swarm-node models --initial-peers ADDR --json | jq -r '.swarm[].name'
  swarm-node models --local                  on this machine only; no swarm is asked
  swarm-node models pin NAME@DIGEST          from now on NAME means this model on this machine
  swarm-node models unpin NAME

A model's name is that of its file or directory in ~/.swarm-node/models (or $SWARM_NODE_HOME/models), or its
name on the HuggingFace hub if it was downloaded from there: swarm-node serve --model NAME.
"""


def add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "action",
        nargs="?",
        choices=("pin", "unpin"),
        help="pin NAME to one model on this machine, or remove the pin; without this, list models",
    )
    command.add_argument("name", nargs="?", metavar="NAME[@DIGEST]", help="the model to pin or unpin")
    add_peers(command)
    command.add_argument("--local", action="store_true", help="list only what is on this machine")
