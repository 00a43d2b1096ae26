"""Clients of the swarm, each in a measuring process: what a person sees of one stream or of several."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from ..processes.parent import next_order, tell
from ..prompts import FILLER, MODEL, PROMPT, long_prompt, question
from .figures import processor_s, rss_mb, spread_ms


@dataclass(slots=True)
class StreamRun:
    """One answer as its client saw it: when each piece came (seconds of one clock), or why it failed."""

    times: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str = ""

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens. A piece is a token here: the prompts are answered in plain English."""
        return [later - earlier for earlier, later in itertools.pairwise(self.times)]


@asynccontextmanager
async def connected(initial_peers: Sequence[str], threads: int, **options: Any) -> AsyncIterator[Any]:
    from swarm_node.client import AsyncSwarmModel

    async with await AsyncSwarmModel.connect(
        model=str(MODEL), initial_peers=initial_peers, threads=threads, wait=30, **options
    ) as model:
        yield model


async def read_stream(model: Any, prompt: Any, new_tokens: int) -> StreamRun:
    run = StreamRun()
    try:
        async with model.stream(
            prompt, max_new_tokens=new_tokens, ignore_eos=True, speculate="off"
        ) as stream:
            async for _ in stream:
                run.times.append(time.perf_counter())
            run.tokens = len(stream.result.token_ids)
    except Exception as error:  # noqa: BLE001 - counted and shown: a benchmark of many streams goes on
        run.error = f"{type(error).__name__}: {error}"
    return run


# One stream.


def one_stream(**options: Any) -> dict[str, Any]:
    began = time.perf_counter()
    from swarm_node.client import SwarmModel

    SwarmModel.connect  # noqa: B018 - loads what a person's first line of code loads
    return uvloop.run(_one_stream(time.perf_counter() - began, **options))


async def _one_stream(
    import_s: float,
    *,
    initial_peers: Sequence[str],
    pids: Sequence[int],
    threads: int,
    wire_codec: str,
    new_tokens: int,
    prefill_tokens: int,
    repeat: int,
) -> dict[str, Any]:
    """``pids``: the swarm's processes, whose processor time counts."""
    encode = _encode()
    runs = []
    async with connected(initial_peers, threads, wire_codec=wire_codec) as model:
        await model.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
        await model.generate(long_prompt(encode, prefill_tokens, 99), max_new_tokens=1)
        for number in range(repeat):
            began_s = 0.0
            async with model.stream(
                question(number), max_new_tokens=new_tokens, ignore_eos=True, speculate="off"
            ) as stream:
                async for _ in stream:
                    began_s = began_s or processor_s(pids)
                short = stream.result
            decode_s = processor_s(pids) - began_s
            long = await model.generate_detailed(
                long_prompt(encode, prefill_tokens, number), max_new_tokens=1
            )
            runs.append(
                {
                    "decode_tokens_per_s": short.timings.tokens_per_s,
                    "processor_ms_per_token": 1000 * decode_s / (new_tokens - 1),
                    "prefill_s": long.timings.prefill_s,
                    "prefill_tokens": len(long.prompt_token_ids),
                    "hops": [hop.as_dict() for hop in short.hops],
                    "prefill_hops": [hop.as_dict() for hop in long.hops],
                    "timings": short.timings.as_dict(),
                }
            )
    return {"runs": runs, "rss_mb": rss_mb(), "import_s": import_s}


def _encode() -> Any:
    from swarm_node.shards.checkpoint.opening import open_checkpoint

    with open_checkpoint(str(MODEL)) as checkpoint:
        return checkpoint.tokenizer().encode


# Several streams.


def concurrent_streams(**options: Any) -> list[dict[str, Any]]:
    return uvloop.run(_concurrent_streams(**options))


async def _concurrent_streams(
    *, initial_peers: Sequence[str], threads: int, counts: Sequence[int], new_tokens: int, repeat: int
) -> list[dict[str, Any]]:
    """For each number of streams side by side, ``repeat`` runs from this one process."""
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    async with connected(initial_peers, threads) as model:
        await model.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
        asked = itertools.count()
        for _ in range(repeat):  # all counts, then again: a disturbance of seconds hits one run of each
            for count in counts:
                began = time.perf_counter()
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(read_stream(model, question(next(asked)), new_tokens))
                        for _ in range(count)
                    ]
                found[count].append(summarize([task.result() for task in tasks], began))
    return [{"streams": count, "runs": runs} for count, runs in found.items()]


def single_stream_when_told(**options: Any) -> dict[str, Any]:
    """One client of many, in a process of its own: its answer begins when the parent says so."""
    return uvloop.run(_single_stream_when_told(**options))


async def _single_stream_when_told(
    *, initial_peers: Sequence[str], threads: int, number: int, new_tokens: int
) -> dict[str, Any]:
    async with connected(initial_peers, threads) as model:
        await model.generate(PROMPT, max_new_tokens=4, ignore_eos=True)
        tell("ready")
        await next_order()
        began = time.perf_counter()  # one clock for all processes of a machine
        run = await read_stream(model, question(number), new_tokens)
    return {"began": began, "times": run.times, "tokens": run.tokens, "error": run.error}


