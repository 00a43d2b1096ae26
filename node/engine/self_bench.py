"""A node's measurement of itself before it announces: how fast its blocks decode and prefill, right now.

Measured rather than looked up: it sees the weights' format, the threads given and the other work of this
machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ...shards.models.backend import SpanBackend
from ...shards.models.own_memory import OwnMemory
from ...swarm.figures import MEASURED_CONTEXT
from ...swarm.protocol.field_types import PAGE_TOKENS

PREFILL_TOKENS = MEASURED_CONTEXT
"""Rows of a measured prompt chunk: enough for the kernels that prefill uses, a fraction of a second on a
CPU."""
LONG_TOKENS = 8192
"""Tokens of the context with which the growth is measured. Its keys and values are those of a page, over and
over, and one block's for all blocks: some megabytes, and no time to compute them."""
DECODE_SECONDS = 0.2
PREFILL_SECONDS = 0.3
GROWTH_SECONDS = 0.4
"""Time boxes; at least one timed run happens even if it alone takes longer. That of the growth is for two
kinds of runs, and on a machine that others use too."""
MAX_RUNS = 64
LEAST_RUNS, LONGEST_BOX = 3, 5
"""So many runs, if they take no more than so many time boxes: one alone may have waited for other work of the
machine, and was a hundred times as slow."""
AGAIN_RUNS = 15
"""A node decodes this many tokens to see whether it became slower: they fit in one page of KV cache."""


@dataclass(frozen=True, slots=True)
class SelfMeasurement:
    """``decode_ms_per_block``: one token, batch 1, context of PREFILL_TOKENS. ``prefill_tokens_per_s``:
    whole span. ``context_ms_per_block``: what each 1000 tokens of context add to the first."""

    decode_ms_per_block: float
    prefill_tokens_per_s: float
    context_ms_per_block: float = 0.0

    def half_way_to(self, decode_ms_per_block: float) -> SelfMeasurement:
        """With decoding as it was measured again: a moment's load is soon forgotten, a lasting one soon told.
        It slows a long context down as it does a short one."""
        decode_ms = (self.decode_ms_per_block + decode_ms_per_block) / 2
        context_ms = self.context_ms_per_block * decode_ms / self.decode_ms_per_block
        return replace(self, decode_ms_per_block=decode_ms, context_ms_per_block=context_ms)


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
    growth = _growth(model, kv_dtype, max_tokens, prompt, clock)
    return SelfMeasurement(
        decode_ms_per_block=decode_s * 1000 / len(model.span),
        prefill_tokens_per_s=tokens / prefill_s,
        context_ms_per_block=decode_s * growth * 1e6 / len(model.span),
    )


def _growth(
    model: SpanBackend[Any], kv_dtype: str, max_tokens: int, prompt: np.ndarray, clock: Callable[[], float]
) -> float:
    """The part by which each further token of context lengthens a decode step, beyond what windows see and
    indexers choose: exactly 0 where no block sees all tokens, and where contexts are too short to tell."""
    config, numbers = model.config, range(model.span.start, model.span.end)
    attentions = [config.blocks[block].attention for block in numbers]
    reaches = [attention.reach for attention in attentions if attention is not None]
    bends = [*reaches, *map(config.seen_tokens, numbers)]
    long = min(LONG_TOKENS, max_tokens - 1)
    short = max([PREFILL_TOKENS, *(bend for bend in bends if bend <= long // 2)])
    if 0 not in reaches or long < 2 * short:
        return 0.0
    memory = OwnMemory(model, kv_dtype, long + 1, shared=True)
    model.forward(prompt[:PAGE_TOKENS], [memory.slice(0, PAGE_TOKENS)], memory.pool)
    memory.repeat(1)

    def decode(tokens: int) -> float:
        began = clock()
        model.forward(prompt[:1], [memory.slice(tokens, 1)], memory.pool)
        return clock() - began

    times: list[tuple[float, float]] = []
    _time(lambda: times.append((decode(long), decode(short))), GROWTH_SECONDS, clock)
    # The quickest of each: their ratio is the same under load, where a difference would be of the load.
    longer, shorter = map(min, zip(*times, strict=True))
    return max(0.0, longer / max(shorter, 1e-9) - 1) / (long - short)


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
