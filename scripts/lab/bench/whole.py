"""A whole model in one process, on any GGUF file: our blocks with the client's part, and llama.cpp. No swarm,
no tokenizer: the same token ids in, the most likely one out, each contender in a measuring process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

PROMPT = list(range(100, 132))
"""Ids that every vocabulary has."""

Step = Callable[[Sequence[int], int], int]
"""``step(ids, position)``: computes the ids, the first at ``position``; the most likely next one."""


def ours(*, path: str, threads: int, new_tokens: int) -> dict[str, float]:
    from swarm_node.shards.checkpoint.opening import open_checkpoint
    from swarm_node.shards.loading import load_backend, load_client_model
    from swarm_node.shards.models.load_plan import LoadOptions
    from swarm_node.shards.models.own_memory import OwnMemory
    from swarm_node.swarm.types import Span

    with open_checkpoint(path) as checkpoint:
        span = Span(0, checkpoint.config.n_blocks)
        client = load_client_model(checkpoint, LoadOptions(), threads=threads)
        blocks = load_backend(checkpoint, span, LoadOptions(), threads=threads)
        memory = OwnMemory(blocks, blocks.kv_dtype("auto", exact=False), len(PROMPT) + new_tokens + 1)

        def step(ids: Sequence[int], position: int) -> int:
            piece = memory.slice(position, len(ids))
            hidden = blocks.forward(client.embed(ids), [piece], memory.pool)
            return int(client.logits(hidden[-1:])[0].argmax())

        return _decode(step, new_tokens)


def llama_cpp(*, path: str, threads: int, new_tokens: int) -> dict[str, float]:
    from .locals import LlamaCpp

    model = LlamaCpp(path, threads, sequences=1, tokens=len(PROMPT) + new_tokens)

    def step(ids: Sequence[int], position: int) -> int:
        last = len(ids) - 1
        (token,) = model.run([(token, position + at, 0, at == last) for at, token in enumerate(ids)])
        return token

    return _decode(step, new_tokens)


def _decode(step: Step, new_tokens: int) -> dict[str, float]:
    """Times of single tokens. The first after the prompt does not count."""
    token = step([step(PROMPT, 0)], len(PROMPT))
    times, on_cores = [], []
    for position in range(len(PROMPT) + 1, len(PROMPT) + new_tokens):
        began, before = time.perf_counter(), time.process_time()
        token = step([token], position)
        on_cores.append(time.process_time() - before)
        times.append(time.perf_counter() - began)
    return {
        "token_ms": 1000 * median(times),
        "fastest_token_ms": 1000 * min(times),
        "processor_ms": 1000 * median(on_cores),
        "least_processor_ms": 1000 * min(on_cores),
    }
