"""How a script that runs a swarm and reports on it ends: tables or JSON, and never a traceback."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from .local_swarm import ProcessFailedError
from .processes.worker import WorkerFailedError


def run_and_report(
    run: Callable[[], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
    json_to: str | None,
    console: Console,
) -> dict[str, Any] | int:
    """The report, printed, and written to the file ``json_to`` (- is standard output); or an exit code."""
    # A SIGTERM must end the children too: turned into the exception that closes the swarm.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        report = run()
    except KeyboardInterrupt:
        return 130
    except (WorkerFailedError, ProcessFailedError) as error:
        console.print(f"error: {error}", markup=False)
        return 1
    show(report)
    text = json.dumps(report, indent=2) + "\n"
    if json_to == "-":
        sys.stdout.write(text)
    elif json_to:
        Path(json_to).write_text(text)
    return report
