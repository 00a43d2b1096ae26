"""One block's experts alone: 64 of them, of which a row takes 8; more bytes than the processor's caches hold.

What decoding could reach is the bandwidth of memory: of each expert that a row goes to, all bytes are read.
It is measured between the runs, over as many bytes, in places that no cache holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from .figures import high

HIDDEN, INNER = 2048, 1024
COUNT, USED = 64, 8
ROWS = 512


def experts_alone(*, threads: int, batches: Sequence[int], seconds: float) -> dict[str, Any]:
    from swarm_node.shards.formats.blocks.experts import ExpertsConfig, RouterConfig
    from swarm_node.shards.formats.blocks.mlp import MlpConfig
    from swarm_node.shards.kernels.experts import HeldExperts, NativeExperts, NativeMlp
    from swarm_node.shards.kernels.library import ThreadPool
    from swarm_node.shards.kernels.linear import ActivationPrecision, NativeLinear, native_dense, native_int4
    from swarm_node.shards.layers.quantize import Int4Groups

    rng = np.random.default_rng(0)

    def int4(rows: int, cols: int) -> NativeLinear:
        """As of a Q4_0 file."""
        scale = np.full((rows, cols // 32), 2.0**-7, np.float32)
        q = rng.integers(0, 16, (rows, cols), dtype=np.uint8)
        return native_int4([Int4Groups(q, scale, -8 * scale)], None, ActivationPrecision.CLOSE)

    torch.set_num_threads(threads)
    config = ExpertsConfig(COUNT, USED, MlpConfig(INNER), RouterConfig())
    mlps = [NativeMlp(int4(2 * INNER, HIDDEN), int4(HIDDEN, INNER)) for _ in range(COUNT)]
    gate = rng.standard_normal((COUNT, HIDDEN), np.float32)
    experts = NativeExperts(config, HIDDEN, native_dense([gate], None), HeldExperts(config.mlp, mlps))
    pool = ThreadPool(threads)
    x = rng.standard_normal((ROWS, HIDDEN), np.float32)
    chosen = np.argsort(x @ gate.T, axis=1)[:, -USED:]
    expert_bytes = mlps[0].gate_up.nbytes + mlps[0].down.nbytes
    memory = torch.ones(COUNT * expert_bytes // 4)
    found = []
    for rows in batches:
        firsts = range(0, ROWS - rows + 1, rows)
        touched = [expert_bytes * len(np.unique(chosen[first : first + rows])) for first in firsts]
        speeds: list[float] = []
        limits: list[float] = []
        took: list[float] = []
        began, run = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            first = firsts[run % len(firsts)]
            nbytes = touched[run % len(firsts)]
            took.append(_seconds(lambda first=first, rows=rows: experts(x[first : first + rows], pool=pool)))
            speeds.append(nbytes / took[-1])
            start = run * nbytes // 4 % max(1, len(memory) - nbytes // 4 + 1)
            part = memory[start : start + nbytes // 4]
            limits.append(nbytes / _seconds(part.max if run % 2 else part.sum))
            run += 1
        found.append(
            {
                "rows": rows,
                "step_ms": 1000 * median(took),
                "step_bytes": median(touched),
                "read_bytes_per_s": median(speeds),
                "limit_bytes_per_s": median(limits),
                "share_of_bandwidth": median(speeds) / median(limits),
                "share_of_best_bandwidth": high(speeds) / high(limits),
            }
        )
    return {"threads": threads, "expert_bytes": expert_bytes, "batches": found}


def _seconds(run: Callable[[], object]) -> float:
    before = time.perf_counter()
    run()
    return time.perf_counter() - before
