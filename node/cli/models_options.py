"""The words of ``swarm-node models``."""

from __future__ import annotations

import argparse

from .shared.arguments import add_peers

MODELS_EXAMPLES = """\
examples:
  swarm-node models                          here, in the swarm of this LAN, and wanted there
  swarm-node models --initial-peers ADDR --json | jq -r '.swarm[].name'
  swarm-node models --local                  without a look at any swarm
  swarm-node models pin NAME@DIGEST          from now on NAME is this model here, and nothing else
  swarm-node models unpin NAME

A model is called by the name of its file or directory in ~/.swarm-node/models (or $SWARM_NODE_HOME/models),
or as on the HuggingFace hub where it was downloaded: swarm-node serve --model NAME.
"""


def add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "action", nargs="?", choices=("pin", "unpin"), help="what NAME means on this machine; else a list"
    )
    command.add_argument("name", nargs="?", metavar="NAME[@DIGEST]", help="the model to pin or unpin")
    add_peers(command)
    command.add_argument("--local", action="store_true", help="only what is on this machine")
