"""Names that the whole-swarm tests share."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from scripts.lab.local_swarm import LocalSwarm
from swarm_node.client import AsyncSwarmModel

MARK = "SWARM_NODE_TEST_RUN"
"""Environment variable by which processes that a test module started are told from all others."""

ONE_THREAD = ("--threads", "1", "--kv-cache-tokens", "16384")
"""Options of a serving process in tests: several share few cores."""

EXACT = ("--quantize", "none", "--dtype", "float32")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs ``swarm-node`` with the given arguments (``stdin=``, ``timeout=``) to its end."""


@asynccontextmanager
async def exact_client(swarm: LocalSwarm, **options: Any) -> AsyncIterator[AsyncSwarmModel]:
    """A client of a swarm in float32, everything of its own in float32 too."""
    async with await AsyncSwarmModel.connect(
        model=swarm.model,
        initial_peers=swarm.initial_peers,
        wire_codec="none",
        quantize="none",
        dtype="float32",
        **options,
    ) as model:
        yield model
