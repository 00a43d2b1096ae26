"""The options of ``swarm-node gateway``."""

from __future__ import annotations

import argparse

from .shared.arguments import (
    MODEL_HELP,
    above_zero,
    add_compute,
    add_peers,
    add_speculate,
    add_wait,
    add_wire_codec,
    comma_list,
    port_number,
    positive_int,
    seconds,
)


def add_gateway(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        default=[],
        action="append",
        metavar="PATH_OR_NAME",
        help=f"{MODEL_HELP} (repeatable: offer several; default: the one that the swarm serves)",
    )
    add_peers(command)
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this computer only)"
    )
    command.add_argument(
        "--port", type=port_number, default=8000, help="TCP port, 0 takes a free one (default: %(default)s)"
    )
    command.add_argument(
        "--api-key-file",
        default=None,
        metavar="FILE",
        help="keys that may ask, one a line, # for comments (default: everybody who reaches the port may)",
    )
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
    add_compute(command, "the heads' weights")
    add_wait(command)
    add_speculate(command)
    command.add_argument(
        "--draft",
        default=None,
        metavar="PATH_OR_NAME",
        help="a small model that guesses, with the vocabulary of the one --model",
    )
    command.add_argument(
        "--drain-seconds",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long requests may finish after Ctrl-C or SIGTERM (default: %(default)s)",
    )


def _add_limits(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--max-running",
        type=positive_int,
        default=64,
        metavar="N",
        help="answers that are made at once; others wait (default: %(default)s)",
    )
    command.add_argument(
        "--max-requests",
        type=positive_int,
        default=256,
        metavar="N",
        help="requests that are answered or wait; more get 429 (default: %(default)s)",
    )
    command.add_argument(
        "--max-connections", type=positive_int, default=4096, metavar="N", help="default: %(default)s"
    )
    command.add_argument(
        "--requests-per-minute",
        type=seconds,
        default=0.0,
        metavar="N",
        help="of one API key, or of one address without keys; more get 429 (default: any number)",
    )
    command.add_argument(
        "--default-max-tokens",
        type=positive_int,
        default=1024,
        metavar="N",
        help="of a chat answer whose request names no length (default: %(default)s)",
    )
    command.add_argument(
        "--max-body-mib", type=above_zero, default=2.0, metavar="MIB", help="default: %(default)s"
    )
    command.add_argument(
        "--stall-seconds",
        type=above_zero,
        default=30.0,
        metavar="SECONDS",
        help="give up readers of a stream that take nothing for so long (default: %(default)s)",
    )
