"""How much of the directory holds when many of its DHT nodes are hostile: look-ups that find all there is.

Nodes of the DHT with the real look-up, routing table, checks and records, in one process: calls take 20 to
150 ms there and back, in simulated time. Honest nodes each have a network of their own, begin with three
honest initial peers, and announce that they serve; every model has four of them. Then clients, and the
nodes themselves, read models by chance. A read is right if it finds every honest node of its model.

Hostile nodes ask everybody to be in their tables, take every entry and keep none. In equal parts they answer
questions with each other's names only ("eclipse"), with names that are nobody's, as near to the key as 20,000
inventions allow, not at all, or with junk. In the second table they are ground: of --grind identities for
each, those nearest to one key, all of them of the kind "eclipse", in so many address groups; and only that
key is read.

  scripts/study directory_attack                 200 nodes, a fifth hostile; 10 to 50 %; ground identities
  scripts/study directory_attack --quick         seconds: 60 nodes, fewer reads
  scripts/study directory_attack --json FILE     the figures (- is standard output)

Exit code 0; 1: with --hostile of the nodes hostile fewer than 99.9 % of the reads were right; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from swarm_node.dht.kademlia.contacts import contact_of
from swarm_node.dht.kademlia.directory import HivemindDirectory
from swarm_node.dht.records.keys import key_hash, node_key
from swarm_node.swarm.errors import NetworkError
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

from ...lab.command_line import add_json, console, count, positive, run_and_report, script_parser
from ...lab.memory_dht import CallNetwork, JumpingLoop
from .liars import KINDS, Crowd, Liar, invented

GOAL = 0.999
INITIAL = 3
NODES_OF_MODEL = 4
CLIENTS = 10
INVENTIONS = 20_000
FIRST_S = 5.0
SETTLE_S = 70.0
"""Simulated seconds between the coming of the liars and the first announcement."""


@dataclass(frozen=True, slots=True)
class Case:
    """``hostile``: how many of ``nodes``. ``groups``: address groups of the hostile, 0: one each. ``grind``:
    identities tried for each of them to be near one key, 0: none. ``inventions``: names that are nobody's."""

    nodes: int
    hostile: int
    reads: int
    seed: int
    groups: int = 0
    grind: int = 0
    inventions: int = INVENTIONS


