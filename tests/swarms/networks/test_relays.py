"""Nodes that nobody can dial, each behind a NAT of its own, reached through a relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from scripts.lab.local_swarm import NodeProcess
from scripts.lab.processes.event_process import stop_all
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.tiny_model import write_tiny_model
from scripts.lab.wan_lab.network import WanLab, why_not_here
from swarm_node.client import AsyncSwarmModel
from swarm_node.swarm.errors import SwarmError
from tests.swarms.harness import EXACT, ONE_THREAD

pytestmark = [
    pytest.mark.swarm,
    pytest.mark.skipif(bool(why_not_here()), reason=f"needs network namespaces: {why_not_here()}"),
]

PROMPT = [1 + (7 * i) % 500 for i in range(40)]
SPANS = {"first": "0-1", "second": "2-3"}


@dataclass
class Natted:
    """A swarm of which only the relay can be dialled."""

    lab: WanLab
    model: Path
    relay: NodeProcess
    nodes: list[NodeProcess]

    @property
    def where(self) -> list[str]:
        return list(self.relay.events[0]["maddrs"])

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncSwarmModel]:
        """This thread dials for it, so it stays in the client's machine meanwhile."""
        with self.lab.inside("client"):
            async with await AsyncSwarmModel.connect(
                model=self.model,
                initial_peers=self.where,
                wire_codec="none",
                dtype="float32",
                threads=1,
                prefix_cache=False,
                wait=30,
            ) as model:
                yield model


@pytest.fixture(scope="module")
def natted(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[Natted]:
    folder = tmp_path_factory.mktemp("natted")
    model = write_tiny_model(folder)
    with WanLab() as lab:
        address = lab.add("relay")
        started: list[NodeProcess] = []
        try:
            with lab.inside("relay"):
                identity = str(folder / "relay.key")
                relay = NodeProcess(
                    ["bootstrap", "--json", "--relay", "--host", address, "--port", "4001"]
                    + ["--identity", identity],
                    launch=fork_server.launch,
                )
                started.append(relay)
            (where, *_) = relay.wait_for("listening")["maddrs"]
            lab.add("client", takes_strangers=False)
            for name, blocks in SPANS.items():
                host = lab.add(name, takes_strangers=False)
                with lab.inside(name):
                    words = ["serve", "--json", "--model", str(model), "--blocks", blocks, "--host", host]
                    words += ["--initial-peers", where, "--relay", where, *ONE_THREAD, *EXACT]
                    words += ["--identity", str(folder / f"{name}.key")]
                    started.append(NodeProcess(words, launch=fork_server.launch))
            for node in started[1:]:
                node.wait_for("online")
            yield Natted(lab, model, relay, started[1:])
        finally:
            stop_all(started)


async def test_a_client_behind_nat_is_answered_by_nodes_behind_nat(natted: Natted) -> None:
    online = [node.events[-1] for node in natted.nodes]
    for event in online:
        assert any("/p2p-circuit/" in maddr for maddr in event["maddrs"]), "it says where it can be reached"
    async with natted.client() as model:
        result = await model.generate_detailed(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert len(result.token_ids) == 20
    assert result.repairs == 0
    assert {hop.peer_id for hop in result.route.hops} == {event["peer_id"] for event in online}


async def test_nodes_are_reached_again_when_their_relay_has_been_away(natted: Natted) -> None:
    async with natted.client() as model:
        before = await model.generate_detailed(PROMPT, max_new_tokens=20, ignore_eos=True)
        (daemon,) = psutil.Process(natted.relay.pid).children()
        daemon.kill()
        natted.relay.wait_for("network_restored", timeout=30)
        async with asyncio.timeout(90):
            while True:
                try:
                    after = await model.generate_detailed(PROMPT, max_new_tokens=20, ignore_eos=True)
                except SwarmError:
                    await asyncio.sleep(0.5)
                else:
                    break
    assert after.token_ids == before.token_ids
    for node in natted.nodes:
        assert "relay" in node.wait_for("network_lost", timeout=1)["message"]
