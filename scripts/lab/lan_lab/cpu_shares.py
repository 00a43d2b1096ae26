"""A part of a processor for a process and its children, as on a slower machine: a control group's CPU quota.

Linux with control groups, version 1 or 2, and the right to make them (root).
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Self

from ..wan_lab.kernel import LabUnavailableError

PERIOD_US = 5000
"""Short against the time of a token, so that a slow machine is slow evenly and not by turns."""
_V2 = Path("/sys/fs/cgroup")
_V1 = Path("/sys/fs/cgroup/cpu")


class CpuShare:
    """``cores`` of a processor (0.25: a quarter of one) for who is put in. Use as a context manager."""

    def __init__(self, name: str, cores: float) -> None:
        """Raises LabUnavailableError."""
        quota = max(1000, round(cores * PERIOD_US))
        version1 = (_V1 / "cpu.cfs_quota_us").exists()
        self._folder = (_V1 if version1 else _V2) / f"swarm-node-{os.getpid()}-{name}"
        try:
            self._folder.mkdir()
            if version1:
                (self._folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (self._folder / "cpu.cfs_quota_us").write_text(str(quota))
            else:
                (self._folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        except OSError as error:
            self.close()
            raise LabUnavailableError(
                f"no control group with a CPU quota can be made here: {error}"
            ) from error

    def join(self, pid: int) -> None:
        """All threads of a process, and what it starts from now on."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        """Its processes must have ended. Idempotent."""
        for _ in range(50):
            with contextlib.suppress(FileNotFoundError):
                try:
                    self._folder.rmdir()
                except OSError:
                    time.sleep(0.1)  # the last of them is just being buried
                    continue
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
