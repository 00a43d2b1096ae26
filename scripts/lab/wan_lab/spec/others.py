"""A user who decodes plainly, on hops that four others use too: alone, and beside plain and speculating
ones."""

from __future__ import annotations

import argparse
import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ....studies.speculation.prompts import chat
from ...command_line import say
from ...processes.worker import Worker, workers
from ...prompts import TOPICS
from ..swarm import WanSwarm
from .figures import Run, speed
from .stand_in import StandIn

OTHERS = 4
GOAL = 0.97
"""Of the user's speed beside others who decode plainly."""
TOKENS = 64
RATE = 1e8
"""Of each machine, in bit/s."""
WAYS = ("alone", "beside plain", "beside speculating")


def others_beside(swarm: WanSwarm, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every user is a process in a machine of its own; but all share this computer's cores."""
    names = [f"user{number}" for number in range(OTHERS + 1)]
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    busy: dict[str, list[Run]] = {way: [] for way in WAYS}
    with _users(swarm, names, arguments.wire_codec) as (user, *others):
        swarm.lab.set_all(rtt_s=arguments.rtt)
        swarm.lab.set_every_machine(up=RATE, down=RATE)
        known = [answer(other, number, None)["token_ids"] for number, other in enumerate(others)]
        for _ in range(arguments.repeat):
            for way in WAYS:
                say(f"a user who decodes plainly, {way}")
                with _at_work(others, known, way) as theirs:
                    runs[way].append(answer(user, OTHERS, None))
                busy[way] += theirs
    return others_figures(runs, busy)


def others_figures(runs: dict[str, list[Run]], busy: dict[str, list[Run]]) -> dict[str, Any]:
    """``runs``: the user's, ``busy``: those of the others that were over meanwhile."""
    speeds = {way: statistics.median(map(speed, runs[way])) for way in WAYS}
    return {
        "tokens_per_s": speeds,
        "queue_ms_per_token": {
            way: statistics.median(1000 * sum(run["queue_s"]) / (run["tokens"] - 1) for run in runs[way])
            for way in WAYS
        },
        "others_tokens_per_s": {way: statistics.mean(map(speed, each)) for way, each in busy.items() if each},
        "times": speeds["beside speculating"] / speeds["beside plain"],
        "times_alone": speeds["beside speculating"] / speeds["alone"],
        "goal": GOAL,
    }


def answer(user: Worker, number: int, known: Sequence[int] | None) -> Run:
    """``known``: speculate, with a stand-in that is right 74 % of the time."""
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "ignore_eos": True}
    order: dict[str, Any] = {"prompt": chat(f"Explain {TOPICS[number]}."), "options": options}
    if known is None:
        options["speculate"] = "off"
    else:
        order |= {"known": list(known), "stand_in": StandIn((0.74,), seed=number + 1).as_dict()}
    user.order(**order)
    return user.wait_for("answered", 600.0)


@contextmanager
def _at_work(others: Sequence[Worker], known: Sequence[Sequence[int]], way: str) -> Iterator[list[Run]]:
    """The ``others`` answer again and again; their answers are all there when this is over."""
    over = threading.Event()
    runs: list[Run] = []

    def work(number: int) -> None:
        while not over.is_set():
            runs.append(answer(others[number], number, known[number] if "speculating" in way else None))

    threads = [] if way == "alone" else [threading.Thread(target=work, args=(n,)) for n in range(len(others))]
    for thread in threads:
        thread.start()
    try:
        yield runs
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextmanager
def _users(swarm: WanSwarm, names: Sequence[str], wire_codec: str) -> Iterator[list[Worker]]:
    options = {"initial_peers": swarm.initial_peers, "threads": 1, "wire_codec": wire_codec}
    with ExitStack() as stack:
        users: list[Worker] = []
        for name in names:
            swarm.lab.add(name)
            with swarm.lab.inside(name):
                function = "scripts.lab.wan_lab.spec.client:answer_orders"
                users += stack.enter_context(workers(function, [options]))
        for user in users:
            user.wait_ready()
        yield users
