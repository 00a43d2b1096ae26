"""A tiny random model in transformers, and the same weights served by real nodes in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.lab.tiny_model import write_tiny_model
from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.background import BackgroundLoop
from swarm_node.client.hf import SwarmModelForCausalLM
from swarm_node.client.hf.loading import configurations
from swarm_node.client.local_model import load_local_model
from swarm_node.client.network import ClientNetwork
from swarm_node.client.swarm_model import SwarmModel
from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.config import NodeConfig
from swarm_node.node.node import Node
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span
from tests.doubles.real_node import start_node

BLOCKS = 4
KV_TOKENS = 8192


@dataclass
class Swarm:
    """Nodes and clients, all on one background loop."""

    folder: Path
    loop: BackgroundLoop = field(default_factory=BackgroundLoop)
    memory: MemoryNetwork = field(default_factory=MemoryNetwork)
    store: MemoryStore = field(default_factory=MemoryStore)
    exit: AsyncExitStack = field(default_factory=AsyncExitStack)
    nodes: dict[str, Node] = field(default_factory=dict)

    def serve(self, *, kv_tokens: int = KV_TOKENS, **spans: Span) -> None:
        for peer, span in spans.items():
            self.loop.run(self._serve(peer, span, kv_tokens))

    async def _serve(self, peer: str, span: Span, kv_tokens: int) -> None:
        self.nodes[peer] = await start_node(
            self.folder, peer, span, kv_tokens=kv_tokens, memory=self.memory, store=self.store, exit=self.exit
        )

    def client(self, *, name: str = "client", **options: Any) -> SwarmModelForCausalLM:
        local = load_local_model(self.folder, dtype="float32", quantize="none")
        network = ClientNetwork(GivenNetwork(self.memory.transport(name), MemoryDirectory(self.store)))

        async def make() -> AsyncSwarmModel:
            core = AsyncSwarmModel(local, network, wire_codec="none", **options)
            self.exit.push_async_callback(core.close)
            return core

        swarm = SwarmModel(self.loop, self.loop.run(make()))
        swarm._finalizer.detach()  # the loop is this fixture's
        config, generation = configurations(self.folder, local)
        return SwarmModelForCausalLM(config, swarm, generation)

    def sessions(self, count: int = 0) -> bool:
        """Whether each node gets to hold so many sessions, very soon."""
        return self.loop.run(self._soon(lambda server, engine: server.sessions == count))

    def is_idle(self) -> bool:
        """Whether the nodes get to hold no session and no page of one, very soon."""
        return self.loop.run(
            self._soon(
                lambda server, engine: not server.sessions and engine.used_slots == engine.reserved_slots == 0
            )
        )

    async def _soon(self, condition: Callable[[Any, Any], bool]) -> bool:
        for _ in range(400):
            statistics = [node.statistics() for node in self.nodes.values()]
            if all(condition(one.server, one.engine) for one in statistics if one is not None):
                return True
            await asyncio.sleep(0.005)
        return False

    async def kill(self, peer: str) -> None:
        self.memory.kill(peer)

    def close(self) -> None:
        self.loop.run(self.exit.aclose())
        self.loop.close()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def oracle(tiny_folder: Path) -> Any:
    """The model in transformers itself."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def assistant(tmp_path_factory: pytest.TempPathFactory, oracle: Any) -> Any:
    """A smaller model that sometimes agrees: the oracle's first block with its embedding and head."""
    from transformers import AutoModelForCausalLM

    folder = write_tiny_model(tmp_path_factory.mktemp("assistant"), blocks=1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.load_state_dict(oracle.state_dict(), strict=False)
    return model


@pytest.fixture
def new_swarm(tiny_folder: Path) -> Iterator[Swarm]:
    """Without nodes yet: for tests that bring some down."""
    threads = torch.get_num_threads()
    swarm = Swarm(tiny_folder)
    yield swarm
    swarm.close()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def swarm(tiny_folder: Path) -> Iterator[Swarm]:
    """Two chained hops."""
    threads = torch.get_num_threads()
    swarm = Swarm(tiny_folder)
    swarm.serve(a=Span(0, 2), b=Span(2, 4))
    yield swarm
    swarm.close()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(swarm: Swarm) -> SwarmModelForCausalLM:
    return swarm.client()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``served(path)``: whoever dials a swarm finds a node with that model, on its own loop."""

    def serve(path: Path) -> None:
        async def join(*_: object) -> ClientNetwork:
            memory, store = MemoryNetwork(), MemoryStore()
            config = NodeConfig(str(path), dtype="float32", quantize="none", threads=1, kv_cache_tokens=1024)
            network = GivenNetwork(memory.transport("a"), MemoryDirectory(store))
            node = Node(config, lambda _: None, network=network)
            await node.start()
            return _WithNode(GivenNetwork(memory.transport("client"), MemoryDirectory(store)), node)

        monkeypatch.setattr(ClientNetwork, "join", join)

    return serve


class _WithNode(ClientNetwork):
    def __init__(self, joined: GivenNetwork, node: Node) -> None:
        super().__init__(joined)
        self.node = node

    async def close(self) -> None:
        await super().close()
        await self.node.stop()


@pytest.fixture(autouse=True)
def drafting() -> None:
    """Drafts are sent as users have them."""


@pytest.fixture(autouse=True)
def trials() -> None:
    """Peers are put on trial as users have it."""
