"""The model that a node was asked to serve, wherever it is: on this machine, with peers, on the hub."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...shards.checkpoint.checkpoint import Checkpoint
from ...shards.checkpoint.known_models import default_known
from ...shards.checkpoint.lookup import (
    ModelLocation,
    ModelNotFoundError,
    Source,
    find_local,
    refuse_broken,
    resolve_model,
    with_pin,
)
from ...shards.checkpoint.opening import is_hub_name, open_checkpoint
from ...shards.checkpoint.stored import IncompleteError
from ...shards.pieces.file_hashes import Progress, hashing_watched
from ...shards.pieces.store import is_store
from ...shards.transfer.downloader import FetchSettings
from ...shards.transfer.fetch import ModelFetch
from ...shards.transfer.hub_source import HubPieces
from ...shards.transfer.upload_limits import RateLimit
from ...swarm.errors import LocalProtocolError, SwarmError
from ...swarm.names import ModelName
from ...swarm.naming.witnesses import Witnesses
from ...swarm.types import ModelRef, Span
from ..model_source import LocalOrHubModel, ModelSource
from ..node import Node
from .sharing import WeightService

FIND_S = 120.0
"""A model that is neither here nor on the hub is looked for this many seconds: its first node may be starting
too."""
HUB_AFTER_S = 5.0
"""How long to look for peers that have a model before the hub is asked: LANs answer within seconds."""
LOOK_S = 0.5
MOST_HINTS = 3
"""A node that waits for a model tells of near names this many times: others come as peers are found."""


class FoundModel:
    """A ``ModelSource``. ``weights`` must be among the node's services.

    ``location``: where it is, if that is known; else ``locate`` looks on this machine, and later, once the
    node is in its network, in the swarm.
    """

    def __init__(
        self,
        text: str,
        weights: WeightService,
        progress: Progress | None = None,
        *,
        location: ModelLocation | None = None,
        settings: FetchSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._text = text
        self._weights = weights
        self._progress = progress
        self._location = location
        self._settings = settings or FetchSettings(wait_s=None)
        self._clock = clock
        self._source: ModelSource | None = None
        self._digest = ""

    async def locate(self) -> None:
        """Look on this machine. Before the node starts: then a wrong path does not wait for the network."""
        if self._location is None:
            with hashing_watched(self._progress):
                self._location = await asyncio.to_thread(_find_here, self._text)
        await self._look_into_store()

    @property
    def needs_network(self) -> bool:
        place = self._location
        return place is None or place.source is Source.HUB or not place.path

    async def _look_into_store(self) -> None:
        """What peers have sent is the swarm's still: what of it is damaged comes from there again."""
        place, cache = self._location, self._weights.options.cache().folder
        if place is not None and place.source is Source.LOCAL and _is_in(place.path, cache):
            self._location = await asyncio.to_thread(_fetched_before, place)

    async def describe(self) -> Checkpoint:
        with hashing_watched(self._progress):
            source = await self._found()
            checkpoint = await source.describe()
        await self._share(checkpoint.ref)
        return checkpoint

    async def open(self, span: Span) -> Checkpoint:
        with hashing_watched(self._progress):
            source = await self._found()
            checkpoint = await source.open(span)
        await self._share(checkpoint.ref)
        if self._location is not None and self._location.called:
            await asyncio.to_thread(default_known().note_used, self._location.called, checkpoint.ref.digest)
        return checkpoint

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._weights.forget(self._digest)

    async def _share(self, model: ModelRef) -> None:
        """Announce what is here whole; what comes from peers is announced as it comes."""
        place = self._location
        if place is not None and place.source is Source.HUB:
            place = await asyncio.to_thread(
                find_local, place.name
            )  # where all of its files have been fetched
        if place is not None and place.source is Source.LOCAL:
            self._weights.add_files(model.digest, Path(place.path))
        self._digest = model.digest

    async def _found(self) -> ModelSource:
        if self._source is None:
            if self._location is None:
                self._location = await self._look()
            await self._look_into_store()
            location = self._location
            if location.source is Source.SWARM:
                self._source = FetchedModel(location, self._weights, self._progress, self._settings)
            else:
                self._source = LocalOrHubModel(location.path, self._progress)
        return self._source

    async def _look(self) -> ModelLocation:
        """Look in the swarm, and in what an earlier run has fetched of the model."""
        node = _node_of(self._weights)
        began = self._clock()
        told: set[str] = set()
        while True:
            try:
                found = await resolve_model(self._text, node.directory, witnesses=Witnesses(node.transport))
            except ModelNotFoundError as error:
                if (partly := await asyncio.to_thread(self._partly_here)) is not None:
                    return partly
                if self._clock() - began > FIND_S:
                    raise
                if error.hint not in told and len(told) < MOST_HINTS:
                    message = f"{error.message}; the node waits until a peer has it"
                    node.emit("waiting", message=message, hint=error.hint)
                    told.add(error.hint)
            else:
                if found.source is not Source.HUB or self._clock() - began > HUB_AFTER_S:
                    if found.decision is not None:
                        node.emit("model_choice", **found.decision.as_dict())
                    return found
            await asyncio.sleep(LOOK_S)

    def _partly_here(self) -> ModelLocation | None:
        wanted, _ = with_pin(ModelName.parse(self._text), default_known())
        for model in self._weights.options.cache().models():
            if model.name == wanted.name and wanted.root in ("", model.root) and wanted.fits(model.digest):
                try:
                    with open_checkpoint(str(model.path)) as checkpoint:
                        return ModelLocation(model.name, Source.SWARM, ref=checkpoint.ref, root=model.root)
                except SwarmError:
                    continue
        return None


