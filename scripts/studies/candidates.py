"""How a client fares among peers that are there to be in its way: in one process, over the in-memory network.

Two honest nodes serve each half of a model, each on a network of its own. Sybils announce all of it at the
least times that a record may claim. A client that knows nobody makes an answer, and two more. Told is the
time to the first token of its first answer and of the later ones, tokens per second, and which part of the
answers was made at all.

  closed   records of nobody: every dial is refused
  silent   records of nobody: no dial is ever answered
  mute     live nodes that open sessions, answer PING and never a STEP
  slow     live nodes that say microseconds and take a fifth of a second a token

  scripts/study candidates                    10, 100 and 1000 records, 10 and 40 live nodes
  scripts/study candidates --kinds mute --sybils 5 --networks 1 5

Exit code 0: every answer was made; 1: one was not; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Iterator
from itertools import product
from time import perf_counter
from typing import Any

from rich.table import Table

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.swarm.errors import SwarmError
from swarm_node.swarm.figures import DECODE_MS, PREFILL_TOKENS_PER_S
from swarm_node.swarm.links.link import Patience
from swarm_node.swarm.protocol.messages import Step
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.types import Span
from tests.doubles.fake_node import FakeNode
from tests.doubles.fake_swarm import BOS, FakeSwarm

from ..lab.command_line import add_json, console, count, run_and_report, script_parser

KINDS = ("closed", "silent", "mute", "slow")
LIVE = ("mute", "slow")
RECORDS, LIVE_NODES = (10, 100, 1000), (10, 40)
LATENCY_S = 0.01
HONEST_S = 0.01
"""A step at an honest node."""
SLOW_S = 0.2
TOKENS = 48
ANSWERS = 3
LONGEST_S = 60.0
"""An answer that takes longer counts as not made."""


async def swarm_with(kind: str, sybils: int, networks: int) -> FakeSwarm:
    """Honest nodes, and ``sybils`` others on as many networks as ``networks``."""
    swarm = FakeSwarm(LATENCY_S, a="0-2", b="0-2", c="3-5", d="3-5")
    names = [f"sybil{number}" for number in range(sybils)]
    if kind in LIVE:
        for name in names:
            swarm.nodes[name] = node = FakeNode(name, Span(0, 6), swarm.network)
            if kind == "mute":
                node.behaviour.swallows = frozenset({Step})
            else:
                node.behaviour.step_delay_s, node.behaviour.told_us = SLOW_S, 1
    for name in "abcd":
        node = swarm.nodes[name]
        node.behaviour.step_delay_s, node.behaviour.told_us = HONEST_S, round(HONEST_S * 1e6)
    for node in swarm.nodes.values():
        await swarm.network.transport(node.peer_id).serve(PROTOCOL_ID, node.handle)
    for number, name in enumerate("abcd"):
        ms = HONEST_S * 1000 / len(swarm.nodes[name].span)
        swarm.announce(name, maddrs=(f"/ip4/8.8.{number}.1/tcp/1",), decode_ms_per_block=ms)
    for number, name in enumerate(names):
        here = number % networks
        claim = {
            "maddrs": (f"/ip4/9.{here // 256}.{here % 256}.{number // networks % 256}/tcp/{1 + number}",),
            "decode_ms_per_block": DECODE_MS.low,
            "prefill_tokens_per_s": PREFILL_TOKENS_PER_S.high,
        }
        if name not in swarm.nodes:
            swarm.nodes[name] = FakeNode(name, Span(0, 6), swarm.network)
        swarm.announce(name, **claim)
        if kind == "silent":
            swarm.network.partition("client", name)
    return swarm


async def answer(model: AsyncSwarmModel) -> tuple[float, float] | None:
    """(seconds to the first token, tokens per second); None if it was not made."""
    began = perf_counter()
    try:
        async with asyncio.timeout(LONGEST_S):
            result = await model.generate_detailed([BOS, 3], max_new_tokens=TOKENS, ignore_eos=True)
    except (SwarmError, TimeoutError) as error:
        console.print(f"  not made: {error}", markup=False)
        return None
    whole = perf_counter() - began
    return whole - result.timings.decode_s, TOKENS / whole


async def measured(kind: str, sybils: int, networks: int, clients: int) -> dict[str, Any]:
    """One line of the table."""
    first: list[float] = []
    later: list[float] = []
    rates: list[float] = []
    asked = made = 0
    for _ in range(clients):
        swarm = await swarm_with(kind, sybils, networks)
        async with swarm.client(patience=Patience(), router=swarm.router(salt=None)) as model:
            for number in range(ANSWERS):
                asked += 1
                if (figures := await answer(model)) is not None:
                    made += 1
                    (later if number else first).append(figures[0])
                    rates.append(figures[1])
        for node in swarm.nodes.values():
            node.die()
            swarm.network.kill(node.peer_id)
        await asyncio.sleep(0.01)  # for what they still do to end
    return {
        "kind": kind,
        "sybils": sybils,
        "networks": networks,
        "made": made / asked,
        "first_s": {"median": _median(first), "worst": max(first, default=0.0)},
        "later_s": {"median": _median(later), "worst": max(later, default=0.0)},
        "tokens_per_s": {"median": _median(rates), "worst": min(rates, default=0.0)},
    }


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def cases(options: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    yield "closed", 0, 1  # nobody in the way
    for kind in options.kinds:
        numbers = options.sybils or (LIVE_NODES if kind in LIVE else RECORDS)
        for sybils, networks in product(numbers, options.networks):
            if networks <= sybils:
                yield kind, sybils, networks


def show(report: dict[str, Any]) -> None:
    table = Table(title="A client among sybils; median and worst", title_justify="left")
    for heading in ("sybils", "networks", "answers made", "first token, s", "later ones, s", "tokens/s"):
        table.add_column(heading, justify="left" if heading == "sybils" else "right")
    for line in report["lines"]:
        table.add_row(
            f"{line['sybils']} {line['kind']}" if line["sybils"] else "none",
            str(line["networks"]) if line["sybils"] else "",
            f"{line['made']:.0%}",
            *(f"{line[key]['median']:.2f} / {line[key]['worst']:.2f}" for key in ("first_s", "later_s")),
            f"{line['tokens_per_s']['median']:.0f} / {line['tokens_per_s']['worst']:.0f}",
        )
    console.print(table)


def main() -> int:
    parser = script_parser("study candidates", __doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of sybils")
    parser.add_argument("--sybils", nargs="+", type=count, metavar="N", help="how many")
    parser.add_argument(
        "--networks", nargs="+", type=count, default=[1, 10], metavar="M", help="that they claim (1 10)"
    )
    parser.add_argument("--clients", type=count, default=3, metavar="N", help="that know nobody (3)")
    add_json(parser)
    options = parser.parse_args()

    def run() -> dict[str, Any]:
        return {"lines": [asyncio.run(measured(*case, options.clients)) for case in cases(options)]}

    return run_and_report(
        run, show, options.json, is_good=lambda report: all(line["made"] == 1 for line in report["lines"])
    )
