"""Runs a Python program of ours in which announcements live for some seconds and a machine sleeps for fewer.

python -m tests.swarms.short_lives TTL_SECONDS SLEPT_SECONDS -m MODULE WORDS...
"""

from __future__ import annotations

import runpy
import sys

from swarm_node.dht.kademlia.directory import HivemindDirectory
from swarm_node.swarm.transport.p2pd import supervisor


def main() -> None:
    ttl, slept, *program = sys.argv[1:]
    HivemindDirectory.create.__func__.__kwdefaults__["ttl"] = float(ttl)  # type: ignore[attr-defined]
    supervisor.SLEPT_S = float(slept)
    sys.argv = program[1:]
    runpy.run_module(program[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
