"""What failing servers cost: steps/s of a generation when each server fails with some probability per step.

The table of the Petals paper (Borzunov et al., 2023, "Distributed Inference and Fine-tuning of Large Language
Models over the Internet"): failure rates 0, 1e-4, 1e-3 and 1e-2 per server and step, sequences of 128 and
1024 steps. "repair" is what this project does: another server takes over and the answer goes on. "restart" is
a client that throws the answer away and begins it anew; the time that the repair took is not counted there.

A failing server loses every stream at once, as in a crash, and its process stays, so that a table takes
minutes: it may serve again when the client trusts it again. Every finished answer must have the tokens of the
undisturbed one.

A cell is answers of its length, one after another, until its time is over; an answer that has begun by then
is finished. Steps per second count the steps of complete answers over all the time up to the last of them, so
that what a restart throws away is paid for, and so is every repair. In a cell where no answer was complete in
the time limit, the speed is unknown, and below what is told. Failures are drawn by each server for itself,
from the seed, whenever it sends the output of a step; all cells are of one run, one after another, on the
same servers.

  scripts/study failure_rates                          SmolLM2 in float32, 2 spans, 3 servers each
  scripts/study failure_rates --quick                  shorter cells: minutes for the whole table
  scripts/study failure_rates --model tiny --json -    random weights: only the network's part of a step

Exit code 0: every finished answer was right; 1: one was not; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from ...lab.command_line import add_json, console, run_and_report, script_parser, without_problems
from ...lab.local_swarm import LocalSwarm, split_evenly
from ...lab.processes.fork_server import ForkServer
from ...lab.processes.worker import Worker
from ...lab.prompts import BLOCKS, MODEL
from ...lab.tiny_model import BLOCKS as TINY_BLOCKS
from ...lab.tiny_model import write_tiny_model

RATES = (0.0, 1e-4, 1e-3, 1e-2)
STEPS = (128, 1024)
KV_TOKENS = 8192
SECONDS, QUICK_SECONDS = 15.0, 4.0
LIMIT_S, QUICK_LIMIT_S = 60.0, 10.0
LEARN_S = 600.0
MARGIN_S = 120.0
"""More than a cell's limit: an answer may wait for a route."""


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    tiny = arguments.model == "tiny"
    with tempfile.TemporaryDirectory(prefix="swarm-failures-") as folder:
        model = str(write_tiny_model(Path(folder)) if tiny else arguments.model)
        spans = split_evenly(TINY_BLOCKS if tiny else BLOCKS, arguments.spans)
        options = ["--threads", "1", "--kv-cache-tokens", str(KV_TOKENS)]
        environment = {"OMP_NUM_THREADS": "1"}
        with (
            ForkServer(environment) as fork_server,
            LocalSwarm(
                model,
                spans * arguments.replicas,
                serve_options=[*options, "--quantize", "none", "--dtype", "float32"],
                environment=environment,
                overrides={},
                launch=fork_server.launch,
            ) as swarm,
        ):
            client = Worker(
                "scripts.studies.failure_rates.client:measure_cells",
                model=model,
                initial_peers=swarm.initial_peers,
                environment=environment,
                launch=fork_server.launch,
            )
            try:
                cells = _cells(arguments, swarm, client)
            finally:
                client.stop()
    wrong = sum(cell["wrong"] for cell in cells)
    return {
        "model": "tiny" if tiny else Path(model).name,
        "spans": arguments.spans,
        "replicas": arguments.replicas,
        "seed": arguments.seed,
        "limit_s": arguments.limit,
        "cells": cells,
        "problems": [f"{wrong} answers differ from the undisturbed ones"] if wrong else [],
    }


def _cells(arguments: argparse.Namespace, swarm: LocalSwarm, client: Worker) -> list[dict[str, Any]]:
    client.wait_ready()
    cells = []
    for steps in arguments.steps:
        client.order(learn=steps)
        client.wait_for("learnt", timeout=LEARN_S)
        for rate in arguments.rates:
            for restart in (False, True):
                before = _crashes(swarm)
                for number, node in enumerate(swarm.nodes):
                    node.tell(f"crashes {rate} {arguments.seed + number}")
                client.order(steps=steps, restart=restart, seconds=arguments.seconds, limit=arguments.limit)
                measured = client.wait_for("cell", timeout=arguments.limit + MARGIN_S)
                for node in swarm.nodes:
                    node.tell("crashes 0 0")
                cell = {
                    **{name: value for name, value in measured.items() if name != "event"},
                    "rate": rate,
                    "steps": steps,
                    "policy": "restart" if restart else "repair",
                    "failures": _crashes(swarm) - before,
                }
                cells.append(cell)
                console.print(f"[dim]{describe(cell, arguments.limit)}[/]")
    return cells


