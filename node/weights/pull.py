"""A whole model fetched to this machine, before anything is served: from peers that share it, or the hub."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ...dht.joining.client import joined_if_any
from ...dht.joining.network import Network
from ...shards.checkpoint.local_models import weights_folder
from ...shards.checkpoint.lookup import ModelLocation, Source, find_local, resolve_model
from ...shards.checkpoint.opening import is_hub_name, open_checkpoint
from ...shards.pieces.cache import PieceCache
from ...shards.pieces.file_hashes import Progress, hashing_watched
from ...shards.transfer.fetch import ModelFetch
from ...shards.transfer.hub_source import HubPieces
from ...swarm.errors import NetworkError
from ...swarm.membership.entry import SwarmEntry
from ...swarm.naming.witnesses import Witnesses
from ...swarm.types import ModelRef, Span

OnStage = Callable[[str], None]
"""Told in a few words what is going on."""


@dataclass(frozen=True, slots=True)
class PulledModel:
    """``path``: what ``open_checkpoint`` takes. ``source``: where it came from; LOCAL where it was here.
    ``seconds``: how long that took."""

    ref: ModelRef
    path: str
    source: Source
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "model": self.ref.name,
            "digest": self.ref.digest,
            "n_blocks": self.ref.n_blocks,
            "path": self.path,
            "source": str(self.source),
            "seconds": round(self.seconds, 3),
        }


async def pull_model(
    name: str,
    entry: SwarmEntry,
    *,
    cache_bytes: int,
    blocks: Span | None = None,
    on_stage: OnStage = lambda stage: None,
    on_progress: Progress | None = None,
) -> PulledModel:
    """Fetch all of ``name`` that is not here, and go on where an earlier fetch has stopped. ``cache_bytes``:
    what weights from peers may take on the disk. ``blocks``: only what a node of these and a client read.

    Raises ModelError, NetworkError, and UsageError for a name that several models have.
    """
    began = time.monotonic()
    with hashing_watched(on_progress):
        place = await asyncio.to_thread(find_local, name)
        if place is None:
            on_stage("Looking for the swarm ...")
            async with joined_if_any(entry, on_stage) as network:
                place = await _resolved(name, network, on_stage)
                if place.source is Source.SWARM and network is not None:
                    on_stage("Asking peers who shares the model ...")
                    path = await _from_peers(place, network, cache_bytes, blocks, on_progress)
                    place = ModelLocation(place.name, place.source, path)
        on_stage(f"Opening {place.name} ...")
        ref = await asyncio.to_thread(_opened, place.path, blocks, on_progress)
        here = await asyncio.to_thread(find_local, place.path) or place
    return PulledModel(ref, here.path, place.source, time.monotonic() - began)


async def _resolved(name: str, network: Network | None, on_stage: OnStage) -> ModelLocation:
    directory = None if network is None else network.directory
    witnesses = None if network is None else Witnesses(network.transport)
    place = await resolve_model(name, directory, witnesses=witnesses)
    if place.decision is not None:
        on_stage(place.decision.sentence)
    return place


async def _from_peers(
    place: ModelLocation,
    network: Network,
    cache_bytes: int,
    blocks: Span | None,
    on_progress: Progress | None,
) -> str:
    """These blocks, or all of them, and the client's part, into the cache of weights."""
    ref = place.ref
    if ref is None:
        raise NetworkError(f"the swarm does not say which {place.name} it serves")
    in_hub = "/" in ref.name and is_hub_name(ref.name)
    async with ModelFetch(
        ref,
        nodes=partial(network.directory.nodes_of, place.refs),
        transport=network.transport,
        cache=PieceCache(weights_folder(), cache_bytes),
        root=place.root,
        last_resort=HubPieces(ref.name) if in_hub else None,
        on_progress=on_progress,
    ) as fetch:
        described = await fetch.fetch(None, client=False)
        if blocks is None:
            blocks = Span(0, (await asyncio.to_thread(_opened, str(described), None, None)).n_blocks)
        return str(await fetch.fetch(blocks, client=True))


def _opened(path: str, blocks: Span | None, on_progress: Progress | None) -> ModelRef:
    """What a path, or a name of the hub, leads to; of the hub all files are fetched, or what a node of
    ``blocks`` and a client read."""
    with open_checkpoint(path, blocks=blocks, client=blocks is not None, progress=on_progress) as checkpoint:
        return checkpoint.ref