class FetchedModel:
    """A ``ModelSource``: one of the swarm's models, fetched from peers and shared while it comes.

    ``location.path``: what an earlier run has fetched, where the model can be opened with that.
    """

    def __init__(
        self,
        location: ModelLocation,
        weights: WeightService,
        progress: Progress | None,
        settings: FetchSettings,
    ) -> None:
        self._location = location
        self._weights = weights
        self._progress = progress
        self._settings = settings
        self._fetch: ModelFetch | None = None
        self._checkpoint: Checkpoint | None = None

    @property
    def needs_network(self) -> bool:
        return not self._location.path

    async def describe(self) -> Checkpoint:
        if self._checkpoint is None and self._location.path:
            self._checkpoint = await asyncio.to_thread(open_checkpoint, self._location.path)
        return self._checkpoint or await self._opened(None)

    async def open(self, span: Span) -> Checkpoint:
        return await self._opened(span)

    def close(self) -> None:
        self._close_checkpoint()
        if self._fetch is not None:
            self._fetch.close_now()
            self._fetch = None

    async def _opened(self, span: Span | None) -> Checkpoint:
        fetch = self._fetch = self._fetch or self._begun()
        before = sum(fetch.statistics().bytes_by_source.values())
        began = time.monotonic()
        path = await fetch.fetch(span, client=False)
        self._close_checkpoint()
        self._checkpoint = await asyncio.to_thread(open_checkpoint, str(path), blocks=span)
        statistics = fetch.statistics()
        came = sum(statistics.bytes_by_source.values()) - before
        self._weights.fetched_bytes += came
        if came and (node := self._weights.node) is not None:
            node.emit(
                "fetched",
                bytes=came,
                seconds=round(time.monotonic() - began, 3),
                bytes_by_source=statistics.bytes_by_source,
                banned=statistics.banned,
            )
        return self._checkpoint

    def _begun(self) -> ModelFetch:
        node, location = _node_of(self._weights), self._location
        ref = location.ref or ModelRef(location.name, "", 1)
        options = self._weights.options
        in_hub = "/" in ref.name and is_hub_name(ref.name)
        return ModelFetch(
            ref,
            nodes=partial(node.directory.nodes_of, location.refs or (ref,)),
            transport=node.transport,
            cache=options.cache(),
            root=location.root,
            share=self._weights.shared_models if self._weights.shares else None,
            rate=RateLimit(options.bytes_per_s),
            settings=self._settings,
            last_resort=HubPieces(ref.name) if in_hub else None,
            on_progress=self._progress,
            on_root=partial(self._weights.announce, ref.digest),
            on_remark=lambda message: node.emit("weights_damaged", message=message),
        )

    def _close_checkpoint(self) -> None:
        if self._checkpoint is not None:
            self._checkpoint.close()
            self._checkpoint = None


def _find_here(text: str) -> ModelLocation | None:
    """As ``find_local``. CheckpointError where only what cannot run has that name here."""
    found = find_local(text)
    if found is None:
        refuse_broken(ModelName.parse(text))
    return found


def _is_in(place: str, folder: Path) -> bool:
    path = Path(place).expanduser()
    return is_store(path) and path.resolve().parent == folder.resolve()


def _fetched_before(place: ModelLocation) -> ModelLocation:
    """The location of a model in the cache: one of the swarm's, with its path if it can be opened without the
    swarm. Raises ModelError."""
    root = Path(place.path).expanduser().resolve().name
    found = ModelLocation(place.name, Source.SWARM, ref=place.ref, root=root)
    try:
        with open_checkpoint(place.path) as checkpoint:
            return replace(found, name=checkpoint.ref.name, path=place.path, ref=checkpoint.ref)
    except IncompleteError as damaged:
        return replace(found, name=damaged.ref.name, ref=damaged.ref)


def _node_of(weights: WeightService) -> Node:
    if weights.node is None:
        raise LocalProtocolError("weights are fetched before the node is in its network")
    return weights.node
