"""What an attacker with many identities, in many networks (address groups), can do to the directory.

In memory, with the code that DHT nodes keep entries with (dht/records/kept_entries.py), on a clock of its
own. The attacker is there first, refreshes as often as he can, and comes back before everybody else. Told
is:

  key      of honest nodes that come later, each from a network of its own, how many one key keeps out for a
           minute, and how many that were there before are lost
  keeper   the same for all that one DHT node keeps, with 16 made-up keys for each of his identities; and what
           a store or a refusal costs then
  index    for how long at most a model is not in the index at one keeper, after its node first came. He takes
           every place, and withdraws all at once just after the honest node has been told that enough speak

  scripts/study sybils             half a minute
  scripts/study sybils --quick     a few attackers only

Exit code 0: the promises of docs/decisions/0025 hold; 1: one does not; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Iterable
from time import process_time
from typing import Any

from rich.table import Table

from swarm_node.dht.directory import REFRESH_S, TTL_S
from swarm_node.dht.records.kept_entries import KeptEntries
from swarm_node.dht.records.keys import INDEX_SPEAKERS, MAX_ENTRIES, MAX_KEYS_OF_OWNER, MAX_TOTAL_ENTRIES

from ..lab.command_line import add_json, console, run_and_report, script_parser

KEY, INDEX = b"k" * 20, b"i" * 20
MODEL, GONE = b"model", b"gone"
NEWCOMERS = 100
INCUMBENTS = 50
KEY_ATTACKERS = [(1, 1), (512, 1), (20_000, 1), (512, 16), (20_000, 256), (20_000, 400), (20_000, 512)]
KEEPER_ATTACKERS = [(1, 1), (2000, 1), (2000, 100), (5000, 1000), (20_000, 8000), (20_000, 20_000)]
INDEX_ATTACKERS = [(6, 1), (200, 1), (200, 8), (200, 15), (16, 16), (400, 200)]
QUICK = {"key": [(600, 1), (600, 256)], "keeper": [(1200, 1)], "index": [(30, 15), (16, 16)]}


class Keeper:
    """One DHT node, asked as its callers ask it."""

    def __init__(self) -> None:
        self.now = 1e6
        self.kept = KeptEntries([INDEX], clock=lambda: self.now)

    def store(self, owner: str, network: str, key: bytes = KEY, body: bytes = b"") -> bool:
        entry = key, owner, f"{owner} {self.now}".encode(), self.now + TTL_S, network, body
        answer = self.kept.answer(*entry)
        return self.kept.put(*entry, by_owner=True) if answer is None else answer

    def has(self, owner: str, key: bytes = KEY) -> bool:
        return owner in self.kept.entries(key)


def attack_key(identities: int, networks: int) -> dict[str, float]:
    keeper, attacker = Keeper(), _attacker(identities, networks)
    there = [f"incumbent {number}" for number in range(INCUMBENTS)]
    come = [f"newcomer {number}" for number in range(NEWCOMERS)]
    for owner in there:
        keeper.store(owner, owner)
    lost = 0
    for round_ in range(int(TTL_S / REFRESH_S) + 1):
        for owner, network in attacker:
            keeper.store(owner, network)
        for owner in [*there, *(come if round_ else ())]:
            keeper.store(owner, owner)
        lost += sum(not keeper.has(owner) for owner in there)
        keeper.now += REFRESH_S
    return _told(identities, networks, sum(not keeper.has(owner) for owner in come) / len(come), lost)


def attack_keeper(identities: int, networks: int) -> dict[str, float]:
    keeper, attacker = Keeper(), _attacker(identities, networks)
    rng = random.Random(identities)
    made_up = [[rng.randbytes(20) for _ in range(MAX_KEYS_OF_OWNER)] for _ in attacker]
    keys = [rng.randbytes(20) for _ in range(3)]  # of honest entries
    there = [f"incumbent {number}" for number in range(INCUMBENTS)]
    come = [f"newcomer {number}" for number in range(NEWCOMERS)]
    _refresh(keeper, there, keys)
    for (owner, network), of_owner in zip(attacker, made_up, strict=True):
        for key in of_owner:
            keeper.store(owner, network, key)
    _refresh(keeper, [*there, *come], keys)
    refused, began = 0, process_time()
    for number, (owner, network) in enumerate(attacker[:4000]):  # and he goes on
        refused += not keeper.store(f"{owner} again", network, made_up[number][0][::-1])
    cost_us = 1e6 * (process_time() - began) / min(len(attacker), 4000)
    out = sum(not keeper.has(owner, key) for owner in come for key in keys) / (len(come) * len(keys))
    lost = sum(not keeper.has(owner, key) for owner in there for key in keys)
    return _told(identities, networks, out, lost) | {"cost_us": round(cost_us, 1), "held": len(keeper.kept)}


def attack_index(identities: int, networks: int) -> dict[str, float]:
    """In steps of a second, over ten refreshes; the attacker tries every moment within the honest refresh."""
    longest, saying = 0, hashlib.sha256(MODEL).hexdigest()
    for delay in range(1, int(REFRESH_S), 3):
        keeper, attacker = Keeper(), _attacker(identities, networks)
        gap = 0
        for second in range(200):
            if second % int(REFRESH_S) == 0:
                for owner, network in attacker:  # just before the honest node comes again
                    keeper.store(owner, network, INDEX, MODEL)
                keeper.store("honest", "home", INDEX, MODEL)
            elif second % int(REFRESH_S) == delay:
                for owner, network in attacker:
                    keeper.store(owner, network, INDEX, GONE)
            said = any(entry.saying == saying for entry in keeper.kept.entries(INDEX).values())
            gap = 0 if said else gap + 1
            longest = max(longest, gap)
            keeper.now += 1
    return {"identities": identities, "networks": networks, "gap_s": longest}


def _refresh(keeper: Keeper, owners: Iterable[str], keys: Iterable[bytes]) -> None:
    keeper.now += 1
    for owner in owners:
        for key in keys:
            keeper.store(owner, owner, key)


def _attacker(identities: int, networks: int) -> list[tuple[str, str]]:
    return [(f"sybil {number}", f"network {number % networks}") for number in range(identities)]


def _told(identities: int, networks: int, kept_out: float, lost: int) -> dict[str, float]:
    return {"identities": identities, "networks": networks, "kept_out": round(kept_out, 4), "lost": lost}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    attackers = (
        QUICK
        if arguments.quick
        else {"key": KEY_ATTACKERS, "keeper": KEEPER_ATTACKERS, "index": INDEX_ATTACKERS}
    )
    attacks = {"key": attack_key, "keeper": attack_keeper, "index": attack_index}
    report: dict[str, Any] = {
        kind: [attacks[kind](*attacker) for attacker in attackers[kind]] for kind in attacks
    }
    report["broken"] = broken(report)
    return report


def broken(report: dict[str, Any]) -> list[str]:
    """Promises that do not hold, as sentences."""
    honest = INCUMBENTS + NEWCOMERS
    told = []
    for kind, room in (("key", MAX_ENTRIES), ("keeper", MAX_TOTAL_ENTRIES // 3)):
        for case in report[kind]:
            who = f"{case['identities']} identities in {case['networks']} networks"
            if case["networks"] + honest > room:
                continue
            if case["lost"]:
                told.append(f"{who} push out of a {kind} who was there")
            if case["kept_out"]:
                told.append(f"{who} keep newcomers out of a {kind}")
    for case in report["index"]:
        most = 0 if case["networks"] < INDEX_SPEAKERS else REFRESH_S
        if case["gap_s"] > most:
            told.append(f"{case['networks']} networks make a model vanish for {case['gap_s']} s")
    return told


def show(report: dict[str, Any]) -> None:
    for kind, columns in (
        ("key", ("kept_out", "lost")),
        ("keeper", ("kept_out", "lost", "held", "cost_us")),
        ("index", ("gap_s",)),
    ):
        table = Table(title=kind, title_justify="left")
        for heading in ("identities", "networks", *columns):
            table.add_column(heading, justify="right")
        for case in report[kind]:
            table.add_row(*(f"{case[name]:,}" for name in ("identities", "networks", *columns)))
        console.print(table)
    for sentence in report["broken"]:
        console.print(f"[red]broken[/]: {sentence}")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = script_parser("study sybils", __doc__)
    parser.add_argument("--quick", action="store_true", help="a few attackers only")
    add_json(parser)
    return parser.parse_args(words)


def main() -> int:
    arguments = parse()
    return run_and_report(
        lambda: run(arguments), show, arguments.json, is_good=lambda report: not report["broken"]
    )
