"""How often batching and repairs change a greedy answer."""

from __future__ import annotations

import argparse
import math
import os
from typing import Any

from ...lab.command_line import add_json, console, run_and_report, script_parser
from ...lab.processes.worker import run_in_process
from ...lab.prompts import MODEL

DESCRIPTION = """\
Answers the same prompts three times over two hops in one process: undisturbed; with other batches
and prompts cut otherwise; and with the second hop replaced in mid-answer by one that is fed what
the lost one had been sent. Counts the answers that are not the undisturbed one's, for each way to
compute. With --deterministic kernels none may differ.

With --cost instead: the time of steps with --deterministic and without, in turns.
"""
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "int8": {"quantize": "int8"},
    "fast": {"kernels": "fast"},
    "torch int4": {"kernels": "torch"},
    "torch int8": {"kernels": "torch", "quantize": "int8"},
    "torch bfloat16": {"dtype": "bfloat16", "quantize": "none"},
    "deterministic torch int4": {"kernels": "torch", "deterministic": True},
    "deterministic torch bfloat16": {"dtype": "bfloat16", "quantize": "none", "deterministic": True},
}
"""What each row of the table is loaded with."""
COSTS: dict[str, dict[str, Any]] = {
    "native int4": {},
    "torch int4": {"kernels": "torch"},
    "torch int8": {"kernels": "torch", "quantize": "int8"},
    "torch bfloat16": {"dtype": "bfloat16", "quantize": "none"},
    "torch float32": {"kernels": "torch", "dtype": "float32", "quantize": "none"},
}
"""What --cost loads, with --deterministic and without."""
Z = 1.96
"""Standard errors of a 95 % interval."""


def main() -> int:
    options = parse_arguments()
    return show_cost(options) if options.cost else count_changes(options)


def show_cost(options: argparse.Namespace) -> int:
    def run() -> dict[str, Any]:
        found = {}
        for way, loaded in COSTS.items():
            console.print(f"{way} ...", markup=False)
            found[way] = run_in_process(
                "scripts.studies.divergence.cost:measure",
                model=str(options.model),
                options=loaded,
                threads=options.threads,
            )
        return {"model": str(options.model), "threads": options.threads, "cost": found}

    return run_and_report(run, show_costs, options.json)


def show_costs(report: dict[str, Any]) -> None:
    loads = list(next(iter(report["cost"].values()))["loads"])
    print("| without | with | " + " | ".join(loads) + " |")
    print("|---|---|" + "---|" * len(loads))
    for found in report["cost"].values():
        cells = [f"{found['without']}, {found['weights']}", found["with"]]
        cells += [
            f"{each['times']:.2f} ({each['without_ms']:.1f} to {each['with_ms']:.1f} ms)"
            for each in found["loads"].values()
        ]
        print("| " + " | ".join(cells) + " |")


def count_changes(options: argparse.Namespace) -> int:
    def run() -> dict[str, Any]:
        report: dict[str, Any] = {
            "model": str(options.model),
            "prompts": options.prompts,
            "prompt_tokens": options.prompt_tokens,
            "tokens": options.tokens,
            "threads": options.threads,
            "ways": {},
        }
        for way in options.ways:
            console.print(f"{way} ...", markup=False)
            found = run_in_process(
                "scripts.studies.divergence.measure:measure",
                model=str(options.model),
                options=WAYS[way],
                prompts=options.prompts,
                prompt_tokens=options.prompt_tokens,
                tokens=options.tokens,
                threads=options.threads,
                seed=options.seed,
            )
            for kind in ("batched", "repaired"):
                found[kind] |= rates(found[kind])
            report["ways"][way] = found
            batched, repaired = (found[kind]["diverged"] for kind in ("batched", "repaired"))
            console.print(f"  changed: {batched} batched otherwise, {repaired} repaired", markup=False)
        return report

    def is_good(report: dict[str, Any]) -> bool:
        broken = [
            way
            for way, found in report["ways"].items()
            if WAYS[way].get("deterministic") and found["batched"]["diverged"] + found["repaired"]["diverged"]
        ]
        for way in broken:
            console.print(f"error: {way}: deterministic answers differ", markup=False)
        return not broken

    return run_and_report(run, show, options.json, is_good=is_good)


def rates(found: dict[str, int]) -> dict[str, Any]:
    """Part of the answers, and changes for each 1,000 choices, each with its 95 % interval."""
    low, high = wilson(found["diverged"], found["answers"])
    least, most = wilson(found["diverged"], max(1, found["choices"]))
    return {
        "share": found["diverged"] / found["answers"],
        "interval": [low, high],
        "per_1000": 1000 * found["diverged"] / max(1, found["choices"]),
        "per_1000_interval": [1000 * least, 1000 * most],
    }


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    share, square = hits / of, Z * Z / of
    middle = (share + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(share * (1 - share) / of + square / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def show(report: dict[str, Any]) -> None:
    """Markdown, so that it can go into the documentation as it is."""
    print(
        f"{report['prompts']} prompts of up to {report['prompt_tokens']} tokens, "
        f"{report['tokens']} tokens each, {report['threads']} threads.\n"
    )
    print("| way | kernels, weights | batched otherwise | repaired | per 1,000 tokens: batched, repaired |")
    print("|---|---|---|---|---|")
    for way, found in report["ways"].items():
        cells = [way, f"{found['kernels']}, {found['weights']}"]
        for kind in ("batched", "repaired"):
            low, high = found[kind]["interval"]
            cells.append(f"{found[kind]['share']:.0%} ({low:.0%} to {high:.0%})")
        each = []
        for kind in ("batched", "repaired"):
            low, high = found[kind]["per_1000_interval"]
            each.append(f"{found[kind]['per_1000']:.1f} ({low:.1f} to {high:.1f})")
        print("| " + " | ".join([*cells, ", ".join(each)]) + " |")


def parse_arguments() -> argparse.Namespace:
    parser = script_parser("study divergence", DESCRIPTION)
    parser.add_argument("--model", default=MODEL, help="GGUF file, HuggingFace folder or hub name")
    parser.add_argument("--prompts", type=int, default=16, help="answers of each run (%(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=160, help="of the longest prompt (%(default)s)")
    parser.add_argument("--tokens", type=int, default=40, help="tokens of an answer (%(default)s)")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=f"of: {', '.join(WAYS)}"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="all cores")
    parser.add_argument("--seed", type=int, default=1, help="of batches, cuts and losses (%(default)s)")
    parser.add_argument("--cost", action="store_true", help="time steps instead")
    add_json(parser)
    options = parser.parse_args()
    if min(options.prompts, options.prompt_tokens, options.threads) < 1 or options.tokens < 2:
        parser.error("--prompts, --prompt-tokens and --threads are at least 1, --tokens at least 2")
    return options
