"""Runs a program of ours with some of its times shorter: what takes a minute for people takes seconds here.

python -m tests.swarms.short_times TIMES MODULE WORDS...

TIMES is a JSON object of seconds. A name is ``module:CONSTANT``, or ``module:function:argument`` for the
default of an argument that is given by name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from operator import attrgetter

from scripts.lab.processes.child import Child, Launch, main_of


def with_times(launch: Launch, times: Mapping[str, float]) -> Launch:
    """Starts a module's ``main`` with these times."""

    def start(arguments: Sequence[str], environment: dict[str, str], asked: bool) -> Child:
        flag, *program = arguments
        return launch([flag, __name__, json.dumps(times), *program], environment, asked)

    return start


def shorten(name: str, seconds: float) -> None:
    module, path, *argument = name.split(":")
    owner = import_module(f"swarm_node.{module}")
    found = attrgetter(path)(owner)  # raises if it has another name by now
    if argument:
        defaults = getattr(found, "__func__", found).__kwdefaults__
        owner, path = defaults, argument[0]
        if path not in defaults:
            raise AttributeError(f"{name} is no argument")
        defaults[path] = seconds
    else:
        setattr(owner, path, seconds)


def main(words: list[str]) -> int:
    times, module, *rest = words
    for name, seconds in json.loads(times).items():
        shorten(name, seconds)
    return main_of(module)(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
