"""What streaming a prompt in chunks gains: two hops at work at the same time, or one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import uvloop

from ..local_swarm import LocalSwarm, split_evenly
from ..processes.worker import run_in_process
from ..prompts import BLOCKS, MODEL, PROMPT, long_prompt
from .clients import connected
from .figures import medians

HOPS = 2
WAYS = {"chained": True, "relayed": False}


def pipeline(tokens: int, repeat: int) -> dict[str, Any]:
    """For a route chained and one relayed by the client: seconds of a prefill of ``tokens`` in the client's
    chunks, and of one that every hop gets whole, so that it begins when the one before has ended."""
    options = ["--threads", "1", "--kv-cache-tokens", "32768"]
    spans = split_evenly(BLOCKS, HOPS)
    with LocalSwarm(MODEL, spans, serve_options=options, overrides={"max_step_tokens": tokens}) as swarm:
        runs = run_in_process(
            "scripts.lab.bench.pipeline:prefills",
            initial_peers=swarm.initial_peers,
            tokens=tokens,
            repeat=repeat,
        )
    found = {}
    for way, each in runs.items():
        figures = medians(each)
        found[way] = figures | {"ratio": figures["sequential_s"] / figures["pipelined_s"]}
    return {"tokens": tokens, "hops": HOPS, "node_threads": 1, "ways": found}


# Inside a worker.


def prefills(**options: Any) -> dict[str, list[dict[str, Any]]]:
    return uvloop.run(_prefills(**options))


async def _prefills(
    *, initial_peers: Sequence[str], tokens: int, repeat: int
) -> dict[str, list[dict[str, Any]]]:
    from swarm_node.shards.checkpoint.opening import open_checkpoint

    with open_checkpoint(str(MODEL)) as checkpoint:
        encode = checkpoint.tokenizer().encode
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    async with AsyncExitStack() as stack:
        models = {
            way: await stack.enter_async_context(connected(initial_peers, 1, chain=chain, prefix_cache=False))
            for way, chain in WAYS.items()
        }
        for model in models.values():
            await model.generate(PROMPT, max_new_tokens=2, ignore_eos=True)
            await _prefill(model, long_prompt(encode, tokens, 99))
        for number in range(repeat):  # both ways of both, then again
            prompt = long_prompt(encode, tokens, number)
            for way, model in models.items():
                pipelined = await _prefill(model, prompt)
                with _whole_prompts():
                    whole = await _prefill(model, prompt)
                runs[way].append(
                    {
                        "pipelined_s": pipelined.timings.prefill_s,
                        "sequential_s": whole.timings.prefill_s,
                        "chunks": pipelined.hops[0].prefill.steps,
                        "pipelined_compute_s": [hop.prefill.compute_s for hop in pipelined.hops],
                        "sequential_compute_s": [hop.prefill.compute_s for hop in whole.hops],
                    }
                )
                if whole.hops[0].prefill.steps != 1 or whole.token_ids != pipelined.token_ids:
                    raise RuntimeError("a whole prompt was not one step, or gave another token")
    return runs


async def _prefill(model: Any, prompt: list[int]) -> Any:
    return await model.generate_detailed(prompt, max_new_tokens=1)


@contextmanager
def _whole_prompts() -> Iterator[None]:
    """Make the client send what is as long as a hop takes in one piece."""
    from swarm_node.client.hops import route_session

    chunked = route_session.chunk_tokens
    route_session.chunk_tokens = lambda tokens, hops, most: min(tokens, most)
    try:
        yield
    finally:
        route_session.chunk_tokens = chunked
