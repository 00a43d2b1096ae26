"""What speculative decoding brings on a route with a round trip."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...lab.command_line import add_json, console, count, positive, run_and_report, script_parser
from ...lab.processes.worker import run_in_process
from ...lab.prompts import MODEL
from .prompts import PROMPTS
from .simulated_table import reaches, show_simulated, simulated

DESCRIPTION = """\
Answers prompts through two real nodes in one process, over an in-memory network with a round trip,
plain and with speculative decoding in turns, and compares tokens a second. Prompts that ask for
text that is there already (a code edit, a summary with quotes, an answer from documents), prompts
that do not, greedy and sampled; and a draft model's part played by the plain answer itself, made
wrong one time in five. Every answer must be the plain one, token for token. With --simulate: what a
client decides over simulated links and hops, in virtual time, in some seconds.
"""
LEAST = {"repetitive": 1.5, "plain": 0.95, "draft": 2.5}
"""Times plain decoding that each group must reach: on average; plain texts, each by itself."""


def main() -> int:
    options = parse_arguments()
    if options.simulate:
        return run_and_report(simulated, show_simulated, options.json, is_good=reaches)

    def run() -> dict[str, Any]:
        given = {
            "model": str(options.model),
            "draft": str(options.draft) if options.draft else None,
            "round_trip_ms": options.round_trip,
            "new_tokens": options.new_tokens,
            "repeat": options.repeat,
            "threads": options.threads,
            "wire_codec": options.wire_codec,
        }
        answers: list[dict[str, Any]] = []
        for which, (group, name, _, _) in enumerate(PROMPTS):
            console.print(f"{group}: {name} ...", markup=False)
            answers += run_in_process("scripts.studies.speculation.measure:measure", which=which, **given)
        return {**given, "answers": answers}

    def is_good(report: dict[str, Any]) -> bool:
        problems = failures(report)
        for problem in problems:
            console.print(f"failed: {problem}", markup=False)
        return not problems

    return run_and_report(run, show, options.json, is_good=is_good)


def show(report: dict[str, Any]) -> None:
    print(
        f"\n{report['model']}, two hops, {report['round_trip_ms']:.0f} ms on the way, "
        f"{report['new_tokens']} tokens, median of {report['repeat']}:\n"
    )
    print(
        "| group | prompt | plain tokens/s | speculative | times | passes | drafted | accepted | drafting |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for each in report["answers"]:
        cells = [
            each["group"],
            each["name"],
            f"{each['plain_tokens_per_s']:.1f}",
            f"{each['tokens_per_s']:.1f}",
            f"{each['times']:.2f} ({min(each['ratios']):.2f} to {max(each['ratios']):.2f})",
            *(f"{each[name]:.0f}" for name in ("passes", "drafted", "accepted")),
            f"{each['draft_s']:.2f} s",
        ]
        print("| " + " | ".join(cells) + " |")
    for group, times in by_group(report).items():
        print(f"\n{group}: {sum(times) / len(times):.2f} times plain decoding, least {min(times):.2f}")


def by_group(report: dict[str, Any]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for each in report["answers"]:
        groups.setdefault(each["group"], []).append(each["times"])
    return groups


def failures(report: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    wrong = [f"{each['name']}: not the plain answer" for each in report["answers"] if not each["identical"]]
    for group, times in by_group(report).items():
        reached = min(times) if group == "plain" else sum(times) / len(times)
        if group in LEAST and reached < LEAST[group]:
            wrong.append(f"{group}: {reached:.2f} times plain decoding, not {LEAST[group]}")
        if min(times) < LEAST["plain"]:
            wrong.append(f"{group}: {min(times):.2f} times plain decoding on one prompt")
    return wrong


def parse_arguments() -> argparse.Namespace:
    parser = script_parser("study speculation", DESCRIPTION)
    parser.add_argument("--model", type=Path, default=MODEL, help="default: %(default)s")
    parser.add_argument("--draft", type=Path, default=None, help="a real draft model, measured as well")
    parser.add_argument(
        "--round-trip",
        type=positive,
        default=50.0,
        metavar="MS",
        help="from this client through both hops and back, in all (default: %(default)s)",
    )
    parser.add_argument("--new-tokens", type=count, default=128, help="of each answer (default: %(default)s)")
    parser.add_argument("--repeat", type=count, default=3, help="of each way (default: %(default)s)")
    parser.add_argument("--simulate", action="store_true", help="simulated routes, in virtual time, instead")
    parser.add_argument("--threads", type=count, default=1, help="of each node (default: %(default)s)")
    parser.add_argument("--wire-codec", default="int8", help="default: %(default)s")
    add_json(parser)
    return parser.parse_args()
