"""The processes that have a piece store open: each holds a locked file, and the lock ends with the
process."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

from filelock import FileLock, Timeout

_USERS = "users"
_numbers = itertools.count()


class StoreUser:
    """Says that a store is in use, until it is released. OSError where the folder cannot be written."""

    def __init__(self, store: Path) -> None:
        folder = store / _USERS
        folder.mkdir(exist_ok=True, mode=0o700)
        self._path = folder / f"{os.getpid()}-{time.monotonic_ns()}-{next(_numbers)}.lock"
        self._lock = FileLock(self._path, thread_local=False)
        self._lock.acquire(timeout=0)

    def release(self) -> None:
        """Idempotent."""
        if self._lock.is_locked:
            self._lock.release()
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)


def is_used(store: Path) -> bool:
    """Whether some process, this one included, has the store open. Forgets those that have died."""
    for marker in (store / _USERS).glob("*.lock"):
        lock = FileLock(marker)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:
            continue  # of a folder that cannot be written, and so is not evicted
        lock.release()
        with contextlib.suppress(OSError):
            marker.unlink(missing_ok=True)
    return False
