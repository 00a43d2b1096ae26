"""``scripts/wan_lab spec``: its options, and what is shown."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
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
    spec.add_argument(
        "--from-json", type=Path, nargs="+", metavar="FILE", help="show the figures of earlier runs, as one"
    )
    add_json(spec)


def named_rates(text: str) -> list[tuple[str, float | None]]:
    """Raises ValueError."""
    return [(name.strip(), rate(name)) for name in text.split(",")]


def measure(arguments: argparse.Namespace) -> int:
    """The exit code: 1 where an answer was not the plain one."""
    run = partial(merged, arguments.from_json) if arguments.from_json else SpecBench(arguments).run
    return run_and_report(run, partial(_show, arguments.markdown), arguments.json, is_good=without_problems)


def merged(files: Sequence[Path]) -> dict[str, Any]:
    """Reports of different parts as one. Where two have the same part, the later file counts, but for lists,
    which are joined. ``conditions`` are the last one's, with the seconds of all. Raises OSError,
    ValueError."""
    whole: dict[str, Any] = {}
    for report in map(_report, files):
        before = whole.get("conditions", {}).get("seconds", 0.0)
        for name, value in report.items():
            whole[name] = whole.get(name, []) + value if isinstance(value, list) else value
        whole["conditions"]["seconds"] += before
    return whole


def _report(file: Path) -> dict[str, Any]:
    try:
        report = json.loads(file.read_text())
    except ValueError:
        report = None
    if not isinstance(report, dict) or not report.keys() >= {"conditions", "results", "problems"}:
        raise ValueError(f"{file} is no report of scripts/wan_lab spec --json")
    return report


def _show(markdown: bool, report: dict[str, Any]) -> None:
    print_spec(report)
    if markdown:
        print_markdown(report)
