"""Streams from process to process, and what takes their place where a node cannot be dialled so."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from scripts.lab.local_swarm import LocalSwarm, NodeProcess
from scripts.lab.processes.fork_server import ForkServer
from swarm_node.client import AsyncSwarmModel, Generation
from swarm_node.swarm.transport.direct_maddrs import Way
from tests.swarms.harness import EXACT, ONE_THREAD, daemon_of, until

pytestmark = pytest.mark.swarm

PROMPT = [1 + (7 * i) % 500 for i in range(40)]
NEW_TOKENS = 60
SPANS = ("0-1", "2-3")


@pytest.fixture(scope="module")
def swarm(tiny: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    options = [*ONE_THREAD, *EXACT]
    with LocalSwarm(tiny, SPANS, serve_options=options, overrides={}, launch=fork_server.launch) as swarm:
        yield swarm


@contextlib.asynccontextmanager
async def client_of(swarm: LocalSwarm) -> AsyncIterator[AsyncSwarmModel]:
    async with await AsyncSwarmModel.connect(
        model=swarm.model,
        initial_peers=swarm.initial_peers,
        wire_codec="none",
        dtype="float32",
        threads=1,
        prefix_cache=False,
    ) as model:
        yield model


async def answer(model: AsyncSwarmModel, after: Callable[[], object] = lambda: None) -> Generation:
    """An answer during which, at its tenth piece, ``after`` is called."""
    pieces = 0
    async with model.stream(PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True) as stream:
        async for _ in stream:
            pieces += 1
            if pieces == 10:
                after()
        return stream.result


def ways_of(result: Generation) -> list[tuple[object, object]]:
    """For each hop, how streams go there from the client, and on to the next hop."""
    return [(hop["way"], hop["way_on"]) for hop in result.as_dict()["route"]]


async def test_every_edge_is_direct_and_no_daemon_carries_a_token(swarm: LocalSwarm) -> None:
    async with client_of(swarm) as model:
        daemons = [daemon_of(node.pid) for node in swarm.nodes]
        before = [sum(daemon.cpu_times()[:2]) for daemon in daemons]
        result = await answer(model)
        assert ways_of(result) == [(Way.DIRECT, Way.DIRECT), (Way.DIRECT, "")]
        spent = [sum(daemon.cpu_times()[:2]) - was for daemon, was in zip(daemons, before, strict=True)]
        assert max(spent) < 0.25


async def test_no_token_is_late_for_a_daemon_that_dies_in_mid_answer(swarm: LocalSwarm) -> None:
    def kill_all() -> None:
        for node in swarm.nodes:
            daemon_of(node.pid).kill()

    async with client_of(swarm) as model:
        expected = await answer(model)
        result = await answer(model, kill_all)
        assert result.token_ids == expected.token_ids
        assert result.repairs == 0
        for node in swarm.nodes:
            assert node.wait_for("network_restored", timeout=20)["maddrs"]
            until(lambda node=node: node.statistics()["server"]["sessions"] == 0)
        assert (await answer(model)).token_ids == expected.token_ids


async def test_a_node_without_a_listener_of_its_own_is_reached_by_its_daemon(swarm: LocalSwarm) -> None:
    """As one of an earlier version: both edges of it, and no other, go through daemons."""
    async with client_of(swarm) as model:
        expected = (await answer(model)).token_ids
    first = swarm.nodes[0]
    first.stop()
    with another(swarm, SPANS[0], "--no-direct"):
        async with client_of(swarm) as model:
            result = await answer(model)
            assert result.token_ids == expected
            assert ways_of(result) == [(Way.DAEMON, Way.DAEMON), (Way.DIRECT, "")]
    swarm.restart_node(first)
    swarm.wait_online(swarm.nodes[0])


@pytest.mark.parametrize("how", ["refused", "black hole"])
async def test_a_firewall_before_the_direct_port_costs_an_edge_that_way_alone(
    swarm: LocalSwarm, how: str
) -> None:
    with contextlib.closing(socket.socket()) as wall:
        wall.bind(("127.0.0.1", 0))
        if how == "black hole":
            wall.listen()  # connections stand, and nobody ever answers
        closed = f"/ip4/127.0.0.1/tcp/{wall.getsockname()[1]}"
        last = swarm.nodes[1]
        last.stop()
        with another(swarm, SPANS[1], "--announce-direct", closed):
            async with client_of(swarm) as model:
                result = await answer(model)
                assert len(result.token_ids) == NEW_TOKENS
                assert result.repairs == 0
                assert ways_of(result) == [(Way.DIRECT, Way.DAEMON), (Way.DAEMON, "")]
                banned = model._router.health.banned(model._router.now())  # a node that has just left may be
                assert not banned & {hop.peer_id for hop in result.route.hops}
    swarm.restart_node(last)
    swarm.wait_online(swarm.nodes[1])


@contextlib.contextmanager
def another(swarm: LocalSwarm, blocks: str, *options: str) -> Iterator[NodeProcess]:
    """One more node, for as long as the context lasts."""
    node = swarm.start_node(blocks, *options)
    try:
        yield node
    finally:
        node.stop()
        swarm.nodes.remove(node)
