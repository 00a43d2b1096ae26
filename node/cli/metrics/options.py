"""The options of the figures and the health of a node."""

from __future__ import annotations

import argparse

from ..shared.arguments import port_number


def add_metrics(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--metrics",
        type=port_number,
        default=None,
        metavar="PORT",
        help="serve /metrics for Prometheus, /health and /ready on this port, 0 takes a free one (default: "
        "none)",
    )
    command.add_argument(
        "--metrics-host",
        default="127.0.0.1",
        metavar="IP",
        help="address of that port (default: %(default)s, this computer only)",
    )
    add_metrics_keys(command, "none, and this computer only")


def add_metrics_keys(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--metrics-key-file",
        default=None,
        metavar="FILE",
        help=f"file of keys, one a line, of which /metrics asks for one (default: {default})",
    )
