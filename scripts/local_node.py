"""One serving node that tells how it is when asked: what the soak test and some benchmarks watch.

    local_node.py '{"idle_session_seconds": 2}' serve --json --model PATH --blocks 0-14 ...

The words after the first are those of ``swarm-node``; the first is a JSON object of ``NodeConfig`` fields
that the command line has no option for. Each line on standard input that says ``statistics`` is answered with
one JSON event on standard output: the node's own statistics, and what only the process itself can see.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import uvloop

from swarm_node.node.cli_output import events, exit_code_of, print_error, set_up_logging
from swarm_node.node.cli_parser import build_parser
from swarm_node.node.cli_serve import node_config
from swarm_node.node.serve import Node
from swarm_node.swarm.errors import SwarmError


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
        return {
            "rss": process.memory_info().rss,
            "fds": process.num_fds(),
            "threads": process.num_threads(),
        }


async def serve(words: list[str], overrides: dict[str, Any]) -> None:
    arguments = build_parser().parse_args(words)
    set_up_logging(arguments.log_level)
    config = replace(node_config(arguments, Path(arguments.identity)), **overrides)
    node = Node(config, lambda event: events.print(event.as_dict()))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, node.request_stop)
    with _answering(loop, lambda: events.print(statistics_of(node))):
        await node.run()


@contextlib.contextmanager
def _answering(loop: asyncio.AbstractEventLoop, answer: Callable[[], None]) -> Any:
    """Call ``answer`` for each line of standard input. A whole line comes in one read of the pipe."""
    descriptor = sys.stdin.fileno()

    def on_input() -> None:
        asked = os.read(descriptor, 4096)
        if not asked:  # the parent is gone or does not ask any more
            loop.remove_reader(descriptor)
        for _ in range(asked.count(b"statistics\n")):
            answer()

    loop.add_reader(descriptor, on_input)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)


def main() -> int:
    overrides = json.loads(sys.argv[1])
    try:
        uvloop.run(serve(sys.argv[2:], overrides))
    except (SwarmError, BaseExceptionGroup) as error:
        print_error(error, as_json=True)
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
