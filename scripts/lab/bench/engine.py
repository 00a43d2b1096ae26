"""The engine's compute alone: every block in one process, no network, sessions decoded side by side.

What it could reach is set by memory: each step reads the weights once and every session's keys and values.
The bandwidth is measured in the same process, over as many bytes as a step reads (the processor's caches
hold a part of them, as they do in the step) and over a buffer that no cache holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from ..prompts import MODEL
from .figures import rss_mb

CONTEXT = 256
"""Tokens that each session holds when its decoding is measured."""
UNCACHED_BYTES = 512 * 1024 * 1024


def engine_alone(
    *, threads: int, batches: Sequence[int], prefill_tokens: int, seconds: float, repeat: int
) -> dict[str, Any]:
    from swarm_node.shards.checkpoint.opening import open_checkpoint
    from swarm_node.shards.loading import load_backend
    from swarm_node.shards.models.load_plan import LoadOptions
    from swarm_node.shards.models.own_memory import OwnMemory
    from swarm_node.swarm.protocol.field_types import PAGE_TOKENS
    from swarm_node.swarm.types import Span

    torch.set_num_threads(threads)  # for the reads that it is compared with
    with open_checkpoint(str(MODEL)) as checkpoint:
        config = checkpoint.config
        span = Span(0, config.n_blocks)
        options = LoadOptions()
        model = load_backend(checkpoint, span, options, threads=threads)
        kv_dtype = model.kv_dtype("auto", exact=False)
        memory = OwnMemory(model, kv_dtype, max(CONTEXT + 64, prefill_tokens), max(batches))
        shape = (max(prefill_tokens, max(batches)), config.row_width(span.start))
        rows = np.random.default_rng(0).standard_normal(shape, np.float32)

        def forward(sessions: int, start: int, count: int) -> None:
            pieces = [
                memory.slice(start, count, row=session * count, session=session)
                for session in range(sessions)
            ]
            model.forward(rows[: sessions * count], pieces, memory.pool)

        prefill_s = median(_times(lambda: forward(1, 0, prefill_tokens), seconds, repeat))
        for session in range(max(batches)):  # a context for everybody, slot by slot
            model.forward(rows[:CONTEXT], [memory.slice(0, CONTEXT, session=session)], memory.pool)
        weights, token = model.weight_bytes, len(span) * memory.pool.slot_bytes // PAGE_TOKENS
        uncached = read_bytes_per_s(UNCACHED_BYTES, seconds)
        found = []
        for sessions in batches:
            step_s = median(_times(lambda n=sessions: forward(n, CONTEXT, 1), seconds, repeat))
            step_bytes = weights + sessions * CONTEXT * token
            cached = read_bytes_per_s(step_bytes, seconds / 2)
            found.append(
                {
                    "batch": sessions,
                    "tokens_per_s": sessions / step_s,
                    "step_ms": step_s * 1000,
                    "step_bytes": step_bytes,
                    "read_bytes_per_s": step_bytes / step_s,
                    "share_of_bandwidth": step_bytes / step_s / cached,
                    "share_of_uncached_bandwidth": step_bytes / step_s / uncached,
                }
            )
    return {
        "threads": threads,
        "kernels": model.kernels,
        "weights": model.weights,
        "weight_bytes": weights,
        "kv_dtype": kv_dtype,
        "kv_bytes_per_token": token,
        "context": CONTEXT,
        "prefill_tokens_per_s": prefill_tokens / prefill_s,
        "copy_bytes_per_s": copy_bytes_per_s(UNCACHED_BYTES // 2, seconds),
        "read_bytes_per_s": uncached,
        "batches": found,
        "rss_mb": rss_mb(),
    }


def read_bytes_per_s(size: int, seconds: float) -> float:
    """The fastest of two ways to read ``size`` bytes over and over with the threads that torch has."""
    data = torch.ones(size // 4)
    return size / min(
        min(_times(lambda: float(data.sum()), seconds / 2, 1)),
        min(_times(lambda: float(data.max()), seconds / 2, 1)),
    )


def copy_bytes_per_s(size: int, seconds: float) -> float:
    """Bytes read and written while ``size`` bytes are copied."""
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    return 2 * size / min(_times(lambda: target.copy_(source), seconds, 1))


def _times(run: Callable[[], object], seconds: float, least: int) -> list[float]:
    """Seconds of as many runs as fit into ``seconds``, at least ``least``, after one that does not count."""
    run()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < least or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return times
