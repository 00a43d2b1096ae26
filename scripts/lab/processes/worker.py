"""A function in a process of its own: contenders of the benchmark, clients that a test may kill.

``run_in_process("scripts.lab.bench.engine:engine_alone", threads=1)`` runs this module in a new process. It
imports the other, calls the function with these options and prints what it returns as one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from .event_process import child_environment

TIMEOUT_S = 600.0


class WorkerFailedError(RuntimeError):
    """A worker ended badly; the message holds the end of its error output."""


class Worker:
    """One process that runs ``module:function``, with keyword arguments."""

    def __init__(self, function: str, **options: Any) -> None:
        self.function = function
        # A file, not a pipe that nobody empties while the worker runs.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the worker
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, function, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=child_environment(),
            start_new_session=True,  # a Ctrl-C at the terminal is for the parent, which ends its children
        )

    def wait_ready(self) -> None:
        """Until its function calls ``say_ready``. Raises WorkerFailedError if it ends before."""
        if self.process.stdout is None or self.process.stdout.readline() != "ready\n":
            self.kill()
            raise WorkerFailedError(f"{self.function} was never ready:\n{self.stderr[-3000:]}")

    @property
    def is_ready(self) -> bool:
        """Whether ``wait_ready`` would return at once, or raise."""
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def go_on(self) -> None:
        """Wake its ``wait_for_parent``."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended: its result says why
                self.process.stdin.write("go\n")
                self.process.stdin.flush()

    def result(self) -> Any:
        """Wait for its end and return what the function returned. Raises WorkerFailedError."""
        try:
            stdout, _ = self.process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise WorkerFailedError(f"{self.function} took more than {TIMEOUT_S:.0f} s") from None
        if self.process.returncode:
            raise WorkerFailedError(f"{self.function} failed:\n{self.stderr[-3000:]}")
        return json.loads(stdout.splitlines()[-1])

    @property
    def stderr(self) -> str:
        """What it has said on standard error so far."""
        self._errors.seek(0)
        return self._errors.read()

    def kill(self) -> None:
        """SIGKILL it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for file in (self.process.stdin, self.process.stdout, self._errors):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()


def run_in_process(function: str, **options: Any) -> Any:
    """``module:function``, called with ``options`` in a fresh process; its result."""
    with workers(function, [options]) as (worker,):
        return worker.result()


@contextlib.contextmanager
def workers(function: str, options: Sequence[dict[str, Any]]) -> Iterator[list[Worker]]:
    """One process for each set of options; none stays behind."""
    started: list[Worker] = []
    try:
        for each in options:  # one by one: those started must be ended if the next cannot be
            started += [Worker(function, **each)]
        yield started
    finally:
        for worker in started:
            worker.close()


# Inside a worker.


def say_ready() -> None:
    """Tell the parent that everything is set up."""
    print("ready", flush=True)


async def wait_for_parent() -> None:
    """Until the parent says so, or is gone."""
    await asyncio.to_thread(sys.stdin.readline)


def _main() -> int:
    module, _, function = sys.argv[1].partition(":")
    result = getattr(import_module(module), function)(**json.loads(sys.argv[2]))
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
