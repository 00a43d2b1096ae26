"""The options of ``swarm-node dashboard``. Apart from ``dashboard.py``, so that help imports no client."""

from __future__ import annotations

import argparse

from ..shared.arguments import add_http, add_peers

DASHBOARD_PORT = 8001
DASHBOARD_EXAMPLES = """\
examples:
  swarm-node dashboard                                    the swarm of this local network
  swarm-node dashboard --initial-peers ADDR
  swarm-node dashboard --initial-peers ADDR --host 0.0.0.0 --api-key-file keys.txt
  swarm-node serve --model PATH --dashboard               the same beside a node, with what it has done
  swarm-node gateway --model PATH                         a gateway has it at /swarm
"""


def add_dashboard(command: argparse.ArgumentParser) -> None:
    add_peers(command)
    add_http(command, port=DASHBOARD_PORT, without_keys="none, and this computer only")
