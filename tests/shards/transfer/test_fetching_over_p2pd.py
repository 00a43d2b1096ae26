"""Weights over real libp2p daemons on 127.0.0.1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.pieces.cache import PieceCache
from swarm_node.shards.transfer.messages import WEIGHTS_PROTOCOL
from swarm_node.shards.transfer.server import PieceServer
from swarm_node.shards.transfer.upload_limits import RateLimit
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from swarm_node.swarm.types import NodeInfo, NodeState, Span
from tests.shards.transfer.piece_swarms import PieceWorld

pytestmark = pytest.mark.swarm


@pytest.fixture
async def transports() -> AsyncIterator[list[P2pdTransport]]:
    started = await asyncio.gather(*(P2pdTransport.create() for _ in range(2)))
    yield list(started)
    await asyncio.gather(*(transport.close() for transport in started))


async def test_a_model_goes_from_one_daemon_to_another(
    hf_llama: Callable[..., Path], tmp_path: Path, transports: list[P2pdTransport]
) -> None:
    world = PieceWorld(hf_llama(shards=2, num_hidden_layers=8, hidden_size=256), tmp_path)
    giving, taking = transports
    origin = await world.origin()  # for the models that it shares
    server = PieceServer(origin.shared_models, rate=RateLimit(200e6))
    await giving.serve(WEIGHTS_PROTOCOL, server.handle)
    here = NodeInfo(
        giving.peer_id,
        await giving.maddrs(),
        world.ref,
        Span(0, world.n_blocks),
        NodeState.ONLINE,
        weights_root=world.manifest.root,
        shares_weights=True,
    )

    async def nodes() -> list[NodeInfo]:
        return [here]

    peer = await world.peer("taking")
    options = {"nodes": nodes, "transport": taking, "cache": PieceCache(tmp_path / "cache")}
    async with world.fetch(peer, **options) as fetch:
        path = await fetch.fetch(Span(0, world.n_blocks), client=True)
        assert fetch.statistics().bytes_by_source == {giving.peer_id: world.manifest.total_bytes}
    with open_checkpoint(str(path)) as checkpoint:
        assert checkpoint.ref.digest == world.ref.digest
    assert server.bytes_by_peer == {taking.peer_id: world.manifest.total_bytes}
