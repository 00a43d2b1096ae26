"""``swarm-node``, which tells at its end what it has imported and which processes it has started: for tests.

Arguments are those of ``swarm-node``. One line of JSON on standard error: ``loaded``, ``started``, and
``peak_mb``, the most memory that it had at once (0 where the system does not say).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

WATCHED = (
    "grpc",
    "hivemind",
    "hivemind.dht",
    "libp2p",
    "mlx",
    "numpy",
    "pydantic",
    "scipy",
    "torch",
    "transformers",
    "triton",
)

started: list[str] = []


def note(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
        started.append(os.path.basename(os.fsdecode(arguments[0])))
    elif event in ("os.fork", "os.forkpty"):
        started.append(event)


def note_coroutines() -> None:
    """uvloop starts processes in a library that tells no audit hook."""
    usual = asyncio.create_subprocess_exec

    async def noted(program: Any, *rest: Any, **more: Any) -> Any:
        note("os.exec", (program,))
        return await usual(program, *rest, **more)

    asyncio.create_subprocess_exec = noted


def peak_mb() -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(peak[1]) / 1000 if peak else 0.0


if __name__ == "__main__":
    sys.addaudithook(note)
    note_coroutines()
    from swarm_node.node.cli.main import main

    code = main(sys.argv[1:])
    loaded = [name for name in WATCHED if name in sys.modules]
    sys.stderr.write(json.dumps({"loaded": loaded, "started": started, "peak_mb": peak_mb()}) + "\n")
    sys.exit(code)
