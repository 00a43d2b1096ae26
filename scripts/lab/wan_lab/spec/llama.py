"""llama.cpp beside: the same model over as many RPC servers behind the same links, plainly and with lookups.

Its client computes embedding and head, as ours does, and each server a third of the blocks. What goes from a
server to the next goes through the client.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from ...command_line import say
from ...processes.child import launch_python
from ...processes.worker import Worker
from ..network import WanLab
from .llama_worker import PORT

HOPS = 3
AHEAD = (16, 64)
"""Tokens that a lookup guesses at most: llama.cpp's own number, and one for copies."""
ROUNDS = 1
"""Its times hardly differ from round to round, and an answer of 240 tokens takes it 80 seconds."""
ANSWER_S = 600.0


def llama_beside(arguments: argparse.Namespace, asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``asked``: name, prompt ids and forced answer ids of each text. Loads over links that are fast yet."""
    say("llama.cpp: a client and three RPC servers")
    with ExitStack() as stack:
        lab = stack.enter_context(WanLab())
        client = stack.enter_context(_client(lab, arguments.llama_python))
        results = []
        for name, rate in arguments.rates:
            lab.set_all(rtt_s=arguments.rtt)
            lab.set_every_machine(up=rate, down=rate)
            for each in asked:
                say(f"llama.cpp, {name}: {each['name']}")
                rounds = [_round(client, each) for _ in range(ROUNDS)]
                results += [
                    {**found, "rate": rate, "rate_name": name} for found in figures(each["name"], rounds)
                ]
        client.order()
        version = client.result()
    return {"version": version, "results": results}


def _round(client: Worker, each: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """By the number of tokens that are guessed at most: 0 is plain decoding."""
    found = {}
    for ahead in (0, *AHEAD):
        client.order(prompt=each["prompt"], forced=each["forced"], ahead=ahead)
        found[ahead] = client.wait_for("answered", ANSWER_S)
    return found


def figures(name: str, rounds: Sequence[dict[int, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Of each number of tokens that were guessed at most."""
    plain = [each[0]["tokens_per_s"] for each in rounds]
    for ahead in AHEAD:
        runs = [each[ahead] for each in rounds]
        ratios = [run["tokens_per_s"] / beside for run, beside in zip(runs, plain, strict=True)]
        yield {
            "name": f"{name}: lookup, {ahead} tokens at most",
            "tokens": runs[0]["tokens"],
            "plain_tokens_per_s": statistics.median(plain),
            "tokens_per_s": statistics.median(run["tokens_per_s"] for run in runs),
            "times": statistics.median(ratios),
            "ratios": ratios,
            "batches": statistics.median(run["batches"] for run in runs),
        }


@contextmanager
def _client(lab: WanLab, python: str) -> Iterator[Worker]:
    names = ["client", *(f"server{number}" for number in range(HOPS))]
    hosts = {name: lab.add(name) for name in names}
    launch = partial(launch_python, python=python)
    with ExitStack() as stack:

        def start(name: str, function: str, **options: Any) -> Worker:
            with lab.inside(name):
                worker = Worker(f"scripts.lab.wan_lab.spec.llama_worker:{function}", launch=launch, **options)
            stack.callback(worker.stop)
            worker.wait_ready()
            return worker

        for name in names[1:]:
            start(name, "serve", host=hosts[name])
        yield start("client", "answer_orders", servers=[f"{hosts[name]}:{PORT}" for name in names[1:]])
