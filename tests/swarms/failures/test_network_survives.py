"""What becomes of a swarm when daemons die or hang, meeting points go and come back, and computers sleep."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.lab.local_swarm import LocalSwarm, NodeProcess
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.processes.worker import Worker
from swarm_node.client import AsyncSwarmModel
from swarm_node.swarm.transport.direct import with_daemon
from swarm_node.swarm.types import NodeState
from tests.swarms.harness import EXACT, ONE_THREAD, daemon_of, freeze, until
from tests.swarms.short_times import with_times

pytestmark = pytest.mark.swarm

PROMPT = [1 + (7 * i) % 500 for i in range(40)]
NEW_TOKENS = 60
TTL_S, SLEPT_S = 3.0, 2.0
SLEEPERS = {
    "dht.kademlia.directory:HivemindDirectory.create:ttl": TTL_S,
    "swarm.transport.p2pd.supervisor:SLEPT_S": SLEPT_S,
}
"""How long announcements live, and how long a machine must have slept, in the swarm that sleeps."""


@pytest.fixture(scope="module")
def swarm(tiny: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    """All streams go through daemons, as those to nodes that cannot be dialled directly."""
    options = [*ONE_THREAD, *EXACT, "--no-direct"]
    with LocalSwarm(
        tiny, ["0-1", "2-3"], serve_options=options, overrides={}, launch=fork_server.launch
    ) as swarm:
        yield swarm


async def connect(swarm: LocalSwarm, **options: Any) -> AsyncSwarmModel:
    return await AsyncSwarmModel.connect(
        model=swarm.model,
        initial_peers=swarm.initial_peers,
        wire_codec="none",
        dtype="float32",
        threads=1,
        **options,
    )


async def answer(model: AsyncSwarmModel, after: Callable[[], object] = lambda: None) -> tuple[Any, Any]:
    """(token ids, result) of an answer during which, at its tenth piece, ``after`` is called."""
    pieces = 0
    async with model.stream(PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True) as stream:
        async for _ in stream:
            pieces += 1
            if pieces == 10:
                after()
        return stream.result.token_ids, stream.result


def in_time(node: NodeProcess) -> float:
    """Seconds of the outage that a node tells of, which serves on in the same process."""
    assert "p2pd" in node.wait_for("network_lost", timeout=20)["message"]
    restored = node.wait_for("network_restored", timeout=20)
    assert restored["maddrs"], "it listens again"
    assert node.is_running
    return float(restored["seconds"])


async def test_a_node_whose_daemon_is_killed_serves_the_same_answer_to_its_end(swarm: LocalSwarm) -> None:
    node = swarm.nodes[1]
    online = next(event for event in node.events if event["event"] == "online")
    async with await connect(swarm, prefix_cache=False) as model:
        expected, _ = await answer(model)
        got, result = await answer(model, daemon_of(node.pid).kill)
        assert got == expected
        assert result.repairs >= 1
    assert in_time(node) < 5
    restored = node.events[-1]
    assert (restored["peer_id"], restored["maddrs"]) == (online["peer_id"], online["maddrs"])
    until(lambda: node.statistics()["server"]["sessions"] == 0)


@pytest.mark.parametrize("how", ["kill", "hang"])
async def test_a_client_whose_own_daemon_is_lost_goes_on_and_blames_nobody(
    swarm: LocalSwarm, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that needs its daemon for every peer, as if none could be dialled over TCP."""
    monkeypatch.setattr(with_daemon, "by_others_alone", lambda peer_id, maddrs: list(maddrs))
    async with await connect(swarm, prefix_cache=False) as model:
        expected, _ = await answer(model)
        mine = daemon_of(psutil.Process())
        got, result = await answer(model, mine.kill if how == "kill" else lambda: freeze(mine))
        assert got == expected
        assert result.repairs >= 1
        router = model._router
        assert router.health.banned(router.now()) == frozenset()
        assert (await answer(model))[0] == expected


async def test_a_bootstrap_node_whose_daemon_hangs_is_found_by_newcomers_again(swarm: LocalSwarm) -> None:
    assert swarm.bootstrap is not None
    freeze(daemon_of(swarm.bootstrap.pid))
    assert in_time(swarm.bootstrap) < 10
    async with await connect(swarm, wait=10) as model:
        assert len((await model.generate_detailed(PROMPT, max_new_tokens=2)).route.hops) == 2


