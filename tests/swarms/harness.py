"""Names that the whole-swarm tests share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

ONE_THREAD = ("--threads", "1", "--kv-cache-tokens", "16384")
"""Options of a serving process in tests: several share few cores."""

EXACT = ("--quantize", "none", "--dtype", "float32")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs ``swarm-node`` with the given arguments (``stdin=``, ``timeout=``) to its end."""
