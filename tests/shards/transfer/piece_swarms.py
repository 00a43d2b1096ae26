"""Peers that share and fetch pieces, in one process over a network in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.pieces.cache import PieceCache
from swarm_node.shards.pieces.hashing import manifest_of, model_files
from swarm_node.shards.pieces.holder import WholeFiles
from swarm_node.shards.transfer.downloader import FetchSettings
from swarm_node.shards.transfer.fetch import ModelFetch
from swarm_node.shards.transfer.messages import WEIGHTS_PROTOCOL
from swarm_node.shards.transfer.server import PieceServer, SharedModels
from swarm_node.shards.transfer.upload_limits import ServeLimits
from swarm_node.swarm.transport.memory import MemoryNetwork, MemoryTransport
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

PIECE = 16 * 1024
SOON = FetchSettings(wait_s=2.0, look_s=0.02, answer_s=1.0, tick_s=0.01)


@dataclass
class Peer:
    """``server`` is None for one that shares nothing."""

    name: str
    transport: MemoryTransport
    cache: PieceCache
    shared_models: SharedModels
    server: PieceServer | None
    root: str = ""


@dataclass
class PieceWorld:
    """A model, and peers that are told of each other by ``nodes``."""

    model: Path
    folder: Path
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    peers: dict[str, Peer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with open_checkpoint(str(self.model)) as checkpoint:
            self.ref = checkpoint.ref
            self.n_blocks = checkpoint.config.n_blocks
        self.manifest = manifest_of(self.model, piece_size=PIECE)

    async def peer(
        self, name: str, *, shares: bool = True, limits: ServeLimits | None = None, max_bytes: int = 10**9
    ) -> Peer:
        transport, shared_models = self.network.transport(name), SharedModels()
        server = PieceServer(shared_models, limits=limits) if shares else None
        if server is not None:
            await transport.serve(WEIGHTS_PROTOCOL, server.handle)
        cache = PieceCache(self.folder / name, max_bytes)
        self.peers[name] = Peer(name, transport, cache, shared_models, server)
        return self.peers[name]

    async def origin(self, name: str = "origin", **options: object) -> Peer:
        """A peer that has the whole model."""
        peer = await self.peer(name, **options)  # type: ignore[arg-type]
        peer.shared_models.put(WholeFiles(self.manifest, model_files(self.model)))
        peer.root = self.manifest.root
        return peer

    async def nodes(self) -> Sequence[NodeInfo]:
        return [self.info(peer) for peer in self.peers.values() if peer.root]

    async def nodes_of(self, *peers: Peer) -> Sequence[NodeInfo]:
        """As told to somebody who hears of these alone."""
        return [self.info(peer) for peer in peers]

    def info(self, peer: Peer, model: ModelRef | None = None) -> NodeInfo:
        ref = model or self.ref
        return NodeInfo(
            peer.name,
            (),
            ref,
            Span(0, ref.n_blocks),
            NodeState.ONLINE,
            weights_root=peer.root,
            shares_weights=True,
        )

    def fetch(self, peer: Peer, **options: object) -> ModelFetch:
        def announce(root: str) -> None:
            if peer.server is not None:
                peer.root = root

        given: dict[str, object] = {
            "nodes": self.nodes,
            "transport": peer.transport,
            "cache": peer.cache,
            "share": peer.shared_models if peer.server is not None else None,
            "settings": SOON,
            "on_root": announce,
            **options,
        }
        return ModelFetch(self.ref, **given)  # type: ignore[arg-type]

    async def close(self) -> None:
        await asyncio.gather(*(peer.transport.close() for peer in self.peers.values()))
