"""Nodes that choose their blocks themselves, in real processes: no span is given anywhere.

A tiny model, and memory limits such that no machine holds all of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from scripts.lab.local_swarm import LocalSwarm, NodeProcess
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.tiny_model import VOCAB, write_tiny_model
from swarm_node.client import SwarmModel
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.layers.kv_pool import BatchSlice
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.types import Span
from tests.swarms.harness import EXACT, Cli

pytestmark = [pytest.mark.swarm]

BLOCKS = 8
PROMPT = [1 + 7 * n % (VOCAB - 1) for n in range(20)]
NEW_TOKENS = 24
CONTEXT = 1024
OPTIONS = ["--kv-cache-tokens", str(CONTEXT), *EXACT, "--no-mdns"]


def greedy(model: Path) -> list[int]:
    """The right answer: one forward pass of the whole model a token, in this process."""
    exact = LoadOptions(dtype="float32", quantize="none", kernels="torch")
    with open_checkpoint(str(model)) as checkpoint:
        blocks, ends = load_backend(checkpoint, Span(0, BLOCKS), exact), load_client_model(checkpoint, exact)
        pages = 4
        pool = blocks.new_pool(pages * BLOCKS, "float32")
        table = np.arange(pages * BLOCKS, dtype=np.int32).reshape(BLOCKS, pages)
        ids = list(PROMPT)
        for _ in range(NEW_TOKENS):
            hidden = blocks.forward(ends.embed(ids), [BatchSlice(table, 0, 0, 0, len(ids))], pool)
            ids.append(int(ends.logits(hidden[-1:]).argmax()))
        return ids[len(PROMPT) :]


def answer(model: SwarmModel) -> list[int]:
    """From the swarm as it is, once every block is served."""
    generated = model.generate_detailed(PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    covered = [block for hop in generated.route.hops for block in range(hop.span.start, hop.span.end)]
    assert covered == list(range(BLOCKS))
    return list(generated.token_ids)


def served(node: NodeProcess) -> Span | None:
    """What it said last that it serves; None while it loads or stands by."""
    node.events += node.take()
    for event in reversed(node.events):
        if event["event"] in ("loading", "moving", "standing_by"):
            return None
        if event["event"] == "online":
            return Span.parse(event["blocks"])
    return None


def is_covered(nodes: Sequence[NodeProcess]) -> bool:
    blocks = {block for node in nodes if (span := served(node)) for block in range(span.start, span.end)}
    return blocks == set(range(BLOCKS))


def wait_covered(nodes: Sequence[NodeProcess], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_covered(nodes):
        assert time.monotonic() < deadline, [node.report(f"serves {served(node)}") for node in nodes]
        time.sleep(0.05)


def test_auto_nodes_cover_the_model_recover_it_and_take_in_another(
    tmp_path: Path, fork_server: ForkServer, cli: Cli
) -> None:
    model = write_tiny_model(tmp_path, blocks=BLOCKS)
    right = greedy(model)

    alone = ["--model", str(model), "--threads", "1", *OPTIONS]
    planned = json.loads(cli("plan", *alone, "--json").stdout)
    assert (planned["verdict"], planned["blocks"], planned["swarm_found"]) == ("serve", "0-7", False)
    room = planned["machine"]["block_bytes"] + planned["machine"]["kv_bytes_per_block"]

    def memory(blocks: int) -> list[str]:
        return ["--memory", f"{room * blocks // 1024 + 1}KiB"]

    with ExitStack() as stack:
        swarm = stack.enter_context(
            LocalSwarm(
                model, [], serve_options=OPTIONS, overrides={"look_seconds": 0.5}, launch=fork_server.launch
            )
        )
        for threads, blocks in (("1", 5), ("2", 4), ("1", 4)):
            swarm.start_node("auto", "--threads", threads, *memory(blocks), wait=False)
        wait_covered(swarm.nodes)
        for node, most in zip(swarm.nodes, (5, 4, 4), strict=True):
            assert len(served(node) or ()) <= most
        client = stack.enter_context(
            SwarmModel.connect(
                model=swarm.model,
                initial_peers=swarm.initial_peers,
                wire_codec="none",
                quantize="none",
                dtype="float32",
                wait=60.0,
            )
        )
        assert answer(client) == right

        # Any two of them have room for all blocks: those that are left share them out anew.
        victim = next(node for node in swarm.nodes if (span := served(node)) and span.start == 0)
        swarm.nodes.remove(victim)
        victim.kill()
        wait_covered(swarm.nodes)
        assert answer(client) == right

        newcomer = swarm.start_node("auto", "--threads", "1", *memory(8), wait=False)
        newcomer.wait_for("measured")
        assert newcomer.wait_for("planned")["gain"] in ("faster", "throughput", "spare")
        newcomer.wait_for("online")
        assert is_covered(swarm.nodes)
        assert answer(client) == right
