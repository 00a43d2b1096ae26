"""The planner against the best there is: random small clusters, every plan tried.

Clusters of 2 to 6 machines that differ in memory (an eighth of 12 blocks to all of them), speed (0.08 to 6 ms
a block) and links (0.5 to 200 ms). Told is the time per token of the best route, in times of the least that
any spans could give: "planned" is one plan for all of them at once; "beside pinned nodes" the same where two
or three serve spans that somebody chose; "one after another" is what is left when they come with 100 seconds
between, decide for themselves, measure with an error of 2 % either way and move only for gains of 5 %.
"throughput" is the part of the most that any plan with as fast a route could compute.

  scripts/study placement                100 clusters of each kind
  scripts/study placement --clusters 10

Exit code 0: plans are within 5 % of the optimum; 1: one is not; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from functools import partial
from time import process_time
from typing import Any

from rich.progress import track
from rich.table import Table

from swarm_node.swarm.placement.planner import assign
from swarm_node.swarm.placement.swarm_view import Machine, MeasuredLinks, SwarmView
from swarm_node.swarm.placement.types import ModelShape
from swarm_node.swarm.types import NodeInfo, Span

from ...lab.command_line import add_json, console, count, run_and_report, script_parser
from .clusters import BLOCK_BYTES, cluster, offers
from .optimum import all_pictures, least_token_s
from .world import Clock, World

WITHIN = 1.05
BLOCKS = 12
FEW_BLOCKS = 6
"""Where every placement of every machine is tried, not only every route."""


def pictured(
    spans: dict[str, Span], machines: Sequence[Machine], fixed: Sequence[NodeInfo], shape: ModelShape
) -> SwarmView:
    """What ``spans`` come to, with the machines' true speeds."""
    served = [m.serving(spans[m.peer_id], shape.n_blocks) for m in machines if m.peer_id in spans]
    return SwarmView([*fixed, *served], shape, MeasuredLinks([*fixed, *machines]))


def solvable(
    rng: random.Random, fixed: int, n_blocks: int
) -> tuple[list[Machine], list[NodeInfo], ModelShape, float]:
    """A cluster that has room for the model, and the least time per token."""
    while True:
        machines, nodes = cluster(rng, rng.randint(2, 6 - fixed // 2), fixed, n_blocks)
        shape = ModelShape(n_blocks, BLOCK_BYTES, activation_bytes=rng.choice([600, 4096, 16384]))
        least_s = least_token_s(machines, nodes, shape)
        if least_s < float("inf"):
            return machines, nodes, shape, least_s


def planned(rng: random.Random, fixed: int) -> dict[str, float]:
    machines, nodes, shape, least_s = solvable(rng, fixed, BLOCKS)
    began = process_time()
    spans = assign(offers(machines), shape, fixed=nodes)
    spent = process_time() - began
    return {"times": pictured(spans, machines, nodes, shape).cost_s / least_s, "ms": 1000 * spent}


def one_after_another(rng: random.Random) -> dict[str, float]:
    machines, _, shape, least_s = solvable(rng, 0, BLOCKS)
    clock = Clock()
    world = World(clock, shape, rng, noise=0.02)
    for number, offer in enumerate(offers(machines)):
        clock.after(100 * number, partial(world.join, offer))
    clock.run(3600)
    spans = {info.peer_id: info.span for info in world.serving()}
    return {"times": pictured(spans, machines, [], shape).cost_s / least_s, "moves": world.tally.moves}


def throughput(rng: random.Random) -> dict[str, float]:
    while True:
        machines, _, shape, _ = solvable(rng, 0, FEW_BLOCKS)
        if len(machines) <= 4:
            break
    found = pictured(assign(offers(machines), shape), machines, [], shape)
    others = [view for view in all_pictures(machines, [], shape) if not view.missing]
    best = max(other.tokens_per_s for other in others if other.cost_s <= found.cost_s * 1.005)
    return {"times": found.tokens_per_s / best}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    kinds: dict[str, Any] = {
        "planned": lambda rng: planned(rng, 0),
        "planned beside pinned nodes": lambda rng: planned(rng, rng.choice([2, 3])),
        "one after another": one_after_another,
        "throughput": throughput,
    }
    report: dict[str, Any] = {"clusters": arguments.clusters, "seed": arguments.seed, "kinds": {}}
    for kind, measure in kinds.items():
        rng = random.Random(f"{arguments.seed} {kind}")
        found = [
            measure(rng) for _ in track(range(arguments.clusters), kind, console=console, transient=True)
        ]
        report["kinds"][kind] = summary(found, worst=min if kind == "throughput" else max)
    return report


def summary(found: list[dict[str, float]], worst: Any) -> dict[str, float]:
    times = [one["times"] for one in found]
    told = {
        "mean": sum(times) / len(times),
        "worst": worst(times),
        "optimal": sum(abs(each - 1) < 0.001 for each in times),
    }
    for name in ("ms", "moves"):
        if name in found[0]:
            told[f"mean_{name}"] = sum(one[name] for one in found) / len(found)
            told[f"most_{name}"] = max(one[name] for one in found)
    return {name: round(value, 4) for name, value in told.items()}


def show(report: dict[str, Any]) -> None:
    table = Table(
        f"{report['clusters']} clusters each", "mean", "worst", "optimal", "ms, mean (most)", "moves"
    )
    for kind, told in report["kinds"].items():
        cost = f"{told['mean_ms']:.0f} ({told['most_ms']:.0f})" if "mean_ms" in told else ""
        moves = f"{told['mean_moves']:.2f} ({told['most_moves']:.0f})" if "mean_moves" in told else ""
        table.add_row(
            kind, f"{told['mean']:.4f}", f"{told['worst']:.4f}", f"{told['optimal']:.0f}", cost, moves
        )
    console.print(table)


def main() -> int:
    parser = script_parser("study placement", __doc__)
    parser.add_argument("--clusters", type=count, default=100, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    add_json(parser)
    arguments = parser.parse_args()

    def is_good(report: dict[str, Any]) -> bool:
        plans = ("planned", "planned beside pinned nodes")
        return all(report["kinds"][kind]["worst"] <= WITHIN for kind in plans)

    return run_and_report(lambda: run(arguments), show, arguments.json, is_good=is_good)