def _crashes(swarm: LocalSwarm) -> int:
    return sum(node.statistics()["crashes"] for node in swarm.nodes)


def describe(cell: dict[str, Any], limit_s: float) -> str:
    """One cell, for people who wait."""
    what = f"{cell['steps']} steps, rate {cell['rate']:g}, {cell['policy']}: "
    if not cell["finished"]:
        return what + f"none complete in {limit_s:g} s, the longest had {cell['longest']} steps"
    return what + (
        f"{cell['steps_per_s']:.1f} steps/s, {cell['finished']} of {cell['attempts']} complete, "
        f"{cell['failures']} failures"
    )


def show(report: dict[str, Any]) -> None:
    steps = sorted({cell["steps"] for cell in report["cells"]})
    table = Table(
        title=f"steps/s, {report['model']} in float32, {report['spans']} spans, "
        f"{report['replicas']} servers each, 127.0.0.1",
        title_justify="left",
    )
    table.add_column("failures per server and step", justify="right")
    for length in steps:
        for policy in ("repair", "restart"):
            table.add_column(f"{length} steps, {policy}", justify="right")
    by_place = {(cell["rate"], cell["steps"], cell["policy"]): cell for cell in report["cells"]}
    for rate in sorted({cell["rate"] for cell in report["cells"]}):
        row = [shown(by_place[rate, length, policy]) for length in steps for policy in ("repair", "restart")]
        table.add_row(f"{rate:g}", *row)
    console.print(table)
    console.print(
        "Failures are crashes of a server's connections, while its process stays. In brackets: failures "
        f"during the measurement. 'never': no answer was complete within {report['limit_s']:g} s."
    )
    for problem in report["problems"]:
        console.print(f"[bold red]{problem}[/]")


def shown(cell: dict[str, Any]) -> str:
    """A cell of the table."""
    speed = f"{cell['steps_per_s']:.1f}" if cell["finished"] else "never"
    return f"{speed} ({cell['failures']})"


def parse(words: list[str]) -> argparse.Namespace:
    parser = script_parser("study failure_rates", __doc__)
    parser.add_argument("--model", default=str(MODEL), help="a .gguf file, or tiny: random weights")
    parser.add_argument("--spans", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--replicas", type=int, default=3, help="servers of each (default: %(default)s)")
    parser.add_argument("--rates", type=_list_of(float), default=RATES, help="default: 0,1e-4,1e-3,1e-2")
    parser.add_argument("--steps", type=_list_of(int), default=STEPS, help="default: 128,1024")
    parser.add_argument("--quick", action="store_true", help="less time for each cell")
    parser.add_argument(
        "--seconds", type=float, help=f"of a cell (default: {SECONDS:g}, with --quick {QUICK_SECONDS:g})"
    )
    parser.add_argument(
        "--limit",
        type=float,
        help=f"seconds for a first answer (default: {LIMIT_S:g}, with --quick {QUICK_LIMIT_S:g})",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the failures (default: %(default)s)")
    add_json(parser)
    parsed = parser.parse_args(words)
    parsed.seconds = parsed.seconds or (QUICK_SECONDS if parsed.quick else SECONDS)
    parsed.limit = parsed.limit or (QUICK_LIMIT_S if parsed.quick else LIMIT_S)
    if not all(0 <= rate < 1 for rate in parsed.rates) or not all(steps >= 1 for steps in parsed.steps):
        parser.error("rates are from 0 to below 1, steps 1 or more")
    return parsed


def _list_of(kind: type[int] | type[float]) -> Any:
    def read(text: str) -> tuple[int | float, ...]:
        try:
            return tuple(kind(each) for each in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} are no numbers with commas between") from None

    return read


def main() -> int:
    arguments = parse(sys.argv[1:])
    return run_and_report(lambda: run(arguments), show, arguments.json, is_good=without_problems)
