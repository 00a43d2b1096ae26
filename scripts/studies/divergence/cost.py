"""What --deterministic costs: the same blocks with and without it, in one process, taking turns."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.swarm.types import Span

BLOCKS = 8
CONTEXT = 256
"""Tokens that a session holds before its next one."""
LOADS = {"decode 1": (1, CONTEXT, 1, 15), "decode 8": (8, CONTEXT, 1, 9), "prefill 512": (1, 0, 512, 3)}
"""Sessions, tokens before, tokens each, and how often with and how often without."""


def measure(*, model: str, options: dict[str, Any], threads: int) -> dict[str, Any]:
    """By load: milliseconds without and with (medians), and how many times the one is the other (of the
    fastest, which other processes disturbed least)."""
    with open_checkpoint(model) as checkpoint:
        config = checkpoint.config
        span = Span(0, min(BLOCKS, config.n_blocks))
        modes = [
            load_backend(checkpoint, span, LoadOptions(**options, deterministic=on), threads=threads)
            for on in (False, True)
        ]
        sessions = max(count for count, *_ in LOADS.values())
        longest = max(before + tokens for _, before, tokens, _ in LOADS.values())
        kv_dtype = modes[0].kv_dtype("auto", exact=options.get("dtype") == "float32")
        memory = OwnMemory(modes[0], kv_dtype, longest, sessions)
        x = np.random.default_rng(0).standard_normal((sessions * 512, config.hidden_size), np.float32)
        for session in range(sessions):
            _seconds(modes[0], memory, range(session, session + 1), x, 0, CONTEXT)
        loads = {}
        for name, (count, before, tokens, times) in LOADS.items():
            taken: tuple[list[float], list[float]] = ([], [])
            for turn in range(times + 1):
                for mode, seconds in zip(modes, taken, strict=True):
                    passed = _seconds(mode, memory, range(count), x, before, tokens)
                    if turn:  # the first warms up
                        seconds.append(passed)
            without, with_it = (1000 * median(seconds) for seconds in taken)
            loads[name] = {"without_ms": without, "with_ms": with_it, "times": min(taken[1]) / min(taken[0])}
        return {
            "without": modes[0].kernels,
            "with": modes[1].kernels,
            "weights": modes[0].weights,
            "loads": loads,
        }


def _seconds(
    model: SpanBackend[Any],
    memory: OwnMemory[Any],
    sessions: range,
    x: np.ndarray,
    before: int,
    tokens: int,
) -> float:
    """One step of ``tokens`` tokens for each of the ``sessions``."""
    pieces = [
        memory.slice(before, tokens, row=row * tokens, session=session)
        for row, session in enumerate(sessions)
    ]
    began = time.perf_counter()
    model.forward(x[: len(sessions) * tokens], pieces, memory.pool)
    return time.perf_counter() - began
