"""A swarm of two nodes under clients of every kind, watched for leaks.

Clients ask, chat, cancel, rest too long, leave and come again; some are killed in the middle of an answer; a
hostile peer sends garbage, half frames, sessions that are not there, numbers that are none, and never reads.
At the end everybody leaves, and the nodes must hold what they held at the start: no sessions, streams, pages,
tasks or descriptors more, memory flat, no error in their logs, and no wrong answer to anybody.

  scripts/soak                            half an hour
  scripts/soak --minutes 2 --json -       shorter, figures for machines on standard output
  scripts/soak --model tiny-hybrid        random weights, of which every other block keeps a state

Exit code 0: nothing was found; 1: something was; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..command_line import add_json, console, positive, run_and_report, script_parser, without_problems
from ..local_swarm import LocalSwarm, split_evenly
from ..processes.fork_server import ForkServer
from ..processes.worker import Worker, workers
from ..prompts import BLOCKS, MODEL
from ..tiny_model import BLOCKS as TINY_BLOCKS
from ..tiny_model import HIDDEN as TINY_WIDTH
from ..tiny_model import write_tiny_hybrid
from .verdict import SLOPE_FROM_S, Sample, log_problems, node_problems, second_half_growth

HYBRID = "tiny-hybrid"
WIDTH = 576
"""Of the other model's activations."""
POLITE = 2
"""Processes of polite clients."""
IDLE_SESSION_S = 4.0
REST_S = 2 * IDLE_SESSION_S
"""Longest rest of a polite client: about every other one is dropped and must repair."""
KV_TOKENS = 4096
"""Few, so that sessions are refused now and then."""
SETTLE_S = 40.0
"""Time for the nodes to notice that everybody left."""
KILL_AFTER_S = (0.3, 3.0)
"""A client is killed so long after it began to ask, shortest and longest."""


class Soak:
    """One run. ``problems`` is what was found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._seconds = arguments.seconds or arguments.minutes * 60
        self._least = arguments.least
        self._sample_s = min(arguments.sample_seconds, self._seconds / 8)
        self._rng = random.Random(arguments.seed)
        self._seed = arguments.seed
        self._hybrid = arguments.model == HYBRID
        self._killed = 0
        self._victim: Worker | None = None
        self._kill_at: float | None = None
        self._asked: dict[str, Any] = {}  # the swarm, its model, and how processes are started
        self.problems: list[str] = []

    def run(self) -> dict[str, Any]:
        options = ["--threads", "1", "--kv-cache-tokens", str(KV_TOKENS)]
        overrides = {"idle_session_seconds": IDLE_SESSION_S, "idle_connection_seconds": 3 * IDLE_SESSION_S}
        spans = split_evenly(TINY_BLOCKS if self._hybrid else BLOCKS, 2)
        with (
            tempfile.TemporaryDirectory(prefix="swarm-soak-") as folder,
            ForkServer() as fork_server,
            LocalSwarm(
                model := str(write_tiny_hybrid(Path(folder)) if self._hybrid else MODEL),
                spans,
                serve_options=options,
                overrides=overrides,
                launch=fork_server.launch,
            ) as swarm,
        ):
            self._asked = {
                "launch": fork_server.launch,
                "initial_peers": swarm.initial_peers,
                "model": model,
            }
            with workers("scripts.lab.soak.polite:undisturbed_answers", [self._asked]) as (first,):
                expected = first.result()
            start = self._samples(swarm, 0.0)
            try:
                samples, done = self._under_load(swarm, expected)
            finally:
                if self._victim is not None:
                    self._victim.close()
            final = self._settle(swarm, start, samples)
            codes = {node: node.stop() for node in swarm.nodes}
            for node, code in codes.items():
                if code:
                    self.problems.append(f"a node ended with exit code {code}")
                self.problems += log_problems(node.stderr)
        return {
            "seconds": self._seconds,
            "seed": self._seed,
            "done": done,
            "nodes": [
                {
                    "blocks": span,
                    "start": start[n].as_dict(),
                    "final": final[n].as_dict(),
                    "growth_mb_per_hour": {
                        name: second_half_growth(samples[n], name) / (samples[n][-1].at / 2) * 3600
                        for name in ("rss_mb", "p2pd_rss_mb")
                    },
                    "samples": [sample.as_dict() for sample in samples[n]],
                }
                for n, span in enumerate(spans)
            ],
            "problems": self.problems,
        }

    def _under_load(
        self, swarm: LocalSwarm, expected: list[list[int]]
    ) -> tuple[list[list[Sample]], dict[str, Any]]:
        polite = [
            {**self._asked, "expected": expected, "seed": self._seed + n, "rest_s": REST_S}
            for n in range(POLITE)
        ]
        nodes = [node.events[-1] for node in swarm.nodes]
        width = TINY_WIDTH if self._hybrid else WIDTH
        hostile = {"launch": self._asked["launch"], "nodes": nodes, "width": width, "seed": self._seed}
        samples: list[list[Sample]] = [[] for _ in swarm.nodes]
        with (
            workers("scripts.lab.soak.polite:polite_clients", polite) as friends,
            workers("scripts.lab.soak.hostile:hostile_peer", [hostile]) as foes,
        ):
            self._victim = Worker("scripts.lab.soak.polite:client_to_kill", **self._asked)
            for worker in [*friends, *foes, self._victim]:
                worker.wait_ready()
            began = time.monotonic()
            self._kill_at = began + self._rng.uniform(*KILL_AFTER_S)
            next_sample = 0.0
            did = [0, 0]  # by those that mean well, and by others
            while (at := time.monotonic() - began) < self._seconds or min(did[0], did[1] / 2) < self._least:
                if at >= next_sample:
                    next_sample = at + self._sample_s
                    for series, sample in zip(samples, self._samples(swarm, at), strict=True):
                        series.append(sample)
                self._keep_killing(swarm)
                for kind, each in enumerate((friends, foes)):
                    did[kind] += sum(len(worker.take()) for worker in each)
                for worker in [*friends, *foes]:
                    if not worker.is_running:
                        worker.result()  # raises what ended it
                time.sleep(0.1)
            for worker in [*friends, *foes]:
                worker.order()
            results = [worker.result() for worker in friends]
            done = foes[0].result()
        return samples, self._count(results, done)

    def _keep_killing(self, swarm: LocalSwarm) -> None:
        """Start a client, let it ask for a moment, kill it, start the next one."""
        if self._victim is None:
            self._victim = Worker("scripts.lab.soak.polite:client_to_kill", **self._asked)
        elif self._kill_at is None:
            if self._victim.has_events:
                self._victim.wait_ready()
                self._kill_at = time.monotonic() + self._rng.uniform(*KILL_AFTER_S)
        elif time.monotonic() >= self._kill_at:
            self._victim.close()
            self._victim = self._kill_at = None
            self._killed += 1

    def _count(self, results: list[dict[str, Any]], hostile: dict[str, int]) -> dict[str, Any]:
        polite = sum((Counter(result["done"]) for result in results), Counter())
        errors = sum((Counter(result["errors"]) for result in results), Counter())
        wrong = sum(result["wrong_answers"] for result in results)
        self.problems += [f"{count} × {error}" for error, count in errors.items()]
        if wrong:
            self.problems.append(f"{wrong} answers differ from the undisturbed ones")
        return {
            "polite": dict(polite),
            "hostile": hostile,
            "killed": self._killed,
            "repairs": sum(result["repairs"] for result in results),
            "busy": sum(result["busy"] for result in results),
        }

    def _settle(self, swarm: LocalSwarm, start: list[Sample], samples: list[list[Sample]]) -> list[Sample]:
        """Wait until nothing is left of the clients, or long enough to say what is."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            final = self._samples(swarm, self._seconds)
            problems = [
                f"node {n}: {problem}"
                for n, node in enumerate(zip(start, samples, final, strict=True))
                for problem in node_problems(*node)
            ]
            if not problems or time.monotonic() > deadline:
                self.problems += problems
                return final
            time.sleep(0.5)

    def _samples(self, swarm: LocalSwarm, at: float) -> list[Sample]:
        return [Sample.of(at, node.statistics()) for node in swarm.nodes]


