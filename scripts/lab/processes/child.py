"""How child processes are started: cold here, warm by ``fork_server``. What both have in common."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import IO, Protocol

from ... import ROOT


class ProcessFailedError(RuntimeError):
    """A process ended or said nothing in time; the message holds the end of its error output."""


class Child(Protocol):
    """The part of subprocess.Popen that is used here; pipes are of text."""

    stdin: IO[str] | None
    stdout: IO[str] | None
    stderr: IO[str] | None
    returncode: int | None

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int) -> None: ...


Launch = Callable[[Sequence[str], dict[str, str], bool], Child]
"""``launch(arguments, environment, asked)``: a Python process with these arguments; ``environment`` comes on
top of ours, and only one that is ``asked`` gets a pipe as its standard input."""


def launch_python(
    arguments: Sequence[str], environment: dict[str, str], asked: bool, *, python: str = sys.executable
) -> Child:
    """A process of its own, in the usual way."""
    return subprocess.Popen(
        [python, *arguments],
        stdin=subprocess.PIPE if asked else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(environment),
        start_new_session=True,  # a Ctrl-C at the terminal is for the parent, which ends its children
    )


def child_environment(own: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, in which a child also finds the packages of the checkout, and what is its ``own``."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(own or {})}


def main_of(program: str) -> Callable[[list[str]], int]:
    """The function ``main(words)`` of what ``python -m`` runs: a module, or a package's ``__main__``."""
    module = import_module(program)
    if hasattr(module, "__path__"):
        module = import_module(f"{program}.__main__")
    main: Callable[[list[str]], int] = module.main
    return main