def summarize(runs: Sequence[StreamRun], began: float) -> dict[str, Any]:
    """Figures of streams that ran side by side from ``began`` on.

    ``aggregate_tokens_per_s``: tokens that came while every stream was decoding (from the latest first token
    to the earliest last one), over that time; ``with_prefill_tokens_per_s``: all tokens over all of the time.
    ``fairness``: the fewest tokens that a stream got in that time over the most.
    """
    good = [run for run in runs if not run.error and len(run.times) > 1]
    figures: dict[str, Any] = {"errors": len(runs) - len(good)}
    if errors := sorted({run.error for run in runs if run.error}):
        figures["first_error"] = errors[0]
    if not good:
        return figures
    start, end = max(run.times[0] for run in good), min(run.times[-1] for run in good)
    together = [sum(start < at <= end for at in run.times) for run in good]
    gaps = spread_ms([gap for run in good for gap in run.gaps])
    return figures | {
        "aggregate_tokens_per_s": sum(together) / (end - start) if end > start else 0.0,
        "with_prefill_tokens_per_s": sum(run.tokens for run in good)
        / (max(run.times[-1] for run in good) - began),
        "fairness": min(together) / max(1, *together),
        "first_token_s": sum(run.times[0] - began for run in good) / len(good),
        "between_tokens_p50_ms": gaps["p50"],
        "between_tokens_p99_ms": gaps["p99"],
        "rss_mb": rss_mb(),
    }


# One decodes while another sends long prompts.


def decode_alone_and_beside(**options: Any) -> dict[str, Any]:
    return uvloop.run(_decode_alone_and_beside(**options))


async def _decode_alone_and_beside(
    *, initial_peers: Sequence[str], threads: int, alone_s: float, beside_s: float
) -> dict[str, Any]:
    """Decode for ``alone_s`` seconds, and when told so for ``beside_s`` more."""
    async with connected(initial_peers, threads) as model:
        await model.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
        alone = await _decode_for(model, alone_s)
        tell("ready")
        await next_order()
        return {"alone": alone, "beside": await _decode_for(model, beside_s)}


async def _decode_for(model: Any, seconds: float) -> dict[str, Any]:
    """Times between tokens, and what a token cost at each hop on the average of the last answer."""
    gaps: list[float] = []
    hops: list[dict[str, Any]] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        run = StreamRun()
        async with model.stream(
            question(len(gaps)), max_new_tokens=128, ignore_eos=True, speculate="off"
        ) as stream:
            async for _ in stream:
                run.times.append(time.perf_counter())
            hops = [hop.as_dict() for hop in stream.result.hops]
        gaps += run.gaps
    return {"tokens": len(gaps), **spread_ms(gaps), "mean": 1000 * sum(gaps) / len(gaps), "hops": hops}


def long_prompts_when_told(**options: Any) -> dict[str, Any]:
    return uvloop.run(_long_prompts_when_told(**options))


async def _long_prompts_when_told(
    *, initial_peers: Sequence[str], threads: int, tokens: int, seconds: float
) -> dict[str, Any]:
    """Prompts of ``tokens`` tokens back to back, from the parent's word on, until ``seconds`` have passed."""
    prompts: list[float] = []
    encode = _encode()
    async with connected(initial_peers, threads) as model:
        await model.generate(PROMPT, max_new_tokens=1)
        tell("ready")
        await next_order()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            prompt = long_prompt(encode, tokens, len(prompts))
            stream = model.stream(prompt, max_new_tokens=1)
            try:
                async with asyncio.timeout(max(0.1, until - time.perf_counter())):
                    prompts.append((await stream.finish()).timings.prefill_s)
            except TimeoutError:
                break
            finally:
                await stream.aclose()
    return {"prompts": len(prompts), "prefill_s": prompts}


# A chat that goes on.


def second_turns(**options: Any) -> list[dict[str, Any]]:
    return uvloop.run(_second_turns(**options))


async def _second_turns(
    *, initial_peers: Sequence[str], threads: int, tokens: int, repeat: int, prefix_cache: bool
) -> list[dict[str, Any]]:
    """Chats whose first message has about ``tokens`` tokens: seconds to the first token of both turns."""
    runs = []
    async with connected(initial_peers, threads, prefix_cache=prefix_cache) as model:
        await model.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
        for number in range(repeat):
            sentence = f"This is page {number}. {FILLER}"
            text = sentence + FILLER * (tokens // 18)
            chat = [{"role": "user", "content": f"{text}\nSummarize this in one sentence."}]
            first = await model.generate_detailed(chat, max_new_tokens=24, ignore_eos=True)
            chat += [
                {"role": "assistant", "content": first.text},
                {"role": "user", "content": "And in three words?"},
            ]
            second = await model.generate_detailed(chat, max_new_tokens=4, ignore_eos=True)
            runs.append(
                {
                    "first_turn_tokens": len(first.prompt_token_ids),
                    "second_turn_tokens": len(second.prompt_token_ids),
                    "first_turn_s": first.timings.first_token_s,
                    "second_turn_s": second.timings.first_token_s,
                    "answer": list(second.token_ids),
                }
            )
    return runs
