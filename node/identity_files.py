"""Which key file a process uses. Two live processes must never share one: they would be the same peer."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from ..swarm.errors import UsageError
from ..swarm.runtime.state_files import state_folder

MAX_DEFAULT_IDENTITIES = 64
"""Processes on one machine that may each take a default key."""


class IdentityClaim:
    """Holds a key file's path for this process alone, by a lock on ``<path>.lock``, until closed.

    With ``path`` None takes the first default ``<role>-N.key`` that is free, so that several nodes can be
    started on one machine without options, each keeping its PeerID over restarts. Raises UsageError when the
    file is taken, is not an ordinary file, or its folder cannot be written.
    """

    def __init__(self, path: str | Path | None, role: str) -> None:
        if path is not None:
            self.path = Path(path)
            if not self.path.name or (self.path.exists() and not self.path.is_file()):
                raise UsageError(
                    f"{str(path)!r} is not an ordinary file, and an identity is locked while it is in use",
                    hint="Give --identity the name of a file; a missing one is created.",
                )
            lock = _try_lock(self.path)
            if lock is None:
                raise UsageError(
                    f"{self.path} is the identity of a process that is running",
                    hint="Stop that one, or give this one another --identity file.",
                )
            self._lock = lock
            return
        for number in range(1, MAX_DEFAULT_IDENTITIES + 1):
            self.path = state_folder() / f"{role}-{number}.key"
            lock = _try_lock(self.path)
            if lock is not None:
                self._lock = lock
                return
        raise UsageError(
            f"all {MAX_DEFAULT_IDENTITIES} default identities in {state_folder()} are in use",
            hint="Pass --identity FILE.",
        )

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _try_lock(path: Path) -> FileLock | None:
    """The lock, held, or None when another process has it."""
    lock_path = path.with_name(path.name + ".lock")
    lock = FileLock(lock_path, timeout=0, mode=0o600)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire()
    except Timeout:
        return None
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError)  # a file, or a link that leads nowhere
        raise UsageError(
            f"{path.parent} is not a folder" if in_the_way else f"cannot write {lock_path}: {error.strerror}",
            hint="Choose a writable place with --identity FILE or SWARM_NODE_HOME.",
        ) from error
    return lock
