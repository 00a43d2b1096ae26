"""One peer of ``lan_weights``: shares a model, or fetches it when an order says so, and tells how."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.pieces.cache import PieceCache
from swarm_node.shards.pieces.hashing import manifest_of, model_files
from swarm_node.shards.pieces.holder import WholeFiles
from swarm_node.shards.transfer.fetch import ModelFetch
from swarm_node.shards.transfer.messages import WEIGHTS_PROTOCOL
from swarm_node.shards.transfer.server import PieceServer, SharedModels
from swarm_node.shards.transfer.upload_limits import RateLimit
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

from ...lab.processes.parent import next_order, tell


def share_or_fetch(*, home: str, model_file: str, mbit: float | None) -> None:
    """``model_file`` "": fetch the model, as the first order says."""
    asyncio.run(_share_or_fetch(Path(home), model_file, mbit))


async def _share_or_fetch(home: Path, model_file: str, mbit: float | None) -> None:
    transport = await P2pdTransport.create()
    rate = RateLimit(None if mbit is None else mbit * 125_000)
    server = PieceServer(SharedModels(), rate=rate)
    try:
        await transport.serve(WEIGHTS_PROTOCOL, server.handle)
        here = {"peer_id": transport.peer_id, "maddrs": await transport.maddrs()}
        if model_file:
            tell("ready", **here, **share(Path(model_file), server.shared_models))
            await next_order()
            tell("sent", bytes=sum(server.bytes_by_peer.values()))
        else:
            tell("ready", **here)
            await fetch(await next_order() or {}, transport, server.shared_models, home)
        await next_order()  # until the parent ends us: others may still ask
    finally:
        await transport.close()


def share(path: Path, shared_models: SharedModels) -> dict[str, Any]:
    began = time.perf_counter()
    manifest = manifest_of(path)
    hashing_s = time.perf_counter() - began
    shared_models.put(WholeFiles(manifest, model_files(path)))
    with open_checkpoint(str(path)) as checkpoint:
        ref = checkpoint.ref
    return {
        "root": manifest.root,
        "ref": asdict(ref),
        "n_blocks": ref.n_blocks,
        "bytes": manifest.total_bytes,
        "hashing_s": hashing_s,
    }


async def fetch(
    plan: dict[str, Any], transport: P2pdTransport, shared_models: SharedModels, home: Path
) -> None:
    ref, span = ModelRef(**plan["ref"]), Span(*plan["blocks"])
    nodes = [
        NodeInfo(
            node["peer_id"],
            tuple(node["maddrs"]),
            ref,
            span,
            NodeState.ONLINE,
            weights_root=plan["root"],
            shares_weights=True,
        )
        for node in plan["nodes"]
    ]

    async def directory() -> list[NodeInfo]:
        return nodes

    fetching = ModelFetch(
        ref, nodes=directory, transport=transport, cache=PieceCache(home), share=shared_models
    )
    began = time.perf_counter()
    await fetching.fetch(span, client=plan["client"])
    seconds = time.perf_counter() - began
    statistics = fetching.statistics()
    tell(
        "fetched",
        seconds=seconds,
        bytes_by_source=statistics.bytes_by_source,
        wasted_bytes=statistics.wasted_bytes,
    )
    await next_order()
    await fetching.close()
