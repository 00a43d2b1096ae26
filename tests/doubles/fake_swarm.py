"""A swarm inside the test: fake nodes over the in-memory network, their directory, and clients for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.hops.edge_codecs import EdgeCodecs
from swarm_node.client.hops.plan import RouteSettings, SessionSettings
from swarm_node.client.hops.row_watch import usual_embedding_rms
from swarm_node.client.local_model import LocalModel
from swarm_node.client.network import ClientNetwork
from swarm_node.client.routing.router import Router
from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.swarm.codecs.kinds import NONE
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.timeouts import Patience
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import NodeInfo, NodeState, Span
from tests.doubles.fake_node import Behaviour, FakeNode
from tests.doubles.toy_model import (
    BOS,
    BOUNDARIES,
    CONTEXT,
    EOS,
    FACTS,
    HIDDEN,
    MODEL,
    N_BLOCKS,
    VOCAB,
    ScriptedHead,
    ToyHead,
    ToyTokenizer,
    expected,
    run_block,
)
from tests.doubles.virtual_time import now

__all__ = [
    "BOS",
    "BOUNDARIES",
    "CONTEXT",
    "EOS",
    "FAST",
    "HIDDEN",
    "MODEL",
    "N_BLOCKS",
    "VOCAB",
    "Behaviour",
    "FakeNode",
    "FakeSwarm",
    "ScriptedHead",
    "ToyHead",
    "ToyTokenizer",
    "expected",
    "run_block",
    "settle",
    "until",
]

FAST = Patience(dial_s=0.5, ping_after_s=0.03, pong_within_s=0.05, step_s=5.0, own_loss_s=0.5)


class FakeSwarm:
    """Nodes of given spans, their directory, and clients for it."""

    def __init__(self, latency: float = 0.0, **spans: str) -> None:
        self.network = MemoryNetwork(latency)
        self.store = MemoryStore()
        self.nodes = {
            peer_id: FakeNode(peer_id, Span.parse(text), self.network) for peer_id, text in spans.items()
        }

    async def start(self) -> FakeSwarm:
        for node in self.nodes.values():
            await self.network.transport(node.peer_id).serve(PROTOCOL_ID, node.handle)
            self.announce(node.peer_id)
        return self

    def cut(self, a: str, b: str) -> None:
        """End the streams between two nodes; neither reaches the other any more."""
        for one, other in ((a, b), (b, a)):
            self.nodes[one].cannot_reach.add(other)
            self.nodes[one].drop_link(other)

    def freeze(self, peer_id: str) -> None:
        """As SIGSTOP: silence, to everybody."""
        for other in ("client", *self.nodes):
            if other != peer_id:
                self.network.partition(peer_id, other)

    def settings(self, codec: str = "none", *, chain: bool = True) -> RouteSettings:
        """For a RouteSession of its own."""
        nodes = {peer_id: self.info(peer_id) for peer_id in self.nodes}
        router = self.router() if chain else None
        return RouteSettings(SessionSettings(BOUNDARIES, 256), EdgeCodecs(codec), router, nodes)

    def announce(self, peer_id: str, **changes: Any) -> None:
        self.store.put(replace(self.info(peer_id), **changes))

    def info(self, peer_id: str) -> NodeInfo:
        node = self.nodes[peer_id]
        return NodeInfo(
            peer_id=peer_id,
            maddrs=(),
            model=MODEL,
            span=node.span,
            state=NodeState.ONLINE,
            decode_ms_per_block=1.0,
            prefill_tokens_per_s=1000.0,
            free_kv_tokens=4096,
            total_kv_tokens=4096,
            codecs=node.behaviour.codecs,
        )

    def local(self, head: ToyHead | None = None, **changes: Any) -> LocalModel:
        head = head or ToyHead()
        usual = usual_embedding_rms(head.embed, VOCAB)
        local = LocalModel(MODEL, BOUNDARIES, VOCAB, CONTEXT, head, ToyTokenizer(), embedding_rms=usual)
        return replace(local, facts=FACTS, **changes)

    def client_network(self) -> ClientNetwork:
        return ClientNetwork(GivenNetwork(self.network.transport("client"), MemoryDirectory(self.store)))

    def router(self, **options: Any) -> Router:
        directory = MemoryDirectory(self.store)
        return Router(directory, MODEL, BOUNDARIES, NONE.row_bytes, **{"salt": "", "clock": now, **options})

    def client(
        self,
        head: ToyHead | None = None,
        *,
        wire_codec: str = "none",
        local: LocalModel | None = None,
        **options: Any,
    ) -> AsyncSwarmModel:
        return AsyncSwarmModel(
            local or self.local(head),
            self.client_network(),
            wire_codec=wire_codec,
            **{"patience": FAST, "router": self.router(), **options},
        )

    @property
    def open_sessions(self) -> int:
        return sum(len(node.open_sessions) for node in self.nodes.values())


async def settle() -> None:
    """Let what was written to the in-memory network be read."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what happens very soon, and has no event."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
