"""A client that has connected needs nobody but the nodes: its initial peer may be gone at once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from swarm_node.client import async_model
from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.gateway import opening
from swarm_node.client.network import ClientNetwork
from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory
from swarm_node.swarm.errors import PeerUnreachableError
from swarm_node.swarm.types import ModelRef, NodeInfo
from tests.doubles.fake_swarm import BOS, FakeSwarm

PROMPT = [BOS, *b"a prompt"]
ADDRESS = "/ip4/192.0.2.1/tcp/1/p2p/12D3KooWGBfKT9DXjP8kTGGwtJmqvCDqwnfTFGvzPLEyJZ1rEcBR"


class Mortal(MemoryDirectory):
    """Answers as long as ``here``."""

    here = True

    async def nodes(self, model: ModelRef) -> list[NodeInfo]:
        self._alive()
        return await super().nodes(model)

    async def nodes_of(self, models: Sequence[ModelRef]) -> list[NodeInfo]:
        self._alive()
        return await super().nodes_of(models)

    def _alive(self) -> None:
        if not self.here:
            raise PeerUnreachableError("no peer answers")


@pytest.fixture
async def directory(monkeypatch: pytest.MonkeyPatch) -> Mortal:
    """What a client joins in this test."""
    swarm = await FakeSwarm(a="0-2", b="3-5").start()
    told = Mortal(swarm.store)

    async def given(*_: object) -> tuple[ClientNetwork, list[object]]:
        return ClientNetwork(GivenNetwork(swarm.network.transport("client"), told)), [swarm.local()]

    for module in (async_model, opening):
        monkeypatch.setattr(module, "open_models", given)
    return told


@pytest.mark.parametrize("wait", [0.0, 5.0])
async def test_a_model(directory: Mortal, wait: float) -> None:
    async with await AsyncSwarmModel.connect(initial_peers=[ADDRESS], mdns=False, wait=wait) as model:
        directory.here = False
        assert await model.generate(PROMPT, max_new_tokens=2, temperature=0)


async def test_a_gateway(directory: Mortal) -> None:
    async with opening.open_gateway(models=["m"], port=0, initial_peers=[ADDRESS], mdns=False) as server:
        directory.here = False
        _, model = server.gateway.offers.find(None)
        assert await model.generate(PROMPT, max_new_tokens=2, temperature=0)
