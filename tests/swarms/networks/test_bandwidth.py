"""A node whose line a person limits: the rate is kept, and no peer takes the node for a broken one."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.lab.local_swarm import LocalSwarm
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.tiny_model import HIDDEN, VOCAB
from swarm_node.client.generation import Generation
from tests.swarms.harness import EXACT, ONE_THREAD, exact_client

pytestmark = pytest.mark.swarm

PROMPT = [1 + (7 * i) % (VOCAB - 1) for i in range(1800)]
ROW_BYTES = HIDDEN * 4
MBIT = 1
IDEAL_S = len(PROMPT) * ROW_BYTES / (MBIT * 125_000)
"""Seconds in which the prompt's rows, in float32, go over the limited line."""


async def answer(swarm: LocalSwarm) -> Generation:
    async with exact_client(swarm, prefix_cache=False, threads=1, wait=30) as model:
        return await model.generate_detailed(PROMPT, max_new_tokens=8, ignore_eos=True)


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_limited_node_is_slow_and_not_broken(way: str, tiny: Path, fork_server: ForkServer) -> None:
    options = [*ONE_THREAD, *EXACT, "--no-mdns"]
    with LocalSwarm(tiny, [], serve_options=options, launch=fork_server.launch) as swarm:
        last = swarm.start_node("2-3", wait=False)
        first = swarm.start_node("0-1")
        swarm.wait_online(last)
        free = await answer(swarm)
        first.stop()
        swarm.start_node("0-1", f"--bandwidth-{way}", str(MBIT))
        held = await answer(swarm)
    assert held.token_ids == free.token_ids
    assert held.repairs == 0
    assert held.timings.first_token_s >= 0.9 * IDEAL_S
    assert held.timings.first_token_s <= 1.1 * IDEAL_S + free.timings.first_token_s
