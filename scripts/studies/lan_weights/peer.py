"""One peer of ``lan_weights``: shares a model, or fetches it when a line of JSON says so, and tells how."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
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
from swarm_node.shards.transfer.rate_limit import RateLimit
from swarm_node.shards.transfer.server import PieceServer, PieceShelf
from swarm_node.swarm.transport.p2pd.transport import P2pdTransport
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span


async def peer(arguments: argparse.Namespace) -> None:
    transport = await P2pdTransport.create()
    rate = RateLimit(None if arguments.mbit is None else arguments.mbit * 125_000)
    server = PieceServer(PieceShelf(), rate=rate)
    try:
        await transport.serve(WEIGHTS_PROTOCOL, server.handle)
        here = {"peer_id": transport.peer_id, "maddrs": await transport.maddrs()}
        if arguments.model:
            say("ready", **here, **share(Path(arguments.model), server.shelf))
            await told()
            say("sent", bytes=sum(server.statistics().bytes_by_peer.values()))
        else:
            say("ready", **here)
            await fetch(await told(), transport, server.shelf, Path(arguments.home))
        await told()  # until the parent ends us: others may still ask
    finally:
        await transport.close()


def share(path: Path, shelf: PieceShelf) -> dict[str, Any]:
    began = time.perf_counter()
    manifest = manifest_of(path)
    hashing_s = time.perf_counter() - began
    shelf.put(WholeFiles(manifest, model_files(path)))
    with open_checkpoint(str(path)) as checkpoint:
        ref = checkpoint.ref
    return {
        "root": manifest.root,
        "ref": asdict(ref),
        "n_blocks": ref.n_blocks,
        "bytes": manifest.total_bytes,
        "hashing_s": hashing_s,
    }


async def fetch(plan: dict[str, Any], transport: P2pdTransport, shelf: PieceShelf, home: Path) -> None:
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

    fetching = ModelFetch(ref, nodes=directory, transport=transport, cache=PieceCache(home), share=shelf)
    began = time.perf_counter()
    await fetching.fetch(span, client=plan["client"])
    seconds = time.perf_counter() - began
    statistics = fetching.statistics()
    say(
        "fetched",
        seconds=seconds,
        bytes_by_source=statistics.bytes_by_source,
        wasted_bytes=statistics.wasted_bytes,
    )
    await told()
    await fetching.close()


async def told() -> dict[str, Any]:
    """The next line of the parent; the end of its input ends this process."""
    line = await asyncio.to_thread(sys.stdin.readline)
    if not line:
        raise SystemExit(0)
    document: dict[str, Any] = json.loads(line)
    return document


def say(event: str, **details: object) -> None:
    print(json.dumps({"event": event, **details}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--mbit", type=float, default=None)
    asyncio.run(peer(parser.parse_args()))


if __name__ == "__main__":
    main()
