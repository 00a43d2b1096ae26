"""Where this user's swarm keeps what outlives a process: keys, histories, weights."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """``$SWARM_NODE_HOME``, else ``~/.swarm-node``."""
    return Path(os.environ.get("SWARM_NODE_HOME") or Path.home() / ".swarm-node")
