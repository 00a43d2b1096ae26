"""What scripts share on the command line: options, tables or JSON, exit codes, and never a traceback."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .processes.child import ProcessFailedError

Report = dict[str, Any]
LOG_COLUMNS = 150
"""Width of tables that go into a file."""

console = Console(
    stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else LOG_COLUMNS
)


def script_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """For ``scripts/NAME``; the description is shown as it is written."""
    return argparse.ArgumentParser(
        prog=f"scripts/{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option whose value ``run_and_report`` takes."""
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE (- is standard output)")


def positive(text: str) -> float:
    """Type of an option: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def count(text: str) -> int:
    """Type of an option: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def names_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Type of an option: some of the ``known`` names, separated by commas."""

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return names

    return parse


def checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Type of an option: ``parse``, whose ValueError is shown as it is."""

    def type_(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return type_


def say(text: str) -> None:
    """What happens now, for people."""
    console.print(f"  {text}", style="dim", markup=False)


def end_by_exception() -> None:
    """A SIGTERM must end the children too: turned into the exception that closes their swarm."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def without_problems(report: Report) -> bool:
    return not report["problems"]


def run_and_report(
    run: Callable[[], Report],
    show: Callable[[Report], None],
    json_to: str | None,
    *,
    is_good: Callable[[Report], bool] = lambda report: True,
    errors: Sequence[type[Exception]] = (),
) -> int:
    """Print the report, and write it to the file ``json_to`` (- is standard output). Returns the exit code: 1
    for a report that is not good, a child that failed or one of ``errors``, and 130 for a Ctrl-C."""
    end_by_exception()
    try:
        report = run()
    except KeyboardInterrupt:
        return 130
    except (ProcessFailedError, *errors) as error:
        console.print(f"error: {error}", markup=False)
        return 1
    show(report)
    text = json.dumps(report, indent=2) + "\n"
    if json_to == "-":
        sys.stdout.write(text)
    elif json_to:
        Path(json_to).write_text(text)
    return 0 if is_good(report) else 1
