"""One serving node that tells how it is when asked, and has faults when told: what soak and chaos watch.

    python -m scripts.lab.local_node '{"idle_session_seconds": 2}' serve --json --model PATH --blocks 0-14 ...

The words after the first are those of ``swarm-node``; the first is a JSON object of ``NodeConfig`` fields
that the command line has no option for. Each line on standard input is an order:

    statistics      answered with one JSON event: the node's own statistics, what only the process can see
    hostile KIND    spoil what it sends from now on (see ``faulty_transport.KINDS``); without a kind: stop it
    crashes R SEED  the probability for each step that it loses all its streams instead of answering
    skew SECONDS    how far its wall clock is ahead from now on

At the end of the input, its parent is gone: the node leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import uvloop

from swarm_node.node import node as serving
from swarm_node.node.auto.blocks import begin_auto
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.serving.serve import node_config
from swarm_node.node.cli.shared.logs import LogOptions, set_up_logging
from swarm_node.node.cli.shared.output import events, exit_code_of, print_error
from swarm_node.node.node import Node
from swarm_node.swarm.errors import SwarmError

from . import skewed_clock
from .faulty_transport import Faults, FaultyNetwork


def statistics_of(node: Node) -> dict[str, Any]:
    """Counts now: ``server`` and ``engine`` once online; ``tasks`` by the name of their coroutine; ``daemon``
    is the node's p2pd."""
    statistics = node.statistics()
    process = psutil.Process()
    tasks = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
    return {
        "event": "statistics",
        **({} if statistics is None else asdict(statistics)),
        "tasks": dict(sorted(tasks.items())),
        "process": usage_of(process),
        "daemon": [usage_of(child) for child in process.children()],
    }


def usage_of(process: psutil.Process) -> dict[str, int]:
    """``rss`` in bytes, open file descriptors and threads."""
    with process.oneshot():
        return {"rss": process.memory_info().rss, "fds": process.num_fds(), "threads": process.num_threads()}


async def serve(words: list[str], overrides: dict[str, Any]) -> None:
    arguments = build_parser().parse_args(words)
    set_up_logging(LogOptions.of(arguments))
    config = replace(node_config(arguments, Path(arguments.identity)), **overrides)
    faults = Faults()
    _send_through(faults)
    node = Node(config, lambda event: events.print(event.as_dict()), begin_auto=begin_auto)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, node.request_stop)

    def obey(order: str) -> None:
        match order.split():
            case ["statistics"]:
                events.print({**statistics_of(node), "crashes": faults.crashes, "spoilt": faults.spoilt})
            case ["hostile", *kinds]:
                faults.kind = kinds[0] if kinds else ""
            case ["crashes", rate, seed]:
                faults.set_crashes(float(rate), int(seed))
            case ["skew", seconds]:
                skewed_clock.set_skew(float(seconds))

    def leave() -> None:
        node.request_stop()
        node.request_stop()  # a second time: without waiting for sessions

    with _orders(loop, obey, leave):
        await node.run()


def _send_through(faults: Faults) -> None:
    """Let every network that a node of this process opens have these faults."""
    opened = serving.open_network

    async def open_faulty(*arguments: Any, **options: Any) -> FaultyNetwork:
        return FaultyNetwork(await opened(*arguments, **options), faults)

    serving.open_network = open_faulty  # type: ignore[assignment]


@contextlib.contextmanager
def _orders(
    loop: asyncio.AbstractEventLoop, obey: Callable[[str], None], at_end: Callable[[], None]
) -> Iterator[None]:
    """Call ``obey`` for each line of standard input, ``at_end`` when it ends."""
    descriptor = sys.stdin.fileno()
    rest = b""

    def on_input() -> None:
        nonlocal rest
        read = os.read(descriptor, 4096)
        if not read:
            loop.remove_reader(descriptor)
            at_end()
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            obey(line.decode())

    loop.add_reader(descriptor, on_input)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)


def main(words: list[str]) -> int:
    """``words``: the overrides as JSON, and those of ``swarm-node``. Returns the exit code."""
    skewed_clock.install()
    overrides = json.loads(words[0])
    try:
        uvloop.run(serve(words[1:], overrides))
    except (SwarmError, BaseExceptionGroup) as error:
        print_error(error, as_json=True)
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
