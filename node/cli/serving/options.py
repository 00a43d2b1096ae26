"""The options of the commands that run a node: ``swarm-node bootstrap`` and ``swarm-node serve``.

Apart from ``serve.py``, so that help and a wrong option need none of what that imports.
"""

from __future__ import annotations

import argparse

from ....shards.models.devices import DEVICES
from ....swarm.timeouts import SLOW_WAY_BYTES_PER_S
from ....swarm.transport.addresses import EVERY_INTERFACE
from ....swarm.transport.direct_maddrs import PORT_ABOVE
from ....swarm.transport.limited import BYTES_PER_MBIT
from ....swarm.types import MAX_NODE_NAME
from ...config import KERNELS, KV_DTYPES
from ...volunteering.hours import Hours
from ..dashboard.options import DASHBOARD_PORT
from ..metrics.options import add_metrics
from ..shared.arguments import (
    MODEL_HELP,
    above_zero,
    add_cache_size,
    add_compute,
    add_drain,
    add_memory,
    add_peers,
    add_port,
    blocks,
    comma_list,
    count,
    port_number,
    positive_int,
    share,
)

BOOTSTRAP_PORT = 31330
"""The port of a bootstrap node by default. It is fixed, so that its address survives a restart."""

LEAST_MBIT = round(SLOW_WAY_BYTES_PER_S / BYTES_PER_MBIT)
"""Megabits a second. With less a node misses the deadlines of its peers."""

BOOTSTRAP_EXAMPLES = f"""\
examples:
  swarm-node bootstrap                                listen on port {BOOTSTRAP_PORT} of every interface
  swarm-node bootstrap --host 127.0.0.1 --port 0      this machine only, any free port
  swarm-node bootstrap --relay                        a relay for nodes behind NAT as well
  swarm-node bootstrap --announce /dns4/swarm.example.org/tcp/{BOOTSTRAP_PORT}
"""
SERVE_EXAMPLES = """\
examples:
  swarm-node serve --model ./SmolLM2-135M-Instruct.Q4_1.gguf --blocks 0-14 --initial-peers ADDR
  swarm-node serve --model HuggingFaceTB/SmolLM2-135M-Instruct --initial-peers ADDR --memory 8GiB
  swarm-node serve --model ./model --blocks 10:20 --device cuda --initial-peers ADDR
  swarm-node serve --model ./model --initial-peers ADDR --relay ADDR     behind NAT: reached through ADDR
  swarm-node serve --model ./model --threads 4 --kv-dtype int8 --kv-cache-tokens 65536

Without --initial-peers the node looks for peers on the local network, and starts a swarm if there is none.
Without --blocks it chooses the blocks that help the swarm most, and chooses again when the swarm changes.
After Ctrl-C it takes no new sessions, gives running ones --drain-seconds, and withdraws its announcement.
"""


def _add_listen(command: argparse.ArgumentParser, *, port: int) -> None:
    command.add_argument(
        "--host",
        default=EVERY_INTERFACE,
        metavar="IP",
        help="address to listen on: 127.0.0.1 or ::1 for this machine only, 0.0.0.0 or :: for all of IPv4 or "
        "of IPv6 (default: any, which is all of both)",
    )
    add_port(command, port)
    command.add_argument(
        "--announce",
        metavar="MADDR",
        type=comma_list,
        action="extend",
        default=None,
        help="address to announce instead of those that were found, as behind a port forwarding (repeatable)",
    )
    command.add_argument(
        "--identity",
        metavar="FILE",
        default=None,
        help="Ed25519 key file, created with mode 0600 when missing (default: one in ~/.swarm-node, or in "
        "$SWARM_NODE_HOME, that no other process here uses)",
    )


def add_bootstrap(command: argparse.ArgumentParser) -> None:
    _add_listen(command, port=BOOTSTRAP_PORT)
    add_peers(command)
    command.add_argument(
        "--relay",
        action="store_true",
        help="also pass on connections to nodes that cannot be dialled; for a host with a public address",
    )
    add_metrics(command)


def add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--name",
        default="",
        metavar="TEXT",
        help=f"what others see beside this node's id: {MAX_NODE_NAME} printable characters at most "
        "(default: no name)",
    )
    command.add_argument("--model", default="", metavar="PATH_OR_NAME", help=MODEL_HELP)
    command.add_argument(
        "--models",
        type=comma_list,
        action="extend",
        default=None,
        metavar="any|NAME,...",
        help="while this machine is idle, load one of these models when clients ask for it; any: every model "
        "that is on this machine or shared by peers",
    )
    command.add_argument(
        "--blocks",
        type=blocks,
        default="auto",
        metavar="SPAN",
        help="blocks to serve: 0-20 (inclusive), 0:21 (half-open), 7 or all; auto: the node chooses the "
        "blocks that help the swarm most, and chooses again when the swarm changes (default: %(default)s)",
    )
    add_memory(command)
    add_peers(command)
    _add_listen(command, port=0)
    command.add_argument(
        "--relay",
        metavar="ADDR",
        type=comma_list,
        action="extend",
        default=None,
        help="for a node behind NAT or a firewall: the address of a `bootstrap --relay` through which others "
        "reach it (repeatable)",
    )
    command.add_argument(
        "--direct-port",
        type=port_number,
        default=None,
        metavar="N",
        help="TCP port of the node's own listener, which others dial without daemons; 0 takes a free one "
        f"(default: --port plus {PORT_ABOVE}, or a free one)",
    )
    command.add_argument(
        "--announce-direct",
        metavar="MADDR",
        type=comma_list,
        action="extend",
        default=None,
        help="address of that listener to announce instead of those that were found (repeatable); with "
        "--announce and without this, the node has no such listener",
    )
    command.add_argument(
        "--no-direct",
        dest="direct",
        action="store_false",
        help="only through daemons: neither have such a listener nor dial those of others",
    )
    command.add_argument(
        "--device",
        default="auto",
        choices=DEVICES,
        help="what computes; auto is MLX on an Apple Silicon Mac, else the CPU (default: %(default)s)",
    )
    add_compute(command, "block weights")
    command.add_argument(
        "--kernels",
        default="auto",
        choices=KERNELS,
        help="what computes: native (C, compiled for this CPU once), fast (also rounds activations to 8 "
        "bits) or torch; auto takes the fastest that loses nothing",
    )
    command.add_argument(
        "--deterministic",
        action="store_true",
        help="compute a token to the same bits, whatever is computed beside it and however its prompt is "
        "cut, so that a repair changes no answer; checked at the start",
    )
    command.add_argument(
        "--dashboard",
        nargs="?",
        type=port_number,
        const=DASHBOARD_PORT,
        default=None,
        metavar="PORT",
        help="show the swarm and what this node has done in a browser, to this computer only; without PORT "
        f"at {DASHBOARD_PORT}, 0 takes a free one (default: none)",
    )
    _add_cache(command)
    _add_sharing(command)
    _add_weights(command)
    _add_volunteering(command)
    add_metrics(command)
    add_drain(command, "running sessions")
    command.add_argument(
        "--until-eof",
        action="store_true",
        help="end as after Ctrl-C when standard input ends, too: for a program that starts a node",
    )


