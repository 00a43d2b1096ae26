"""A node's measurement of itself before it announces: how fast its blocks decode and prefill, right now.

Measured rather than looked up: it sees the weights' format, the threads given and the other work of this
machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ...shards.models.backend import SpanBackend
from ...shards.models.own_memory import OwnMemory

PREFILL_TOKENS = 256
"""Rows of a measured prompt chunk: enough for the kernels that prefill uses, a fraction of a second on a
CPU."""
DECODE_SECONDS = 0.2
PREFILL_SECONDS = 0.3
"""Time boxes; at least one timed run happens even if it alone takes longer."""
MAX_RUNS = 64
LEAST_RUNS, LONGEST_BOX = 3, 5
"""So many runs, if they take no more than so many time boxes: one alone may have waited for other work of the
machine, and was a hundred times as slow."""
AGAIN_RUNS = 15
"""A node decodes this many tokens to see whether it became slower: they fit in one page of KV cache."""


@dataclass(frozen=True, slots=True)
class SelfMeasurement:
    """``decode_ms_per_block``: one token, batch 1, context of PREFILL_TOKENS. ``prefill_tokens_per_s``:
    whole span."""

    decode_ms_per_block: float
    prefill_tokens_per_s: float


def measure_self(
    model: SpanBackend[Any], kv_dtype: str, max_tokens: int, clock: Callable[[], float] = perf_counter
) -> SelfMeasurement:
    """Run in the compute thread, with a KV pool of its own that lasts as long as the
    call. ``max_tokens`` bounds the context of the measurement."""
    tokens = max(1, min(PREFILL_TOKENS, max_tokens - 1))
    memory = OwnMemory(model, kv_dtype, tokens + 1)
    prompt = _noise(tokens, model.config.row_width(model.span.start))

    def forward(start: int, count: int) -> None:
        model.forward(prompt[:count], [memory.slice(start, count)], memory.pool)

    forward(0, 1)  # first-use costs: kernels, page faults
    prefill_s = _time(lambda: forward(0, tokens), PREFILL_SECONDS, clock)
    forward(tokens, 1)
    decode_s = _time(lambda: forward(tokens, 1), DECODE_SECONDS, clock)
    return SelfMeasurement(
        decode_ms_per_block=decode_s * 1000 / len(model.span), prefill_tokens_per_s=tokens / prefill_s
    )


def measure_decode(
    model: SpanBackend[Any], kv_dtype: str, clock: Callable[[], float] = perf_counter
) -> float:
    """Milliseconds per block and token, as ``measure_self``'s, with a short context: AGAIN_RUNS tokens."""
    memory = OwnMemory(model, kv_dtype, AGAIN_RUNS + 1)
    x = _noise(1, model.config.row_width(model.span.start))
    times = []
    for position in range(AGAIN_RUNS + 1):
        began = clock()
        model.forward(x, [memory.slice(position, 1)], memory.pool)
        times.append(max(clock() - began, 1e-9))
    return median(times[1:]) * 1000 / len(model.span)


def _noise(tokens: int, width: int) -> np.ndarray:
    return np.random.default_rng().standard_normal((tokens, width), np.float32)


def _time(run: Callable[[], None], box_s: float, clock: Callable[[], float]) -> float:
    """Median seconds of as many runs as fit into the box; of LEAST_RUNS that fit into LONGEST_BOX boxes; of
    one."""
    times: list[float] = []
    began = now = clock()
    while not times or (
        now - began + times[-1] <= box_s * (LONGEST_BOX if len(times) < LEAST_RUNS else 1)
        and len(times) < MAX_RUNS
    ):
        run()
        before, now = now, clock()
        times.append(max(now - before, 1e-9))
    return median(times)
