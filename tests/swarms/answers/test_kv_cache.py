"""A node whose KV cache is small: full, idle and abandoned sessions, seen from outside and from inside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.local_swarm import LocalSwarm
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.processes.worker import Worker
from tests.swarms.harness import EXACT, exact_client

pytestmark = [pytest.mark.swarm, pytest.mark.model]

PROMPT = "Count from 1 to 20."
KV_TOKENS = 1536
LARGE = 900
"""New tokens of an answer that leaves no room for another one of its size."""
NOTICED_S = 20.0
"""Within it a node sees that a client's process is gone, and sweeps idle sessions."""


@pytest.fixture(scope="module")
def small_swarm(smollm2_path: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    """Two nodes in float32 that say how they are and drop sessions after a second."""
    options = ["--threads", "1", "--kv-cache-tokens", str(KV_TOKENS), *EXACT]
    overrides = {"idle_session_seconds": 1.0}
    with LocalSwarm(
        smollm2_path, ["0-14", "15-29"], serve_options=options, overrides=overrides, launch=fork_server.launch
    ) as swarm:
        yield swarm


async def _until(swarm: LocalSwarm, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until it holds for the statistics of every node."""

    def ask() -> None:
        deadline = time.monotonic() + NOTICED_S
        while not all(holds(statistics := node.statistics()) for node in swarm.nodes):
            assert time.monotonic() < deadline, statistics
            time.sleep(0.05)

    await asyncio.to_thread(ask)


def _is_empty(statistics: dict[str, Any]) -> bool:
    engine = statistics["engine"]
    held = [engine[name] for name in ("sequences", "used_slots", "reserved_slots", "queued")]
    return held == [0, 0, 0, 0] and statistics["server"]["sessions"] == 0


async def test_a_full_node_says_busy_and_serves_when_there_is_room_again(small_swarm: LocalSwarm) -> None:
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with (
        exact_client(small_swarm) as first,
        exact_client(small_swarm, on_progress=lambda _: loop.call_soon_threadsafe(refused.set)) as second,
    ):
        expected = (await first.generate_detailed(PROMPT, max_new_tokens=12, ignore_eos=True)).token_ids
        holder = first.stream(PROMPT, max_new_tokens=LARGE, ignore_eos=True)
        await anext(holder)
        refused.clear()  # loading its model made progress, too
        waiting = second.stream(PROMPT, max_new_tokens=LARGE, ignore_eos=True)
        piece = asyncio.ensure_future(anext(waiting))
        held = asyncio.create_task(_read_on(holder, refused))
        async with asyncio.timeout(NOTICED_S):
            await refused.wait()  # it was told BUSY and waits for its turn
        assert not piece.done()
        await held
        await holder.aclose()
        await piece
        await waiting.aclose()
        again = await second.generate_detailed(PROMPT, max_new_tokens=12, ignore_eos=True)
        assert again.token_ids == expected
    await _until(small_swarm, _is_empty)


async def _read_on(stream: Any, until: asyncio.Event) -> None:
    """Keep a session in use, so that it is not dropped for being idle."""
    while not until.is_set():
        await anext(stream)


async def test_an_idle_session_is_dropped_and_repaired(small_swarm: LocalSwarm) -> None:
    async with exact_client(small_swarm) as model:
        undisturbed = await model.generate_detailed(PROMPT, max_new_tokens=24, ignore_eos=True)
        async with model.stream(PROMPT, max_new_tokens=24, ignore_eos=True) as stream:
            await anext(stream)
            assert not all(map(_is_empty, [node.statistics() for node in small_swarm.nodes]))
            await _until(small_swarm, _is_empty)
            rested = await stream.finish()
        assert rested.token_ids == undisturbed.token_ids
        assert rested.repairs > 0
    await _until(small_swarm, _is_empty)


async def test_a_killed_client_leaves_nothing(small_swarm: LocalSwarm) -> None:
    asked = {"initial_peers": small_swarm.initial_peers, "model": small_swarm.model}
    worker = Worker("scripts.lab.soak.polite:client_to_kill", **asked)
    try:
        await asyncio.to_thread(worker.wait_ready)
        await _until(
            small_swarm, lambda now: now["engine"]["used_slots"] > 0 and now["engine"]["sequences"] > 1
        )
    finally:
        worker.close()  # SIGKILL, in the middle of its answers
    await _until(small_swarm, _is_empty)
    async with exact_client(small_swarm) as model:
        answer = await model.generate_detailed(PROMPT, max_new_tokens=LARGE, ignore_eos=True, stop=["20"])
        assert "1" in answer.text
    await _until(small_swarm, _is_empty)
