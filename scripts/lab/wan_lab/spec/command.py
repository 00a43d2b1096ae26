"""``scripts/wan_lab spec``: its options, and what is shown."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from ...command_line import add_json, checked, count, names_of, run_and_report, without_problems
from ..units import rate, seconds
from .bench import SpecBench
from .cases import PARTS
from .tables import print_markdown, print_spec

RATES = "100mbit,20mbit"


def add_options(spec: argparse.ArgumentParser) -> None:
    spec.add_argument(
        "--parts", type=names_of(PARTS), default=list(PARTS), help=f"{', '.join(PARTS)}; default: all"
    )
    time = {"type": checked(seconds), "metavar": "TIME"}
    spec.add_argument(
        "--rates",
        type=checked(named_rates),
        default=named_rates(RATES),
        help=f"of each machine, each way (default: {RATES})",
    )
    spec.add_argument("--rtt", default=0.1, help="of every link (default: 100ms)", **time)
    spec.add_argument(
        "--prompt-rtt", default=0.02, help="of every link for the hundred prompts (default: 20ms)", **time
    )
    spec.add_argument("--repeat", type=count, help="rounds of each (default: 3, quick 1)")
    spec.add_argument("--wire-codec", default="int8", help="default: %(default)s")
    spec.add_argument(
        "--quick", action="store_true", help="shorter answers, one round, ten prompts, one rate"
    )
    spec.add_argument(
        "--llama-python", metavar="PYTHON", help="one that has llama-cpp-python, built with its RPC backend"
    )
    spec.add_argument("--markdown", action="store_true", help="the tables for docs/measurements.md, too")
    spec.add_argument("--from-json", type=Path, metavar="FILE", help="show the figures of an earlier run")
    add_json(spec)


def named_rates(text: str) -> list[tuple[str, float | None]]:
    """Raises ValueError."""
    return [(name.strip(), rate(name)) for name in text.split(",")]


def measure(arguments: argparse.Namespace) -> int:
    """The exit code: 1 where an answer was not the plain one."""
    run = partial(_read, arguments.from_json) if arguments.from_json else SpecBench(arguments).run
    return run_and_report(run, partial(_show, arguments.markdown), arguments.json, is_good=without_problems)


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def _show(markdown: bool, report: dict[str, Any]) -> None:
    print_spec(report)
    if markdown:
        print_markdown(report)
