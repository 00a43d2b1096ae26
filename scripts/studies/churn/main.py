"""Ten thousand nodes that come and go: what a simulated day costs, and whether every block stays served.

With a clock of its own and directories in memory; what decides is the real thing: every
announcement is encoded, signed, checked and decoded as in the DHT (dht/), every node chooses and changes its
blocks with the planner (swarm/placement), and clients look for routes (swarm/routing).

Nodes live for --lifetime hours on average (exponential) and come again as others, more of them in the evening
than at night. Of those that go, 6 in 10 just vanish: their announcements stay up to 60 s. The others drain
first. Once a day on average a machine has something else to do and is 2 to 4 times slower for half an hour.
Machines have between 1/20 and 1/3 of a model in memory; speeds differ by a factor of 3 (standard deviation);
one in eight has its blocks chosen by a person. "covered" is the time in which every block of a model has a
living server that takes sessions, averaged over models; it starts once all have come.

  scripts/study churn                         10,000 nodes, a day: the figures in docs/internals/placement.md
  scripts/study churn --quick                 seconds: 60 nodes, an hour
  scripts/study churn --json FILE --svg FILE  the figures, and lines over the day

Costs are processor time. Exit code 0; 1: a move opened a hole; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Any

from rich.progress import Progress
from rich.table import Table

from swarm_node.swarm.identity import Identity
from swarm_node.swarm.placement.types import ModelShape, NodeOffer
from swarm_node.swarm.types import PeerLink, Span

from ...lab.command_line import add_json, console, count, positive, run_and_report, script_parser
from ..placement.world import Clock, World
from .clients import Clients
from .records import Records
from .svg_lines import Panel, draw

WARM_UP_S = 3600.0
COME_WITHIN_S = 1800.0
SAMPLE_S = 1200.0
VANISH = 0.6
PINNED = 0.125
SLOW_S = 1800.0
DAY_S = 86_400.0
REGIONS_MS = 40.0
"""Standard deviation of a coordinate of a node's place; round trips are distances."""


