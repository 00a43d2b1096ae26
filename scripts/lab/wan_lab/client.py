"""The wide-area benchmark's client: measures what a person would see, in a process and machine of its own."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import uvloop

from ..bench.clients import connected
from ..processes.parent import next_order, tell
from ..prompts import MODEL, PROMPT, long_prompt, question


def measure(**options: Any) -> dict[str, Any]:
    return uvloop.run(_measure(**options))


async def _measure(
    *,
    initial_peers: Sequence[str],
    threads: int,
    chain: bool,
    wire_codec: str,
    context: int,
    new_tokens: int,
    counted_tokens: int,
    repeat: int,
) -> dict[str, Any]:
    """Answers to short prompts and to prompts of ``context`` tokens, ``repeat`` of each; then one whose
    ``counted_tokens`` begin when the parent says so and end with its second word, so that it can count bytes.
    """
    from swarm_node.shards.checkpoint.opening import open_checkpoint

    with open_checkpoint(str(MODEL)) as checkpoint:
        encode = checkpoint.tokenizer().encode
    runs: dict[str, list[dict[str, Any]]] = {"short": [], "long": []}
    options = {"wire_codec": wire_codec, "prefix_cache": False, "chain": chain}
    async with connected(initial_peers, threads, **options) as model:
        await model.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
        await model.generate(long_prompt(encode, context, 99), max_new_tokens=2, ignore_eos=True)
        for number in range(repeat):
            for kind, prompt in (("short", question(number)), ("long", long_prompt(encode, context, number))):
                runs[kind].append(await _answer(model, prompt, new_tokens))
        async with model.stream(
            question(repeat), max_new_tokens=64, ignore_eos=True, speculate="off"
        ) as stream:
            pieces = aiter(stream)
            await anext(pieces)
            tell("ready")
            await next_order()
            for _ in range(counted_tokens):
                await anext(pieces)
            tell("ready")
            await next_order()
    return runs


async def _answer(model: Any, prompt: Any, new_tokens: int) -> dict[str, Any]:
    """``decode_s``: of a token on the average; ``compute_s`` of each hop and ``local_s`` the same."""
    began = perf_counter()
    answer = await model.generate_detailed(
        prompt, max_new_tokens=new_tokens, ignore_eos=True, speculate="off"
    )
    steps = new_tokens - 1
    return {
        "prompt_tokens": len(answer.prompt_token_ids),
        "seconds": perf_counter() - began,
        "route_s": answer.timings.route_s,
        "prefill_s": answer.timings.prefill_s,
        "decode_s": answer.timings.decode_s / steps,
        "local_s": answer.timings.local_s / answer.timings.new_tokens,
        "compute_s": [hop.decode.compute_s / max(1, hop.decode.tokens) for hop in answer.hops],
        "queue_s": [hop.decode.queue_s / max(1, hop.decode.tokens) for hop in answer.hops],
        "codec_s": [hop.decode.codec_s / max(1, hop.decode.tokens) for hop in answer.hops],
        "prefill_compute_s": [hop.prefill.compute_s for hop in answer.hops],
        "repairs": answer.repairs,
        "paths": sorted({way for hop in answer.hops for way in (hop.ways.here, hop.ways.on) if way}),
    }
