"""A session of 131,072 tokens over blocks with states: memory, the prompt's time, and a death in its middle.

A small random model of which one block in four attends to everything and the others keep a state; two spans,
one of them twice, as processes on 127.0.0.1. The prompt is fed, and when half of it is computed the node that
computes the second span is killed. Then the same prompt again, undisturbed: the tokens must be the same.

scripts/study long_context
scripts/study long_context --tokens 32768 --attends 2
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from ..lab.command_line import console, count, script_parser
from ..lab.local_swarm import LocalSwarm, NodeProcess
from ..lab.tiny_model import write_tiny_hybrid

BLOCKS, SPANS = 8, ["0-3", "4-7", "4-7"]
ANSWER = 16
MB = 1e6


def prompt_of(tokens: int) -> list[int]:
    return [1 + n * n % 400 for n in range(tokens)]


async def answered(model: Any, prompt: list[int]) -> tuple[Any, float]:
    """The generation, and the seconds that it took."""
    began = time.monotonic()
    answer = await model.generate_detailed(prompt, max_new_tokens=ANSWER, ignore_eos=True)
    return answer, time.monotonic() - began


async def killed_at_half(swarm: LocalSwarm, tokens: int) -> str:
    """Kill whichever node computes the second span, once it has half of the prompt: what the nodes held."""
    while True:
        load = [await asyncio.to_thread(node.statistics) for node in swarm.nodes]
        victim = max((1, 2), key=lambda number: load[number]["engine"]["tokens"])
        if load[victim]["engine"]["tokens"] >= tokens / 2:
            break
        await asyncio.sleep(0.05)
    held = held_by(swarm.nodes[victim], load[victim])
    psutil.Process(swarm.nodes[victim].pid).kill()
    return held


def held_by(node: NodeProcess, statistics: dict[str, Any]) -> str:
    engine, server = statistics["engine"], statistics["server"]
    return (
        f"{engine['used_slots']} pages, {engine['used_states']} states, "
        f"journal {server['journal']['used'] / MB:.1f} MB, "
        f"process {psutil.Process(node.pid).memory_info().rss / MB:.0f} MB"
    )


async def study(swarm: LocalSwarm, model_path: str, tokens: int) -> bool:
    from swarm_node.client import AsyncSwarmModel

    prompt = prompt_of(tokens - ANSWER)
    idle = held_by(swarm.nodes[0], await asyncio.to_thread(swarm.nodes[0].statistics))
    console.print(f"a node before: {idle}")
    async with await AsyncSwarmModel.connect(
        model=model_path, initial_peers=swarm.initial_peers, wait=30, wire_codec="int8", threads=1
    ) as model:
        asking = asyncio.create_task(answered(model, prompt))
        held = await killed_at_half(swarm, tokens)
        console.print(f"killed with half of the prompt: {held}")
        disturbed, seconds = await asking
        left = held_by(swarm.nodes[0], await asyncio.to_thread(swarm.nodes[0].statistics))
        console.print(f"answered after {seconds:.1f} s; the node before it: {left}")
        for repair in disturbed.repaired:
            console.print(
                f"repaired in {repair.seconds:.2f} s: {repair.replayed_tokens} tokens fed again, "
                f"{repair.replayed_bytes_nodes / MB:.1f} MB from nodes, "
                f"{repair.replayed_bytes_client / MB:.1f} MB from the client"
            )
        again, seconds = await answered(model, [2, *prompt[1:]])  # another beginning: nothing of it is cached
        console.print(f"undisturbed, another prompt: {seconds:.1f} s, {len(prompt) / seconds:.0f} tokens/s")
        same, _ = await answered(model, prompt)
    return list(same.token_ids) == list(disturbed.token_ids) and len(again.token_ids) == ANSWER


def main() -> int:
    parser = script_parser("study long_context", __doc__)
    parser.add_argument("--tokens", type=count, default=131_072, help="default: %(default)s")
    parser.add_argument("--attends", type=count, default=4, help="one block in so many; default: %(default)s")
    arguments: argparse.Namespace = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swarm-long-") as folder:
        tokens = arguments.tokens
        model = str(
            write_tiny_hybrid(
                Path(folder), blocks=BLOCKS, attends=arguments.attends, max_position_embeddings=tokens
            )
        )
        options = ["--threads", "1", "--kv-cache-tokens", str(2 * tokens)]
        with LocalSwarm(model, SPANS, serve_options=options, overrides={}) as swarm:
            same = asyncio.run(study(swarm, model, tokens))
    console.print("[green]the same tokens[/]" if same else "[bold red]other tokens[/]")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
