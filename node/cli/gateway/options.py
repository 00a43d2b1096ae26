"""The options of ``swarm-node gateway``. Apart from ``gateway.py``, so that help imports no client."""

from __future__ import annotations

import argparse

from ..metrics.options import add_metrics_keys
from ..shared.arguments import (
    MODEL_HELP,
    above_zero,
    add_compute,
    add_draft,
    add_drain,
    add_http,
    add_peers,
    add_sideband,
    add_speculate,
    add_wait,
    add_wire_codec,
    comma_list,
    positive_int,
    seconds,
)

GATEWAY_PORT = 8000
"""The gateway's TCP port by default."""

GATEWAY_EXAMPLES = """\
examples:
  swarm-node gateway --model PATH --initial-peers ADDR           http://127.0.0.1:8000, this computer only
  swarm-node gateway --model PATH --model PATH --initial-peers ADDR                    several models
  swarm-node gateway --model PATH --initial-peers ADDR --host 0.0.0.0 --api-key-file keys.txt

OpenAI clients take http://127.0.0.1:8000/v1 as base URL; browsers find a chat page at the address itself,
and at /swarm who serves what, live.
After Ctrl-C it takes no new requests, and gives running ones --drain-seconds.
"""


def add_gateway(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        default=[],
        action="append",
        metavar="PATH_OR_NAME",
        help=f"{MODEL_HELP} (repeat it to offer several; default: the one model that the swarm serves)",
    )
    add_peers(command)
    add_http(command, port=GATEWAY_PORT, without_keys="all that reach the port may ask")
    add_metrics_keys(command, "what the API asks for")
    command.add_argument(
        "--cors-origin",
        type=comma_list,
        action="extend",
        default=None,
        metavar="ORIGIN",
        help="web pages of this origin may ask, such as https://example.org (repeatable; default: none)",
    )
    _add_limits(command)
    add_wire_codec(command)
    add_sideband(command)
    add_compute(command, "the heads' weights")
    add_wait(command)
    add_speculate(command)
    add_draft(command)
    add_drain(command, "requests")


def _add_limits(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--max-running",
        type=positive_int,
        default=64,
        metavar="N",
        help="answers that are made at the same time; others wait (default: %(default)s)",
    )
    command.add_argument(
        "--max-requests",
        type=positive_int,
        default=256,
        metavar="N",
        help="requests that are answered or wait; further ones get status 429 (default: %(default)s)",
    )
    command.add_argument(
        "--max-connections",
        type=positive_int,
        default=4096,
        metavar="N",
        help="open connections (default: %(default)s)",
    )
    command.add_argument(
        "--requests-per-minute",
        type=seconds,
        default=0.0,
        metavar="N",
        help="for one API key, or without keys for one address group; further ones get status 429 (default: "
        "no limit)",
    )
    command.add_argument(
        "--default-max-tokens",
        type=positive_int,
        default=1024,
        metavar="N",
        help="length of a chat answer whose request names none (default: %(default)s)",
    )
    command.add_argument(
        "--max-body-mib",
        type=above_zero,
        default=2.0,
        metavar="MIB",
        help="largest body of a request (default: %(default)s)",
    )
    command.add_argument(
        "--stall-seconds",
        type=above_zero,
        default=30.0,
        metavar="SECONDS",
        help="drop a stream whose reader takes nothing for this time (default: %(default)s)",
    )