def _add_cache(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--kv-cache-tokens",
        type=positive_int,
        default=None,
        metavar="N",
        help="tokens of KV cache over all sessions, in whole pages (default: measured from free memory)",
    )
    command.add_argument(
        "--kv-dtype",
        default="auto",
        choices=KV_DTYPES,
        help="how keys and values are held; auto: float32 with --dtype float32, else 16 bits; int8 halves "
        "those at a small loss",
    )
    command.add_argument(
        "--no-prefix-cache",
        dest="prefix_cache",
        action="store_false",
        help="forget a session's pages at its end; otherwise they are kept for a session of the same client "
        "that begins the same way",
    )
    command.add_argument(
        "--journal-mib",
        type=count,
        default=256,
        metavar="MIB",
        help="memory for the journal: what sessions sent to their next hop, kept for its replacement if it "
        "dies; 0 keeps none (default: %(default)s)",
    )


def _add_sharing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--prefill-target-ms",
        type=above_zero,
        default=25.0,
        metavar="MS",
        help="milliseconds that one slice of a client's prompt may add to the time between two tokens of the "
        "others (default: %(default)s)",
    )
    command.add_argument(
        "--max-sessions-per-peer",
        type=positive_int,
        default=64,
        metavar="N",
        help="sessions that one peer may have open (default: %(default)s)",
    )
    command.add_argument(
        "--max-kv-share-per-peer",
        type=share,
        default=1.0,
        metavar="PART",
        help="part of the KV cache that one peer may hold while nobody else wants any; if others wait, each "
        "peer gets an equal part (default: %(default)s)",
    )
    command.add_argument(
        "--idle-session-seconds",
        type=above_zero,
        default=600.0,
        metavar="SECONDS",
        help="drop a session after this time without use; its client can open it again (default: "
        "%(default)s)",
    )


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--share-weights",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="give the model's files to peers that ask for them (default: only if all addresses of this node "
        "are private)",
    )
    command.add_argument(
        "--weights-bandwidth",
        type=above_zero,
        default=None,
        metavar="MBIT",
        help="megabits a second that weights may take, in each direction (default: no bound)",
    )
    add_cache_size(command)


def _add_volunteering(command: argparse.ArgumentParser) -> None:
    """What the node may take of the line, and when it serves. It drains and rests at other times, and serves
    again by itself."""
    for way, does in (("up", "sends to"), ("down", "takes from")):
        command.add_argument(
            f"--bandwidth-{way}",
            type=bandwidth,
            default=None,
            metavar="MBIT",
            help=f"megabits a second that the node {does} all peers together, activations and weights; "
            f"{LEAST_MBIT} at least (default: no bound)",
        )
    command.add_argument(
        "--hours",
        type=hours,
        action="extend",
        default=None,
        metavar="FROM-TO",
        help="serve at these hours of the day only, such as 22:00-07:00 (repeatable, or with commas)",
    )
    command.add_argument(
        "--only-idle",
        action="store_true",
        help="serve only while nobody uses the machine: other programs take little of its processors, and "
        "nobody types",
    )
    command.add_argument(
        "--only-mains", action="store_true", help="serve only while the machine does not run on its battery"
    )
    command.add_argument(
        "--max-temperature",
        type=above_zero,
        default=None,
        metavar="DEGREES",
        help="rest when a sensor of the machine shows this many degrees Celsius",
    )
    command.add_argument(
        "--nice",
        type=niceness,
        default=0,
        metavar="N",
        help="let other programs go first: 1 a little, 19 as much as can be (default: %(default)s)",
    )


def bandwidth(text: str) -> float:
    """Megabits a second."""
    value = above_zero(text)
    if value < LEAST_MBIT:
        raise argparse.ArgumentTypeError(
            f"with {text} Mbit/s a node is slower than peers wait for; give {LEAST_MBIT} or more"
        )
    return value


def hours(text: str) -> list[Hours]:
    """``22:00-07:00,12-13``."""
    return [Hours.parse(part) for part in text.split(",")]


def niceness(text: str) -> int:
    if text.isdecimal() and int(text) <= 19:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 19")
