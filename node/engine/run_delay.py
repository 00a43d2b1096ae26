"""How long the compute threads had work and no core, as Linux counts it for every thread."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from pathlib import Path

from ...shards.kernels.library import WORKER_NAME

_TASKS = Path("/proc/self/task")


class RunDelay:
    """Call it for the nanoseconds until now of the thread that made it and of the native workers of this
    process. Raises OSError where the system does not tell them."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise OSError("only Linux tells the run delay of a thread")
        own = str(threading.get_native_id())
        self.files: list[int] = []
        weakref.finalize(self, _close, self.files)
        for task in _TASKS.iterdir():
            if task.name == own or _name(task) == WORKER_NAME:
                self.files.append(os.open(task / "schedstat", os.O_RDONLY | os.O_CLOEXEC))

    def __call__(self) -> int:
        return sum(map(_delay_ns, self.files))


def _name(task: Path) -> str:
    try:
        return (task / "comm").read_text().strip()
    except OSError:  # it has ended
        return ""


def _delay_ns(file: int) -> int:
    """``schedstat``: nanoseconds on a core, nanoseconds in the run queue, time slices."""
    try:
        return int(os.pread(file, 100, 0).split()[1])
    except (OSError, IndexError, ValueError):  # the thread has ended
        return 0


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
