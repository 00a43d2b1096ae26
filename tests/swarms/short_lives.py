"""Runs a Python program of ours in which announcements live for some seconds and a machine sleeps for fewer.

short_lives.py TTL_SECONDS SLEPT_SECONDS PROGRAM...        a script, or -m and a module, and its words
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from swarm_node.dht.kademlia.directory import HivemindDirectory
from swarm_node.swarm.transport.p2pd import supervisor


def main() -> None:
    ttl, slept, *program = sys.argv[1:]
    HivemindDirectory.create.__func__.__kwdefaults__["ttl"] = float(ttl)  # type: ignore[attr-defined]
    supervisor.SLEPT_S = float(slept)
    if program[0] == "-m":
        sys.argv = program[1:]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        sys.path.insert(0, str(Path(program[0]).parent))
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main()