def print_tables(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['seconds']:.0f} s of soak", title_justify="left")
    table.add_column("")
    for node in report["nodes"]:
        for when in ("start", "highest", "end"):
            table.add_column(f"{node['blocks']} {when}", justify="right")
    names = ("rss_mb", "p2pd_rss_mb", "fds", "p2pd_fds", "threads", "tasks")
    held = ("used_slots", "cached_slots", "used_states", "cached_states")
    for name in (*names, "sessions", "connections", "queued", "sequences", *held):
        row = []
        for node in report["nodes"]:
            start, end = node["start"][name], node["final"][name]
            highest = max(start, end, *(sample[name] for sample in node["samples"]))
            row += [f"{value:.0f}" for value in (start, highest, end)]
        table.add_row(name.replace("_", " "), *row)
    console.print(table)
    done = report["done"]
    for kind in ("polite", "hostile"):
        counts = sorted(done[kind].items())
        console.print(f"{kind}: " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts))
    console.print(f"killed {done['killed']}, repairs {done['repairs']}, busy {done['busy']}")
    for node in report["nodes"] if report["seconds"] >= SLOPE_FROM_S else []:
        growth = ", ".join(
            f"{name} {value:+.1f} MB an hour" for name, value in node["growth_mb_per_hour"].items()
        )
        console.print(f"blocks {node['blocks']}, second half: {growth}")
    for problem in report["problems"]:
        console.print(f"[bold red]{escape(problem)}[/]")
    if not report["problems"]:
        console.print("[green]nothing leaked, nothing failed[/]")


def parse(words: list[str]) -> argparse.Namespace:
    parser = script_parser("soak", __doc__)
    parser.add_argument("--minutes", type=positive, default=30.0, help="default: %(default)s")
    parser.add_argument("--seconds", type=positive, help="instead of minutes")
    parser.add_argument(
        "--least",
        type=int,
        default=0,
        metavar="N",
        help="go on until polite clients have done N things, and hostile peers twice as many",
    )
    parser.add_argument("--sample-seconds", type=positive, default=5.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of what clients choose (default: %(default)s)")
    parser.add_argument(
        "--model", choices=("SmolLM2", HYBRID), default="SmolLM2", help="default: %(default)s"
    )
    add_json(parser)
    return parser.parse_args(words)


def main() -> int:
    arguments = parse(sys.argv[1:])
    return run_and_report(Soak(arguments).run, print_tables, arguments.json, is_good=without_problems)


if __name__ == "__main__":
    sys.exit(main())
