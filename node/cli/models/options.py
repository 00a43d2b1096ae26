"""The options of ``swarm-node models`` and ``swarm-node plan``."""

from __future__ import annotations

import argparse

from ....shards.models.devices import DEVICES
from ...config import KERNELS, KV_DTYPES
from ..shared.arguments import (
    MODEL_HELP,
    add_cache_size,
    add_compute,
    add_memory,
    add_peers,
    positive_int,
)

MODELS_EXAMPLES = """\
examples:
  swarm-node models                          on this machine, in the swarm, and wanted there
  swarm-node models --initial-peers ADDR --json | jq -r '.swarm[].name'
  swarm-node models --local                  on this machine only; no swarm is asked
  swarm-node models pin NAME@DIGEST          from now on NAME means this model on this machine
  swarm-node models unpin NAME
  swarm-node models --catalogue              models that people want, and what each takes
  swarm-node models --catalogue qwen3-8b     one of them, with its names on the hub

A model's name is that of its file or directory in ~/.swarm-node/models (or $SWARM_NODE_HOME/models), or its
name on the HuggingFace hub if it was downloaded from there: swarm-node serve --model NAME.
"""
PULL_EXAMPLES = """\
examples:
  swarm-node pull qwen3-8b                       the usual files of a model of the catalogue
  swarm-node pull bartowski/phi-4-GGUF:Q8_0      a type of files of a repository on the hub
  swarm-node pull NAME --initial-peers ADDR      from peers of that swarm, if they share it
  swarm-node pull NAME --json | jq -r .path

A fetch that was stopped goes on where it was. Nodes need no pull: each fetches its own blocks when it starts.
"""
PLAN_EXAMPLES = """\
examples:
  swarm-node plan qwen3-8b                                 a name of the catalogue: nothing is fetched
  swarm-node plan --model NAME                             what this machine would do in this LAN's swarm
  swarm-node plan --model PATH --initial-peers ADDR --memory 8GiB
  swarm-node plan --model PATH --initial-peers ADDR --json | jq -r '.verdict, .blocks'

Nothing is loaded or announced. The speed is measured with a few made-up blocks, for about a second.
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
    command.add_argument(
        "--catalogue",
        nargs="?",
        const="",
        default=None,
        metavar="NAME",
        help="list models that people want with their sizes, or show the one of this name; asks nobody",
    )


def add_pull(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model", metavar="NAME", help="a name of the catalogue, of the swarm, or OWNER/NAME[:TYPE] on the hub"
    )
    add_peers(command)
    add_cache_size(command)


def add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model", nargs="?", default=argparse.SUPPRESS, metavar="PATH_OR_NAME", help=MODEL_HELP
    )
    command.add_argument("--model", default=None, metavar="PATH_OR_NAME", help="the same")
    add_peers(command)
    add_memory(command)
    command.add_argument(
        "--device", default="auto", choices=DEVICES, help="what computes (default: %(default)s)"
    )
    add_compute(command, "block weights")
    command.add_argument(
        "--kernels", default="auto", choices=KERNELS, help="with which kernels (default: %(default)s)"
    )
    command.add_argument(
        "--kv-cache-tokens",
        type=positive_int,
        default=None,
        metavar="N",
        help="tokens of KV cache that need room (default: one full context)",
    )
    command.add_argument(
        "--kv-dtype",
        default="auto",
        choices=KV_DTYPES,
        help="how keys and values are held (default: %(default)s)",
    )
