"""A function in a process of its own: contenders of the benchmark, clients that a test may kill.

``run_in_process("scripts.lab.bench.engine:engine_alone", threads=1)`` runs this module in a new process. It
imports the other, calls the function with these options, and tells what it returns as its last event.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from .child import Launch, launch_python
from .event_process import EventProcess
from .parent import tell

TIMEOUT_S = 600.0
"""How long a worker may take to be ready, and then for its result."""


class Worker(EventProcess):
    """A process that runs ``module:function`` with keyword arguments, and may tell events and take orders."""

    def __init__(
        self,
        function: str,
        *,
        environment: dict[str, str] | None = None,
        launch: Launch = launch_python,
        **options: Any,
    ) -> None:
        arguments = ["-m", __name__, function, json.dumps(options)]
        super().__init__(function, arguments, environment=environment, asked=True, launch=launch)

    def wait_ready(self) -> None:
        """Until its function tells "ready". Raises ProcessFailedError if it ends before."""
        self.wait_for("ready", TIMEOUT_S)

    def result(self) -> Any:
        """Wait for its end and return what the function returned. Raises ProcessFailedError."""
        return self.wait_for("result", TIMEOUT_S)["value"]


def run_in_process(function: str, *, python: str = sys.executable, **options: Any) -> Any:
    """``module:function``, called with ``options`` in a fresh process of ``python``; its result."""
    with contextlib.closing(
        Worker(function, launch=partial(launch_python, python=python), **options)
    ) as worker:
        return worker.result()


@contextlib.contextmanager
def workers(function: str, options: Sequence[dict[str, Any]]) -> Iterator[list[Worker]]:
    """One process for each set of options; none stays behind."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Worker(function, **each))) for each in options]


def main(words: list[str]) -> int:
    """``words``: the function, and its options as JSON."""
    module, _, function = words[0].partition(":")
    tell("result", value=getattr(import_module(module), function)(**json.loads(words[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
