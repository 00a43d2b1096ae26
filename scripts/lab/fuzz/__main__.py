"""Hostile bytes for everything that reads what strangers send, and a report of what came of it.

Each target is a reader at work: frames of every protocol, records and all that is computed from them, files
of models, small models of every family with other settings and tensors, and, in one process over a network in
memory, a node, a client and the gateway. Inputs are made from valid ones: bytes, msgpack and JSON trees,
frames in another order. Whatever leads to a new place in the code is kept and changed further. A finding is:
an error that is not the reader's way to refuse, a death, a hang, an input that takes seconds of processor
time, memory that grows, an honest client that is no longer served; of models that open, a result that differs
between our kernels and torch, or from transformers'.

  scripts/fuzz                          a minute a target
  scripts/fuzz --minutes 60             an hour for all of them together
  scripts/fuzz --only records,gguf      some of them; --list names all
  scripts/fuzz --run records FILE       one input again, with its traceback

Inputs that found something are kept in build/fuzz. Exit code 0; 1: something was found; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

from ..command_line import add_json, console, count, names_of, positive, run_and_report, script_parser
from .campaign import Outcome, run_target
from .target import NAMES, target_named

KEPT = Path("build/fuzz")
NO_BOUND = 10**12


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    names = arguments.only
    seconds = 60.0 * (arguments.minutes or len(names)) / len(names)
    outcomes: list[Outcome] = []
    with Progress(console=console, transient=True) as progress:
        for name in names:
            task = progress.add_task(name, total=seconds)
            began = time.monotonic()

            def show(_: int, task: Any = task, began: float = began) -> None:
                progress.update(task, completed=time.monotonic() - began)

            outcomes.append(
                run_target(
                    name,
                    seed=f"{arguments.seed}/{name}",
                    seconds=seconds,
                    inputs=arguments.inputs,
                    keep=KEPT,
                    on_count=show,
                )
            )
            progress.remove_task(task)
    return {
        "seed": arguments.seed,
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "inputs": sum(outcome.inputs for outcome in outcomes),
        "targets": [outcome.as_dict() for outcome in outcomes],
        "findings": sum(len(outcome.findings) for outcome in outcomes),
    }


def show_report(report: dict[str, Any]) -> None:
    table = Table(title=f"seed {report['seed']}", title_justify="left")
    table.add_column("target")
    for heading in ("seconds", "inputs", "paths", "memory, MiB", "grown", "findings"):
        table.add_column(heading, justify="right")
    for target in report["targets"]:
        grown = target["memory"] - target["memory_at_warm_up"]
        table.add_row(
            target["target"],
            f"{target['seconds']:.0f}",
            f"{target['inputs']:,}",
            str(target["paths"]),
            f"{target['memory'] / 2**20:.0f}",
            f"{grown / 2**20:+.0f}" if target["memory_at_warm_up"] else "-",
            str(len(target["findings"])),
        )
    console.print(table)
    for target in report["targets"]:
        for finding in target["findings"]:
            last = (finding["error"].strip().splitlines() or [""])[-1]
            console.print(f"{finding['target']}: {finding['kind']}  {last[:300]!a}", markup=False)
            console.print(f"  scripts/fuzz --run {finding['target']} {finding['file']}", markup=False)
    console.print(f"{report['inputs']:,} inputs in {report['seconds']:.0f} s, {report['findings']} findings")


def run_again(name: str, path: str) -> int:
    """One input, in this process."""
    target = target_named(name)
    prepared = target.prepare()
    try:
        console.print(f"came to: {prepared.run(Path(path).read_bytes())}", markup=False)
    except target.refusals as error:
        console.print(f"refused: {type(error).__name__}: {error}", markup=False)
    finally:
        prepared.close()
    return 0


def main() -> int:
    parser = script_parser("fuzz", __doc__)
    parser.add_argument("--minutes", type=positive, help="for all targets together (default: one each)")
    parser.add_argument("--inputs", type=count, default=NO_BOUND, help="the most inputs for a target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=names_of(NAMES), default=list(NAMES), metavar="NAMES")
    add_json(parser)
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--run", nargs=2, metavar=("TARGET", "FILE"), help="run one input again")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(NAMES))
        return 0
    if arguments.run:
        if arguments.run[0] not in NAMES:
            parser.error(f"there is no target {arguments.run[0]!r}; --list names all")
        return run_again(*arguments.run)
    return run_and_report(
        lambda: measure(arguments), show_report, arguments.json, is_good=lambda report: not report["findings"]
    )


if __name__ == "__main__":
    sys.exit(main())
