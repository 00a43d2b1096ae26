"""Memory of a serving node against what its weights and KV cache must take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import uvloop

from ..local_swarm import LocalSwarm, split_evenly
from ..processes.parent import next_order, tell
from ..processes.worker import run_in_process, workers
from ..prompts import BLOCKS, MODEL, question
from .clients import connected
from .figures import rss_mb

STREAMS = 8
HELD_TOKENS = 200
"""New tokens of each held answer; with its prompt about 240 tokens in the KV cache."""


def memory(nodes: int, serve_options: Sequence[str]) -> dict[str, Any]:
    """A swarm of its own, idle and then holding sessions; all sizes in MB (10^6 bytes)."""
    baseline = run_in_process("scripts.lab.bench.memory:imports_only")
    spans = split_evenly(BLOCKS, nodes)
    with LocalSwarm(MODEL, spans, serve_options=serve_options, overrides={}) as swarm:
        idle = [node.statistics() for node in swarm.nodes]
        holding = {"initial_peers": swarm.initial_peers}
        with workers("scripts.lab.bench.memory:hold_sessions", [holding]) as (client,):
            client.wait_ready()
            busy = [node.statistics() for node in swarm.nodes]
            client.order()
            client_mb = client.result()
    found = []
    for span, before, during in zip(spans, idle, busy, strict=True):
        sizes = run_in_process("scripts.lab.bench.memory:arithmetic", blocks=span)
        engine = during["engine"]
        kv = engine["used_slots"] * sizes["slot_mb"] + engine["used_states"] * sizes["state_mb"]
        minimum = sizes["file_mb"] + kv
        rss = during["process"]["rss"] / 1e6
        found.append(
            {
                "blocks": span,
                "idle_rss_mb": before["process"]["rss"] / 1e6,
                "rss_mb": rss,
                "p2pd_rss_mb": sum(daemon["rss"] for daemon in during["daemon"]) / 1e6,
                "sessions": during["server"]["sessions"],
                "weights_in_file_mb": sizes["file_mb"],
                "weights_held_mb": sizes["held_mb"],
                "kv_used_mb": kv,
                "kv_capacity_mb": engine["total_slots"] * sizes["slot_mb"]
                + engine["total_states"] * sizes["state_mb"],
                "imports_mb": baseline,
                "minimum_mb": minimum,
                "overhead_mb": rss - minimum - baseline,
            }
        )
    return {"nodes": found, "imports_mb": baseline, "client_rss_mb": client_mb}


def imports_only() -> float:
    """MB of a process that imports what a serving node imports, and does nothing."""
    import swarm_node.dht.kademlia.directory
    import swarm_node.node.node
    import swarm_node.swarm.transport.p2pd.transport  # noqa: F401

    return rss_mb()


def arithmetic(*, blocks: str) -> dict[str, float]:
    """MB that the span's weights take in the file and as a node holds them, and a KV page and a state of one
    block."""
    from swarm_node.node.config import MAX_BATCH_TOKENS
    from swarm_node.node.engine.memory.span_memory import SpanMemory
    from swarm_node.shards.checkpoint.opening import open_checkpoint
    from swarm_node.shards.formats.tensors import block_tensors
    from swarm_node.shards.loading import load_backend
    from swarm_node.shards.models.load_plan import LoadOptions
    from swarm_node.swarm.types import Span

    span = Span.parse(blocks)
    with open_checkpoint(str(MODEL)) as checkpoint:
        names = [
            name
            for block in range(span.start, span.end)
            for name in block_tensors(checkpoint.config, block)
            if checkpoint.has(name)
        ]
        in_file = sum(checkpoint.tensor(name).nbytes for name in names)
        model = load_backend(checkpoint, span, LoadOptions())
        config = checkpoint.config
        kv_dtype = model.kv_dtype("auto", exact=False)
        memory = SpanMemory.of(config.blocks[span.start : span.end], MAX_BATCH_TOKENS, kv_dtype)
    return {
        "file_mb": in_file / 1e6,
        "held_mb": model.weight_bytes / 1e6,
        "slot_mb": memory.slot_bytes / 1e6,
        "state_mb": memory.state_bytes / 1e6,
    }


def hold_sessions(*, initial_peers: Sequence[str]) -> float:
    """STREAMS answers up to their last token but one, then wait; this client's own MB."""
    return uvloop.run(_hold_sessions(initial_peers))


async def _hold_sessions(initial_peers: Sequence[str]) -> float:
    async with connected(initial_peers, 1) as model:
        streams = [
            model.stream(question(number), max_new_tokens=HELD_TOKENS, ignore_eos=True)
            for number in range(STREAMS)
        ]

        async def read(stream: Any) -> None:
            for _ in range(HELD_TOKENS - 20):  # a token may come without a piece of its own
                await anext(stream)

        async with asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(read(stream))
        tell("ready")
        await next_order()
        for stream in streams:
            await stream.aclose()
        return rss_mb()
