"""What a model of experts costs a node that has memory for a quarter of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from swarm_node.shards.experts.store import READERS

from ...lab.command_line import add_json, console, count, positive, run_and_report, say, script_parser
from ...lab.processes.worker import Worker, workers
from .disk import disk_bytes_per_s, drop_pages
from .made_file import MadeFile, model_config
from .node import remove_groups
from .rows import SKEW

DESCRIPTION = """\
Makes a file of blocks with 128 experts each, of which a row takes 8, in Q4_0 and with made-up weights.
Rows and routers are as local as is published of trained ones; with --skew rows have nothing in common, but
some experts are preferred. Two processes compute the same rows in turn, a step each: one with all experts in
memory, one with as many as --limit allows, in a memory cgroup of that size where the system lets it. Shows
speeds, what was read, what the disk allows, and whether all outputs have the same bits. Exit code 1 if they
have not.
"""
STEP_S = 120.0
"""A step, or what comes before the first, takes no longer."""
LOCALITY_STEPS = 24
"""Tokens of which is said how local their choices are."""


class Case(NamedTuple):
    name: str
    sessions: int
    topics: int


CASES = (
    Case("one session", 1, 1),
    Case("8 sessions of one topic", 8, 1),
    Case("8 sessions of 8 topics", 8, 8),
)
PLAIN = (Case("one session", 1, 0), Case("8 sessions", 8, 0))


def _in_turn(both: tuple[Worker, Worker], steps: int) -> tuple[list[float], list[Any]]:
    """Of each, the seconds of a step: the median of ``steps``, as other work on the machine makes some of
    them much longer; and the last event."""
    took: tuple[list[float], list[float]] = ([], [])
    last: list[Any] = [{}, {}]
    for _ in range(steps):
        for number, worker in enumerate(both):
            worker.order()
            last[number] = worker.wait_for("step", STEP_S)
            took[number].append(last[number]["took"])
    return [median(each) for each in took], last


def run_case(path: Path, whole: Worker, part: Worker, case: Case, steps: int) -> dict[str, Any]:
    """As many steps again come first, for the store to learn what is hot."""
    for worker in (whole, part):
        worker.order(sessions=case.sessions, topics=case.topics, steps=2 * steps + LOCALITY_STEPS)
        worker.wait_for("begun", STEP_S)
    _, before = _in_turn((whole, part), steps)
    disk = disk_bytes_per_s(path, READERS)
    took, after = _in_turn((whole, part), steps)
    disk = (disk + disk_bytes_per_s(path, READERS)) / 2
    whole.order(locality=LOCALITY_STEPS)
    first, then = before[1]["state"], after[1]["state"]
    since = {key: then[key] - first[key] for key in then}
    read = since["read_bytes"] / steps
    compute_s, disk_s = took[0], read / disk
    return case._asdict() | {
        "tokens_per_s": [case.sessions / each for each in took],
        "ratio": took[0] / took[1],
        "possible": compute_s / max(compute_s, disk_s),
        "same": before[0]["outputs"] == before[1]["outputs"] and after[0]["outputs"] == after[1]["outputs"],
        "held": since["held"] / since["wanted"],
        "late": since["late"] / since["wanted"],
        "read_mb_a_step": read / 1e6,
        "disk_bytes_per_s": disk,
        "compute_ms": 1000 * compute_s,
        "disk_ms": 1000 * disk_s,
        "step_ms": 1000 * took[1],
        "waited_ms": 1000 * since["waited_s"] / steps,
        "rss_mb": [each["rss_mb"] for each in after],
        "locality": whole.wait_for("locality", STEP_S),
    }


def measure(
    path: Path, *, blocks: int, limit: int, skew: float | None, threads: int, steps: int
) -> dict[str, Any]:
    made = MadeFile(path, model_config(blocks))
    say(f"making {path}: {made.size / 1e9:.1f} GB")
    made.write(SKEW if skew is None else skew)
    common: dict[str, Any] = {"path": str(path), "blocks": blocks, "threads": threads}
    common["environment"] = {"OMP_NUM_THREADS": "1"}
    function = "scripts.studies.experts_from_disk.node:compute"
    with workers(function, [common | {"limit": each} for each in (None, limit)]) as (whole, part):
        whole.wait_ready()
        drop_pages(path)
        ready = part.wait_for("ready", STEP_S)
        cases = []
        for case in CASES if skew is None else PLAIN:
            say(case.name)
            cases.append(run_case(path, whole, part, case, steps))
    remove_groups()
    return {
        "file_bytes": made.size,
        "skew": skew,
        "limit": ready["limit"],
        "experts": ready["experts"],
        "cases": cases,
    }


def same(report: dict[str, Any]) -> bool:
    """Whether all outputs have the same bits."""
    return all(case["same"] for case in report["cases"])


def show(report: dict[str, Any]) -> None:
    held, count_of_all = report["experts"]
    lines = [
        f"file {report['file_bytes'] / 1e9:.2f} GB, skew {report['skew'] or 'and locality as published'}",
        f"limited by: {report['limit']}; {held} of {count_of_all} experts in memory",
        f"same bits: {same(report)}",
    ]
    for case in report["cases"]:
        few, local = case["tokens_per_s"][1], case["locality"]
        lines += [
            f"{case['name']}: {few:.1f} tokens/s, {case['ratio']:.2f} of the speed with all in memory; "
            f"{case['possible']:.2f} is possible on this disk",
            f"  a step computes {case['compute_ms']:.0f} ms and reads {case['read_mb_a_step']:.0f} MB: "
            f"{case['disk_ms']:.0f} ms at {case['disk_bytes_per_s'] / 1e9:.2f} GB/s; "
            f"it took {case['step_ms']:.0f} ms, of which it waited {case['waited_ms']:.0f}",
            f"  of wanted experts {100 * case['held']:.0f} % are there, {100 * case['late']:.0f} % coming",
            f"  of a token's experts {100 * local['before']:.0f} % were the token's before, "
            f"{100 * local['before_8']:.0f} % of the 8 before, "
            f"{100 * local['guessed']:.0f} % guessed; the 8 hottest get {100 * local['hottest']:.0f} %; "
            f"a step takes {local['active']:.0f} of a block",
        ]
    console.print("\n".join(lines), markup=False)


def main() -> int:
    parser = script_parser("study experts_from_disk", DESCRIPTION)
    parser.add_argument("--file", type=Path, default=Path("build/experts.bin"), help="default: %(default)s")
    parser.add_argument("--blocks", type=count, default=36, help="of 113 MB each (default: %(default)s)")
    parser.add_argument("--limit", type=positive, default=1.0, help="GB of memory (default: %(default)s)")
    parser.add_argument(
        "--skew", type=positive, help="how unequal experts are, for rows that have nothing in common"
    )
    parser.add_argument("--threads", type=count, default=os.cpu_count() or 1, help="default: the cores")
    parser.add_argument("--steps", type=count, default=60, help="that are measured (default: %(default)s)")
    add_json(parser)
    options = parser.parse_args()
    options.file.parent.mkdir(parents=True, exist_ok=True)
    sizes = {"blocks": options.blocks, "threads": options.threads, "steps": options.steps}
    return run_and_report(
        lambda: measure(options.file, limit=int(options.limit * 1e9), skew=options.skew, **sizes),
        show,
        options.json,
        is_good=same,
        errors=(OSError,),
    )


if __name__ == "__main__":
    sys.exit(main())