async def test_a_bootstrap_node_that_returns_joins_old_and_new_again(swarm: LocalSwarm) -> None:
    assert swarm.bootstrap is not None
    async with await connect(swarm) as old:
        swarm.bootstrap.kill()
        before, _ = await answer(old)  # nobody needs it to go on
        start_bootstrap_again(swarm)
        newcomer = swarm.start_node("0-3")
        assert (await answer(old))[0] == before
        async with asyncio.timeout(40):
            # The two halves of the swarm meet through the pings of the old.
            while newcomer.events[-1]["peer_id"] not in await online_nodes(old):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        async with await connect(swarm) as new:
            async with asyncio.timeout(40):
                while len(await online_nodes(new)) < 3:  # noqa: ASYNC110  nobody tells
                    await asyncio.sleep(0.2)
        newcomer.stop()


def start_bootstrap_again(swarm: LocalSwarm) -> None:
    swarm.start_bootstrap("--port", swarm.initial_peers[0].split("/tcp/")[1].split("/")[0])


async def test_a_bootstrap_node_that_knows_nobody_yet_is_not_taken_at_its_word(swarm: LocalSwarm) -> None:
    """The client asks it before any node has found it again."""
    assert swarm.bootstrap is not None
    swarm.bootstrap.kill()
    start_bootstrap_again(swarm)
    async with await connect(swarm) as model:
        assert len((await model.generate_detailed(PROMPT, max_new_tokens=2)).route.hops) >= 1


async def online_nodes(model: AsyncSwarmModel) -> set[str]:
    nodes = await model._network.directory.nodes(model.model)
    return {node.peer_id for node in nodes if node.state is NodeState.ONLINE}


async def test_a_client_with_several_initial_peers_misses_none_of_them(swarm: LocalSwarm) -> None:
    dead = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5"
    async with await AsyncSwarmModel.connect(
        model=swarm.model, initial_peers=[dead, *swarm.initial_peers], threads=1
    ) as model:
        assert len((await model.generate_detailed(PROMPT, max_new_tokens=2)).route.hops) >= 1


def test_what_slept_longer_than_its_announcement_lives_is_back_when_it_wakes(
    tiny: Path, fork_server: ForkServer
) -> None:
    """A node with its daemon and a client, as when the lids of two laptops were closed."""
    options = [*ONE_THREAD, *EXACT]
    launch = with_times(fork_server.launch, SLEEPERS)
    with LocalSwarm(
        tiny, [], serve_options=options, overrides={"announce_seconds": 1.0}, launch=launch
    ) as swarm:
        node = swarm.start_node("0-3", wait=False)
        client = Worker(
            "tests.swarms.failures.asked_client:answer_on_order",
            launch=launch,
            model_path=str(tiny),
            initial_peers=swarm.initial_peers,
        )
        try:
            client.wait_ready()
            swarm.wait_online(node)
            client.order(token_ids=PROMPT)
            expected = client.wait_for("answer")["token_ids"]
            everyone = [psutil.Process(client.pid), psutil.Process(node.pid), daemon_of(node.pid)]
            freeze(*everyone)
            asleep = time.monotonic()
            until(lambda: time.monotonic() > asleep + TTL_S + SLEPT_S, TTL_S + SLEPT_S + 5)
            for process in reversed(everyone):
                process.resume()
            client.order(token_ids=PROMPT)
            assert "slept" in node.wait_for("network_lost", timeout=20)["message"]
            node.wait_for("network_restored", timeout=20)
            assert client.wait_for("answer", timeout=30)["token_ids"] == expected
            client.order(token_ids=PROMPT)
            again = client.wait_for("answer", timeout=30)
            assert (again["token_ids"], again["repairs"]) == (expected, 0)
        finally:
            client.stop()


def test_a_daemon_that_something_always_kills_ends_its_node_with_an_error(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    identity = str(tmp_path / "bootstrap.key")
    node = NodeProcess(
        ["bootstrap", "--json", "--host", "127.0.0.1", "--port", "0", "--identity", identity],
        launch=with_times(fork_server.launch, {"swarm.transport.p2pd.supervisor:BACK_OFF_S": 0.1}),
    )
    try:
        node.wait_for("online")
        seen: set[int] = set()

        def kill_the_next() -> bool:
            if not node.is_running:
                return True
            with contextlib.suppress(psutil.NoSuchProcess):  # of whoever has ended meanwhile
                for child in psutil.Process(node.pid).children():
                    if child.name() == "p2pd" and child.pid not in seen:
                        seen.add(child.pid)
                        child.kill()
            return False

        until(kill_the_next, 30)
        error = node.wait_for("error", timeout=5)
        assert "ended one after the other" in error["message"]
        assert error["hint"]
        assert "Traceback" not in node.stderr
    finally:
        assert node.stop() == 4
