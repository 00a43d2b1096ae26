"""``swarm-node`` as on a machine without p2pd, and without what only Unix has: for the tests.

Arguments are those of ``swarm-node``. Modules are hidden from our code alone, since Python's own, on this
machine, needs some of them. At its end it tells what was loaded all the same, as JSON on standard error.
"""

from __future__ import annotations

import asyncio
import builtins
import json
import os
import signal
import sys
from typing import Any

HIDDEN = {
    "curses",
    "fcntl",
    "grp",
    "hivemind",
    "posix",
    "pty",
    "pwd",
    "readline",
    "resource",
    "termios",
    "tty",
    "uvloop",
}
MISSING = {
    os: ("O_CLOEXEC", "chown", "fork", "getuid", "geteuid", "killpg", "sched_getaffinity", "setsid"),
    signal: ("SIGKILL", "SIGUSR1", "SIGWINCH", "SIGHUP"),
}


def hide() -> None:
    """From here on this is no Unix."""
    import huggingface_hub  # noqa: F401  whose own imports are not our business
    import psutil  # noqa: F401
    import torch  # noqa: F401

    usual_import, find_spec = builtins.__import__, sys.modules["importlib.util"].find_spec

    def guarded(name: str, globals: Any = None, *rest: Any, **more: Any) -> Any:
        whose = (globals or {}).get("__name__") or ""
        if whose.startswith("swarm_node") and name.split(".")[0] in HIDDEN:
            raise ImportError(f"{name} is not on this machine")
        return usual_import(name, globals, *rest, **more)

    builtins.__import__ = guarded
    sys.modules["importlib.util"].find_spec = (  # type: ignore[attr-defined]
        lambda name, package=None: None if name in HIDDEN else find_spec(name, package)
    )
    for module, names in MISSING.items():
        for name in names:
            vars(module).pop(name, None)

    def no_signals(*_: object) -> None:
        raise NotImplementedError

    asyncio.SelectorEventLoop.add_signal_handler = no_signals  # type: ignore[method-assign, assignment]
    asyncio.SelectorEventLoop.create_unix_server = no_signals  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    hide()
    from swarm_node.node.cli.main import main

    code = main(sys.argv[1:])
    import psutil

    loaded = sorted({"hivemind", "grpc", "uvloop"} & set(sys.modules))
    children = [child.name() for child in psutil.Process().children(recursive=True)]
    sys.stderr.write(json.dumps({"loaded": loaded, "children": children}) + "\n")
    sys.exit(code)
