"""What came out, for people: tables in the terminal, and the same as Markdown for docs/measurements.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from ...command_line import console


@dataclass(frozen=True, slots=True)
class Shown:
    """One table, every cell as text."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


def print_spec(report: dict[str, Any]) -> None:
    for shown in tables(report):
        table = Table(title=escape(shown.title), title_justify="left")
        for number, heading in enumerate(shown.headings):
            table.add_column(escape(heading), justify="right" if number else "left")
        for row in shown.rows:
            table.add_row(*map(escape, row))
        console.print()
        console.print(table)
    console.print(f"\n{said(report)}", markup=False)
    for problem in report["problems"]:
        console.print(f"failed: {problem}", markup=False)


def print_markdown(report: dict[str, Any]) -> None:
    """On standard output."""
    for shown in tables(report):
        print(f"\n{shown.title}:\n")
        print(f"| {' | '.join(shown.headings)} |")
        print("|" + "---|" * len(shown.headings))
        for row in shown.rows:
            print(f"| {' | '.join(row)} |")
    print(f"\n{said(report)}")


def said(report: dict[str, Any]) -> str:
    """What the tables mean, and how they were made."""
    return (
        "Bound: each token that nobody could guess costs a trip, each other one a row at the slowest stage; "
        "the trip is that of plain decoding, the row the fastest, of the same run. Every answer is compared "
        "with the plain one, token by token. "
        + ", ".join(f"{key} {value}" for key, value in report["conditions"].items())
    )


def tables(report: dict[str, Any]) -> Iterator[Shown]:
    """Those that there are figures for."""
    makers: dict[str, Callable[[Any], Shown]] = {
        "results": _speeds,
        "harmless": _harmless,
        "others": _others,
        "llama_cpp": _llama,
    }
    for name, make in makers.items():
        if report.get(name):
            yield make(report[name])
            if name == "results":
                yield _work(report[name])


def _arms(results: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for found in results:
        for arm in found["arms"]:
            yield found, arm


def _name(found: dict[str, Any], arm: dict[str, Any]) -> str:
    return f"{found['name']}: {arm['name']}"


def _speeds(results: Sequence[dict[str, Any]]) -> Shown:
    headings = (
        "",
        "rate",
        "tokens",
        "plain tok/s",
        "tok/s",
        "times",
        "bound",
        "share",
        "to reach",
        "same answer",
    )
    rows = [
        (
            _name(found, arm),
            found["rate_name"],
            str(found["tokens"]),
            f"{found['plain_tokens_per_s']:.2f}",
            f"{arm['tokens_per_s']:.1f}",
            _spread(arm["times"], arm["ratios"]),
            _or_none(arm.get("bound_times"), "{:.1f}"),
            _or_none(arm.get("share"), "{:.0%}"),
            _goal(arm),
            "yes" if found["identical"] else "NO",
        )
        for found, arm in _arms(results)
    ]
    return Shown("Speculation, times plain decoding", headings, rows)


def _work(results: Sequence[dict[str, Any]]) -> Shown:
    headings = (
        "",
        "rate",
        "trip ms",
        "row ms",
        "trips",
        "least",
        "tokens a trip",
        "law",
        "drafted",
        "accepted",
        "void rows",
        "rows a step",
    )
    rows = [
        (
            _name(found, arm),
            found["rate_name"],
            f"{1000 * found['trip_s']:.0f}",
            f"{1000 * found['row_s']:.2f}",
            f"{arm['trips']:.0f}",
            _or_none(arm.get("least_trips"), "{:.0f}"),
            f"{(found['tokens'] - 1) / arm['trips']:.1f}",
            _or_none(arm.get("law"), "{:.2f}"),
            *(f"{arm[name]:.0f}" for name in ("drafted", "accepted", "void_rows")),
            f"{arm['rows_a_step']:.1f}",
        )
        for found, arm in _arms(results)
    ]
    return Shown("What that took", headings, rows)


def _harmless(found: dict[str, Any]) -> Shown:
    headings = ("", "least", "tenth part below", "median", "below 0.97")
    rows = [
        (
            f"{found['prompts']} prompts, speculating",
            *(f"{found[name]:.2f}" for name in ("least", "tenth", "median")),
            str(found["below"]),
        ),
        (
            "by trips and rows alone",
            f"{found['counted_least']:.2f}",
            "",
            "",
            str(found["counted_below"]),
        ),
        (
            "plain again, to see what is noise",
            *(f"{found[f'noise_{name}']:.2f}" for name in ("least", "tenth")),
            "",
            str(found["noise_below"]),
        ),
    ]
    rows += [
        (kind, f"{each['least']:.2f}", "", f"{each['median']:.2f}", "")
        for kind, each in found["kinds"].items()
    ]
    where = f"{found['rtt_ms']:.0f} ms round trip, {1000 * found['trip_s']:.0f} ms a plain token"
    title = f"Prompts of ten kinds, {where}; times plain decoding"
    return Shown(title, headings, rows)


def _others(found: dict[str, Any]) -> Shown:
    rows = [
        (
            way,
            f"{speed:.2f}",
            f"{speed / found['tokens_per_s']['alone']:.2f}",
            f"{found['queue_ms_per_token'][way]:.1f}",
            _or_none(found["others_tokens_per_s"].get(way), "{:.2f}"),
        )
        for way, speed in found["tokens_per_s"].items()
    ]
    headings = (
        "a user who decodes plainly",
        "tok/s",
        "of alone",
        "queues, ms a token",
        "the four others, tok/s each",
    )
    return Shown(f"Other users: {found['times']:.2f} times beside plain ones", headings, rows)


def _llama(found: dict[str, Any]) -> Shown:
    rows = [
        (
            each["name"],
            each["rate_name"],
            str(each["tokens"]),
            f"{each['plain_tokens_per_s']:.2f}",
            f"{each['tokens_per_s']:.1f}",
            _spread(each["times"], each["ratios"]),
            f"{each['batches']:.0f}",
        )
        for each in found["results"]
    ]
    headings = ("", "rate", "tokens", "plain tok/s", "tok/s", "times", "batches")
    return Shown(f"llama.cpp {found['version']} over its RPC backend, the same links", headings, rows)


def _goal(arm: dict[str, Any]) -> str:
    if not arm["goal"]:
        return ""
    return f"{arm['goal']:g}" + ("" if arm["reached"] else ", missed")


def _spread(middle: float, values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{middle:.2f}"
    return f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})"


def _or_none(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