class Attack:
    """One swarm under one attack."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rng = random.Random(case.seed)
        self.network = CallNetwork(self.rng)
        self.directories: list[HivemindDirectory] = []
        self.liars: list[Liar] = []
        self.infos: dict[ModelRef, set[str]] = {}
        self.times: list[float] = []
        self.peer_ids: list[str] = []
        self.right = self.partly = self.unseen = 0

    async def run(self) -> dict[str, Any]:
        case = self.case
        honest = case.nodes - case.hostile
        identities = [Identity(self.rng.randbytes(32)) for _ in range(honest)]
        self.peer_ids = [identity.peer_id for identity in identities]
        initial = [
            f"/ip4/10.0.0.{number}/tcp/4001/p2p/{identity.peer_id}"
            for number, identity in enumerate(identities[:INITIAL])
        ]
        for number, identity in enumerate(identities):
            await self._join(identity, number, initial if number else [])
        models = [
            ModelRef(f"model {n}", self.rng.randbytes(32).hex(), 8)
            for n in range(max(1, (honest - INITIAL) // NODES_OF_MODEL))
        ]
        await self._let_liars_in(identities, models[0])
        await asyncio.sleep(SETTLE_S)
        infos = [self._info(number, models) for number in range(INITIAL, honest)]
        for info in infos:
            self.infos.setdefault(info.model, set()).add(info.peer_id)
        announcing = [
            each.announce(info) for each, info in zip(self.directories[INITIAL:], infos, strict=True)
        ]
        announced = await asyncio.gather(*announcing, return_exceptions=True)
        await self._read_back(models)
        clients = [
            await self._join(Identity(self.rng.randbytes(32)), honest + n, initial, client=True)
            for n in range(CLIENTS)
        ]
        readers = [*clients, *self.directories[:honest]]
        before = self.network.calls
        wanted = models[:1] if case.grind else models
        for start in range(0, case.reads, 50):
            some = range(start, min(case.reads, start + 50))
            await asyncio.gather(
                *(self._read(self.rng.choice(readers), self.rng.choice(wanted)) for _ in some)
            )
        times = sorted(self.times)
        calls = self.network.calls - before
        for directory in self.directories:
            await directory.close()
        return {
            "nodes": case.nodes,
            "hostile": case.hostile,
            "groups": case.groups,
            "grind": case.grind,
            "reads": case.reads,
            "right": self.right / case.reads,
            "found_one": self.partly / case.reads,
            "median_s": round(times[len(times) // 2], 3),
            "p99_s": round(times[len(times) * 99 // 100], 3),
            "calls_per_read": round(calls / case.reads, 1),
            "unseen": self.unseen,
            "not_announced": sum(isinstance(result, NetworkError) for result in announced),
        }

    async def _read_back(self, models: list[ModelRef]) -> None:
        """What nodes do in the first minute after they have announced."""
        await asyncio.sleep(FIRST_S)

        async def look(number: int, directory: HivemindDirectory) -> None:
            seen = await directory.is_announced()
            self.unseen += seen is False
            if seen is not None:
                await directory.announce(self._info(number, models))

        await asyncio.gather(*(look(number, each) for number, each in enumerate(self.directories)))

    def _info(self, number: int, models: list[ModelRef]) -> NodeInfo:
        model = models[number % len(models)]
        return NodeInfo(self.peer_ids[number], (), model, Span(0, 8), NodeState.ONLINE, 0.5)

    async def _join(
        self, identity: Identity, number: int, initial: list[str], client: bool = False
    ) -> HivemindDirectory:
        p2p = self.network.join(identity.peer_id, f"{20 + number // 250}.{number % 250}.1.1")
        directory = await HivemindDirectory.create(
            p2p, identity, initial, client_mode=client, clock=self.network.clock, steady=self.network.steady
        )
        self.directories.append(directory)
        return directory

    async def _let_liars_in(self, honest: list[Identity], target: ModelRef) -> None:
        case = self.case
        number = case.hostile
        crowd = invented(self.rng, max(number, number * case.grind))
        if case.grind:
            key = int.from_bytes(key_hash(node_key(target, Span(0, 8))))
            crowd = sorted(crowd, key=lambda contact: contact.node_id ^ key)[:number]
        inventions = Crowd([] if case.grind else invented(self.rng, case.inventions))
        liars = Crowd(crowd)
        for index, contact in enumerate(crowd):
            kind = "eclipse" if case.grind else KINDS[index % len(KINDS)]
            group = index % (case.groups or number)
            host = f"{100 + group // 250}.{group % 250}.2.{1 + index // (case.groups or number) % 250}"
            names = inventions if kind == "inventions" else liars
            self.liars.append(Liar(self.network, contact, host, kind, names))
        victims = [identity.peer_id for identity in honest]
        for liar in self.liars:
            await liar.start()
        await asyncio.gather(*(liar.call_on(victims) for liar in self.liars))

    async def _read(self, directory: HivemindDirectory, model: ModelRef) -> None:
        start = self.network.steady()
        try:
            found = {info.peer_id for info in await directory.nodes(model)}
        except NetworkError:
            found = set()
        self.times.append(self.network.steady() - start)
        self.right += found >= self.infos[model]
        self.partly += bool(found & self.infos[model])


def attack(case: Case) -> dict[str, Any]:
    """The figures of one case."""
    contact_of.cache_clear()
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(Attack(case).run())


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    nodes, reads, seed = arguments.nodes, arguments.reads, arguments.seed
    fractions = [] if arguments.only else [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    report: dict[str, Any] = {"seed": seed, "goal": GOAL, "fractions": [], "ground": []}
    report["main"] = attack(Case(nodes, round(nodes * arguments.hostile / 100), reads, seed))
    for fraction in fractions:
        report["fractions"].append(attack(Case(nodes, round(nodes * fraction), reads // 4, seed + 1)))
    if not arguments.only:
        for number, groups in ((20, 1), (100, 1), (20, 3), (100, 3), (20, 5), (100, 5), (20, 8), (100, 20)):
            case = Case(nodes + number, number, reads // 8, seed + 2, groups, arguments.grind)
            report["ground"].append(attack(case))
    return report


def show(report: dict[str, Any]) -> None:
    columns = ("right %", "found one %", "unseen", "median s", "99 % s", "calls a read")
    for title, cases in (
        ("hostile nodes anywhere", [report["main"], *report["fractions"]]),
        ("hostile identities ground to be near one key", report["ground"]),
    ):
        if not cases:
            continue
        table = Table("nodes", "hostile", "groups", "reads", *columns, title=title, title_justify="left")
        for case in cases:
            table.add_row(
                str(case["nodes"]),
                str(case["hostile"]),
                str(case["groups"] or case["hostile"]),
                str(case["reads"]),
                f"{100 * case['right']:.2f}",
                f"{100 * case['found_one']:.2f}",
                str(case["unseen"]),
                f"{case['median_s']:.2f}",
                f"{case['p99_s']:.2f}",
                f"{case['calls_per_read']:.0f}",
            )
        console.print(table)


def parse(words: list[str]) -> argparse.Namespace:
    parser = script_parser("study directory_attack", __doc__)
    parser.add_argument("--nodes", type=count, help="default: 200")
    parser.add_argument("--reads", type=count, help="default: 4000")
    parser.add_argument("--hostile", type=positive, default=20.0, help="percent (default: %(default)s)")
    parser.add_argument("--grind", type=count, default=200, help="identities tried (default: %(default)s)")
    parser.add_argument("--only", action="store_true", help="only the first figure, no sweeps")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="60 nodes, 200 reads")
    add_json(parser)
    parsed = parser.parse_args(words)
    for name, usual, quick in (("nodes", 200, 60), ("reads", 4000, 200)):
        if getattr(parsed, name) is None:
            setattr(parsed, name, quick if parsed.quick else usual)
    if not parsed.hostile < 100:
        parser.error("--hostile is a part, in percent")
    return parsed


def main() -> int:
    arguments = parse(sys.argv[1:])
    return run_and_report(
        lambda: run(arguments), show, arguments.json, is_good=lambda report: report["main"]["right"] >= GOAL
    )
