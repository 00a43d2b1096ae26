"""Weights from one peer that has a model to some that have nothing, over p2pd on 127.0.0.1.

  scripts/study lan_weights --model PATH               one cold peer, then three at once, that want all of it
  scripts/study lan_weights --model PATH --want spans  each wants its own part of the blocks
  scripts/study lan_weights --model PATH --cold 1 3 6 --link-mbit 1000     the origin may send 1 Gbit/s

Every peer is a process of its own with a libp2p daemon of its own. They share this machine's cores, so that
rates are lower bounds of what machines of their own would do.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from ...lab.command_line import add_json, console, run_and_report, script_parser
from ...lab.processes.event_process import stop_all
from ...lab.processes.worker import Worker


def measure(arguments: argparse.Namespace, cold: int) -> dict[str, Any]:
    """One origin and ``cold`` peers that begin at the same moment."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        peers: list[Worker] = []
        stack.callback(lambda: stop_all(peers))
        for home, model in (("origin", arguments.model), *((f"cold-{number}", "") for number in range(cold))):
            options = {"home": f"{folder}/{home}", "model_file": model, "mbit": arguments.link_mbit}
            peers.append(Worker("scripts.studies.lan_weights.peer:share_or_fetch", **options))
        origin = peers[0]
        ready = [peer.wait_for("ready") for peer in peers]
        model = ready[0]
        nodes = [{"peer_id": peer["peer_id"], "maddrs": peer["maddrs"]} for peer in ready]
        for number, peer in enumerate(peers[1:]):
            blocks = [0, model["n_blocks"]]
            if arguments.want == "spans":
                blocks = [model["n_blocks"] * (number + part) // cold for part in (0, 1)]
            plan = {"root": model["root"], "ref": model["ref"], "nodes": nodes, "blocks": blocks}
            peer.order(**plan, client=arguments.want == "all")
        fetched = [peer.wait_for("fetched") for peer in peers[1:]]
        origin.order()
        sent = origin.wait_for("sent")["bytes"]
    got = [sum(peer["bytes_by_source"].values()) for peer in fetched]
    slowest = max(peer["seconds"] for peer in fetched)
    return {
        "cold": cold,
        "model_bytes": model["bytes"],
        "hashing_s": model["hashing_s"],
        "seconds": slowest,
        "fetched_bytes": sum(got),
        "origin_bytes": sent,
        "origin_copies": sent / model["bytes"],
        "mb_per_s": sum(got) / slowest / 1e6,
        "wasted_bytes": sum(peer["wasted_bytes"] for peer in fetched),
    }


def show(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['model']}, each wants {report['want']}")
    for heading in ("cold peers", "until the last has it", "MB/s, all together", "left the origin", "twice"):
        table.add_column(heading, justify="right")
    for run in report["runs"]:
        table.add_row(
            str(run["cold"]),
            f"{run['seconds']:.2f} s",
            f"{run['mb_per_s']:.0f}",
            f"{run['origin_bytes'] / 1e6:.1f} MB, {run['origin_copies']:.3f} of the model",
            f"{run['wasted_bytes'] / 1e6:.1f} MB",
        )
    console.print(table)


def main() -> int:
    parser = script_parser("study lan_weights", __doc__)
    parser.add_argument("--model", required=True, metavar="PATH", help="a GGUF file or HuggingFace directory")
    parser.add_argument("--cold", type=int, nargs="+", default=[1, 3], metavar="N", help="default: 1 3")
    parser.add_argument("--want", choices=("all", "spans"), default="all", help="default: %(default)s")
    parser.add_argument(
        "--link-mbit", type=float, default=None, help="what each peer may send (default: all)"
    )
    add_json(parser)
    arguments = parser.parse_args()

    def run() -> dict[str, Any]:
        runs = [measure(arguments, cold) for cold in arguments.cold]
        return {"model": Path(arguments.model).name, "want": arguments.want, "runs": runs}

    return run_and_report(run, show, arguments.json)