class Churn:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.rng = random.Random(arguments.seed)
        self.clock = Clock()
        self.records = Records(lambda: self.clock.now)
        self.arguments = arguments
        self.worlds = [self._world(number) for number in range(arguments.models)]
        self.places: dict[str, tuple[float, float]] = {}
        self.clients = Clients(self.rng, self.places)
        self.events: dict[str, int] = {}
        self.samples: list[dict[str, float]] = []

    def run(self, progress: Progress) -> dict[str, Any]:
        arguments, clock = self.arguments, self.clock
        for _ in range(arguments.nodes):
            clock.after(self.rng.uniform(0, COME_WITHIN_S), self._come)
        task = progress.add_task("all come", total=1)
        clock.run(WARM_UP_S / 2)
        self._arrivals()
        clock.run(WARM_UP_S)
        for world in self.worlds:
            world.begin_books()
        self.records.costs.clear()
        self.clients.begin_books()
        self.events.clear()
        began, hours = process_time(), arguments.hours
        progress.update(task, total=hours, description="a day" if hours == 24 else f"{hours:g} h")
        clock.after(0, self._sample)
        for step in range(1, math.ceil(hours * 6) + 1):
            done = min(step / 6, hours)
            clock.run(WARM_UP_S + done * 3600)
            progress.update(task, completed=done)
        return self._report(process_time() - began)

    # What happens.

    def _world(self, number: int) -> World:
        blocks = self.rng.choice([16, 24, 32, 48, 80])
        shape = ModelShape(blocks, 10**6, 0, 2048, activation_bytes=8192)
        return World(
            self.clock,
            shape,
            self.rng,
            name=f"model-{number}",
            noise=0.03,
            load_s=2.0,
            replan_s=self.arguments.replan,
            publish=self.records.publish,
        )

    def _come(self) -> None:
        world = self.rng.choice(self.worlds)
        identity = Identity.generate()
        peer_id, blocks = identity.peer_id, world.shape.n_blocks
        self.records.know(identity)
        self.places[peer_id] = (self.rng.gauss(0, REGIONS_MS), self.rng.gauss(0, REGIONS_MS))
        met = self.rng.sample(sorted(world.boxes), min(12, len(world.boxes)))
        links = tuple(PeerLink(other, self._rtt_s(peer_id, other), 1.25e6) for other in met)
        memory = self.rng.randint(max(1, blocks // 20), max(2, blocks // 3))
        offer = NodeOffer(
            peer_id,
            world.shape.room_of(memory),
            decode_ms_per_block=math.exp(self.rng.gauss(0, math.log(3))),
            prefill_tokens_per_s=1000.0,
            links=links,
        )
        pinned = None
        if self.rng.random() < PINNED:
            start = self.rng.randint(0, blocks - memory)
            pinned = Span(start, start + memory)
        world.join(offer, pinned)
        self._count("come")
        lifetime_s = self.arguments.lifetime * 3600
        self.clock.after(self.rng.expovariate(1 / lifetime_s), lambda: self._go(world, peer_id))
        self.clock.after(self.rng.expovariate(1 / DAY_S), lambda: self._slow(world, peer_id))

    def _arrivals(self) -> None:
        """As many come as go; a third more in the evening and a third fewer at night."""
        hour = (self.clock.now - WARM_UP_S) / 3600
        tide = 1 + math.sin(2 * math.pi * (hour - 12) / 24) / 3
        self._come()
        pause = self.arguments.lifetime * 3600 / (self.arguments.nodes * tide)
        self.clock.after(self.rng.expovariate(1 / pause), self._arrivals)

    def _go(self, world: World, peer_id: str) -> None:
        vanishes = self.rng.random() < VANISH
        self._count("vanish" if vanishes else "leave")
        (world.kill if vanishes else world.leave)(peer_id)
        self.clock.after(120, lambda: self._forget(peer_id))

    def _forget(self, peer_id: str) -> None:
        self.places.pop(peer_id, None)
        self.records.forget(peer_id)

    def _slow(self, world: World, peer_id: str) -> None:
        box = world.boxes.get(peer_id)
        if box is None:
            return
        usual = box.offer.decode_ms_per_block
        self._count("slow down")
        world.set_speed(peer_id, usual * self.rng.uniform(2, 4))
        self.clock.after(SLOW_S, lambda: self._recover(world, peer_id, usual))

    def _recover(self, world: World, peer_id: str, usual: float) -> None:
        if peer_id in world.boxes:
            world.set_speed(peer_id, usual)

    def _rtt_s(self, a: str, b: str) -> float:
        one, other = self.places[a], self.places.get(b, (0.0, 0.0))
        return 0.002 + math.dist(one, other) / 1000

    # Books.

    def _count(self, event: str) -> None:
        self.events[event] = self.events.get(event, 0) + 1

    def _sample(self) -> None:
        if self.clock.now > WARM_UP_S + self.arguments.hours * 3600:
            return
        boxes = [box for world in self.worlds for box in world.boxes.values()]
        for world in self.worlds:
            self.clients.ask(world)
        self.samples.append(
            {
                "hour": round((self.clock.now - WARM_UP_S) / 3600, 4),
                "nodes": len(boxes),
                "serving": sum(box.counted is not None for box in boxes),
                "whole_models": sum(world.is_whole for world in self.worlds),
                "moves": sum(world.tally.moves for world in self.worlds),
            }
        )
        self.clock.after(SAMPLE_S, self._sample)

    def _report(self, spent_s: float) -> dict[str, Any]:
        tallies = [world.finish() for world in self.worlds]
        costs: dict[str, list[float]] = {**self.records.costs, "find_route": self.clients.costs}
        for tally in tallies:
            for kind, times in tally.costs.items():
                costs.setdefault(kind, []).extend(times)
        return {
            "events": self.events,
            "joins": sum(tally.joins for tally in tallies),
            "stood_by": sum(tally.stood_by for tally in tallies),
            "moves": sum(tally.moves for tally in tallies),
            "moves_called_off": sum(tally.stayed_after_all for tally in tallies),
            "holes_by_moves": sum(tally.own_holes for tally in tallies),
            "holes": sum(tally.holes for tally in tallies),
            "longest_hole_s": max(tally.longest_hole_s for tally in tallies),
            "uncovered_s": sum(tally.uncovered_s for tally in tallies),
            "routes": self.clients.as_dict(),
            "processor_s": spent_s,
            "costs": costs,
            "samples": self.samples,
        }


def merged(parts: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """One report of all processes."""
    report: dict[str, Any] = {
        "nodes": arguments.nodes,
        "models": arguments.models,
        "hours": arguments.hours,
        "lifetime_hours": arguments.lifetime,
        "seed": arguments.seed,
    }
    for name in ("events", "routes"):
        report[name] = {key: sum(part[name].get(key, 0) for part in parts) for key in _keys(parts, name)}
    for name in ("joins", "stood_by", "moves", "moves_called_off", "holes_by_moves", "holes", "processor_s"):
        report[name] = round(sum(part[name] for part in parts), 1)
    report["longest_hole_s"] = round(max(part["longest_hole_s"] for part in parts), 1)
    seconds = arguments.hours * 3600 * arguments.models
    report["covered"] = 1 - sum(part["uncovered_s"] for part in parts) / seconds
    events = sum(report["events"].values())
    report["processor_ms_per_event"] = round(1000 * report["processor_s"] / max(1, events), 3)
    costs = {
        kind: [t for part in parts for t in part["costs"].get(kind, [])] for kind in _keys(parts, "costs")
    }
    report["costs"] = {kind: _spread(times) for kind, times in costs.items() if times}
    report["samples"] = [
        {key: one[0][key] if key == "hour" else sum(sample[key] for sample in one) for key in one[0]}
        for one in zip(*(part["samples"] for part in parts), strict=True)
    ]
    return report


def _keys(parts: list[dict[str, Any]], name: str) -> list[str]:
    return sorted({key for part in parts for key in part[name]})


def _spread(times: list[float]) -> dict[str, float]:
    ranked = sorted(times)
    return {
        "count": len(ranked),
        "mean_ms": round(1000 * sum(ranked) / len(ranked), 4),
        "p50_ms": round(1000 * ranked[len(ranked) // 2], 4),
        "p99_ms": round(1000 * ranked[min(len(ranked) - 1, len(ranked) * 99 // 100)], 4),
    }


def picture(report: dict[str, Any]) -> str:
    samples = report["samples"]
    hours = [sample["hour"] for sample in samples]

    def line(name: str) -> list[float]:
        return [sample[name] for sample in samples]

    panels = [
        Panel("nodes", hours, [("there", line("nodes")), ("serving", line("serving"))]),
        Panel(
            "models with a server for every block", hours, [("", line("whole_models"))], 0, report["models"]
        ),
        Panel("nodes that have changed their blocks", hours, [("", line("moves"))]),
    ]
    return draw(panels, "hours")


def show(report: dict[str, Any]) -> None:
    console.print(
        f"{report['nodes']} nodes, {report['models']} models, {report['hours']:g} h: "
        + ", ".join(f"{number} {event}" for event, number in sorted(report["events"].items()))
    )
    console.print(
        f"covered {100 * report['covered']:.4f} % of the time; {report['holes']} holes, the longest "
        f"{report['longest_hole_s']} s, {report['holes_by_moves']} made by moves"
    )
    routes = report["routes"]
    console.print(
        f"{report['moves']} moves, {report['moves_called_off']} called off; {report['stood_by']} stood by; "
        f"of {routes['asked']} routes {routes['none']} could not be had, {routes['with_dead_hop']} had a "
        "dead hop"
    )
    table = Table("work", "times", "mean ms", "median ms", "99th percentile")
    for kind, cost in report["costs"].items():
        table.add_row(kind, *(f"{cost[key]:,.6g}" for key in ("count", "mean_ms", "p50_ms", "p99_ms")))
    console.print(table)
    console.print(
        f"{report['processor_s']} s of processor time in all, {report['processor_ms_per_event']} ms an event"
    )


def parse(words: list[str]) -> argparse.Namespace:
    parser = script_parser("study churn", __doc__)
    parser.add_argument("--nodes", type=count, help="default: 10000")
    parser.add_argument("--models", type=count, help="default: 40")
    parser.add_argument("--hours", type=positive, help="default: 24")
    parser.add_argument("--lifetime", type=positive, default=24.0, help="hours (default: %(default)s)")
    parser.add_argument(
        "--replan",
        type=positive,
        default=1800.0,
        help="seconds between looks for moves (default: %(default)s)",
    )
    parser.add_argument("--processes", type=count, default=1, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="60 nodes, 2 models, an hour")
    add_json(parser)
    parser.add_argument("--svg", metavar="FILE", help="draw them over time")
    parsed = parser.parse_args(words)
    for name, usual, quick in (("nodes", 10_000, 60), ("models", 40, 2), ("hours", 24.0, 1.0)):
        if getattr(parsed, name) is None:
            setattr(parsed, name, quick if parsed.quick else usual)
    if parsed.processes > parsed.models:
        parser.error("more processes than models")
    return parsed


def part_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """One process's share."""
    with Progress(console=console, transient=True, disable=arguments.silent) as progress:
        return Churn(arguments).run(progress)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Models have nothing to do with each other, so processes share them out."""
    shares = []
    for number in range(arguments.processes):
        share = argparse.Namespace(**vars(arguments), silent=number > 0)
        share.models = len(range(number, arguments.models, arguments.processes))
        share.nodes = round(arguments.nodes * share.models / arguments.models)
        share.seed = arguments.seed * 1000 + number
        shares.append(share)
    if len(shares) == 1:
        return merged([part_of(shares[0])], arguments)
    with get_context("spawn").Pool(len(shares)) as pool:
        return merged(pool.map(part_of, shares, chunksize=1), arguments)


def main() -> int:
    arguments = parse(sys.argv[1:])

    def show_and_draw(report: dict[str, Any]) -> None:
        show(report)
        if arguments.svg:
            Path(arguments.svg).write_text(picture(report))

    return run_and_report(
        lambda: run(arguments),
        show_and_draw,
        arguments.json,
        is_good=lambda report: not report["holes_by_moves"],
    )
