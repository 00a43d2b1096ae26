"""``swarm-node``, which tells at its end what it has imported and which processes it has started: for tests.

Arguments are those of ``swarm-node``. One line of JSON on standard error: ``loaded``, ``started``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

WATCHED = ("hivemind", "grpc", "libp2p", "torch", "transformers")

started: list[str] = []


def note(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
        started.append(os.path.basename(os.fsdecode(arguments[0])))
    elif event in ("os.fork", "os.forkpty"):
        started.append(event)


if __name__ == "__main__":
    sys.addaudithook(note)
    from swarm_node.node.cli.main import main

    code = main(sys.argv[1:])
    loaded = [name for name in WATCHED if name in sys.modules]
    sys.stderr.write(json.dumps({"loaded": loaded, "started": started}) + "\n")
    sys.exit(code)
