"""Programs of the system that a service manager is asked through."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from ....swarm.errors import SwarmError

PATIENCE_S = 150.0
"""Seconds for one call: to stop a service takes as long as it drains."""


class ServiceManagerError(SwarmError):
    """The system's manager of services refused what it was asked."""


def call(words: Sequence[str], *, hint: str = "") -> str:
    """What the program says on standard output. Raises ServiceManagerError."""
    done = _run(words)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ServiceManagerError(f"{' '.join(words)} failed: {said or done.returncode}", hint=hint)
    return done.stdout


def ask(words: Sequence[str]) -> str:
    """The same of a question, whose answer may be empty."""
    return _run(words).stdout


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
        )
    except FileNotFoundError:
        raise ServiceManagerError(f"there is no program {words[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise ServiceManagerError(f"{' '.join(words)} did not end in {PATIENCE_S:.0f} s") from None
