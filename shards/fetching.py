"""Fetches what a node or a client needs of a model from peers that have it, into the piece cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..swarm.errors import ModelMismatchError, NetworkError
from ..swarm.health import PeerHealth
from ..swarm.transport import Transport
from ..swarm.types import ModelRef, Span
from .piece_cache import PieceCache
from .piece_manifest import PieceManifest
from .piece_server import PieceShelf
from .piece_store import PieceStore
from .piece_swarm import FetchSettings, FetchStatistics, LastResort, Nodes, PieceSwarm
from .rate_cap import RateCap
from .stored_checkpoint import IncompleteError, StoredCheckpoint, open_stored
from .weights_root import agreed_root

Progress = Callable[[int, int, str], None]
"""``progress(done_bytes, total_bytes, label)``, in the event loop."""
_PROGRESS_S = 0.1
_AGREE_S = 0.5
"""Between looks for the first peer that shares the model: it may be hashing its files still."""
_MOST_ROUNDS = 16
"""Times that an opening may ask for more: headers, what they tell of, samples of the weights."""


class ModelFetch:
    """One model, fetched bit by bit: to look at it, then a span, later another span.

        async with ModelFetch(ref, nodes=..., transport=..., cache=...) as fetch:
            path = await fetch.fetch(None, client=False)      # enough to open and to look at
            path = await fetch.fetch(Span(0, 8), client=False)

    ``model.digest`` may be "" where only the name is known. ``root``: believed without asking anybody.
    ``share``: where to offer what is here while it is fetched, and until this object is closed.
    ``last_resort``: asked for pieces that no peer gives. ``on_remark(sentence)``: for people, in the event
    loop, when pieces on this disk were damaged.
    """

    def __init__(
        self,
        model: ModelRef,
        *,
        nodes: Nodes,
        transport: Transport,
        cache: PieceCache,
        root: str = "",
        share: PieceShelf | None = None,
        rate: RateCap | None = None,
        health: PeerHealth | None = None,
        settings: FetchSettings | None = None,
        last_resort: LastResort | None = None,
        on_progress: Progress | None = None,
        on_root: Callable[[str], None] | None = None,
        on_remark: Callable[[str], None] | None = None,
    ) -> None:
        self.model = model
        self.root = root
        self._nodes = nodes
        self._transport = transport
        self._cache = cache
        self._share = share
        self._rate = rate
        self._health = health or PeerHealth()
        self._settings = settings or FetchSettings()
        self._last_resort = last_resort
        self._on_progress = on_progress
        self._on_root = on_root
        self._on_remark = on_remark
        self._store: PieceStore | None = None
        self._fetched: dict[str, int] = {}
        self._banned: dict[str, str] = {}
        self._wasted = 0
        self._damaged: frozenset[int] = frozenset()
        self._remarked = 0

    async def __aenter__(self) -> ModelFetch:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """What was fetched stays in the cache, and is offered no longer. May be called again."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """As ``close``, from outside the event loop's tasks; blocks for a moment."""
        store, self._store = self._store, None
        if store is not None:
            if self._share is not None and self._share.get(self.root) is store:
                self._share.remove(self.root)
            store.close()

    def statistics(self) -> FetchStatistics:
        """Of everything fetched so far."""
        return FetchStatistics(dict(self._fetched), dict(self._banned), self._wasted)

    async def fetch(self, blocks: Span | None, *, client: bool) -> Path:
        """What ``open_checkpoint`` takes, with all that a node of ``blocks`` and a client need; with neither,
        all that every opening needs.

        Raises NetworkError where nobody gives it, ModelMismatchError where peers disagree about the files or
        these are of another model, CheckpointError, UsageError where they do not fit on the disk.
        """
        if (here := await asyncio.to_thread(self._cached, blocks, client)) is not None:
            self.root = here.manifest.root
            return self._keep(here).folder
        if not self.root:
            await self._agree()
        store = self._store
        if store is None and (found := await asyncio.to_thread(self._cache.find, self.root)) is not None:
            store = self._keep(found)
        manifest = None if store is None else store.manifest
        async with self._swarm(manifest) as swarm:
            try:
                if store is None:
                    self._tell(0, 0, f"Looking for the weights of {self.model.name}")
                    opened = await asyncio.to_thread(self._cache.open, await swarm.manifest(), self.model)
                    store = self._keep(opened)
                checkpoint = await self._open(swarm, store)
                try:
                    pieces = checkpoint.needed(blocks, client)
                finally:
                    checkpoint.close()
                await self._get(swarm, store, pieces)
            finally:
                self._count(swarm.statistics())
        return store.folder

    # Steps of fetch.

    def _cached(self, blocks: Span | None, client: bool) -> PieceStore | None:
        """The store in the cache that has all of it. Blocks."""
        for model in self._cache.models():
            if model.root != self.root if self.root else not self.model.digest:
                continue
            if self.model.digest and model.digest != self.model.digest:
                continue
            own = self._store is not None and self._store.folder == model.path
            store = self._store if own else self._cache.find(model.root)
            if store is not None and _has(store, self.model, blocks, client):
                return store
            self._damaged |= store.damaged if store is not None else frozenset()
            if store is not None and not own:
                store.close()
        return None

    def _keep(self, store: PieceStore) -> PieceStore:
        """Hold the store open, and offer it."""
        self._store = store
        if self._share is not None and self._share.get(self.root) is not store:
            self._share.put(store)
        if self._on_root is not None:
            self._on_root(self.root)
        return store

    async def _agree(self) -> None:
        """Find the root that those who share the model announce; wait for the first of them."""
        began = time.monotonic()
        while True:
            try:
                self.root = agreed_root(await self._nodes(), self.model)
            except ModelMismatchError:
                raise
            except NetworkError as error:
                if self._is_over(began):
                    raise error
            if self.root:
                return
            if self._is_over(began):
                raise NetworkError(
                    f"no peer shares the weights of {self.model.name}",
                    hint="Start a peer that has them with --share-weights, or give the path of a local copy.",
                )
            self._tell(0, 0, f"Waiting for a peer that shares {self.model.name}")
            await asyncio.sleep(min(self._settings.look_s, _AGREE_S))

    def _is_over(self, began: float) -> bool:
        wait = self._settings.wait_s
        return wait is not None and time.monotonic() - began > wait

    def _swarm(self, manifest: PieceManifest | None) -> PieceSwarm:
        return PieceSwarm(
            self.root,
            self._nodes,
            self._transport,
            manifest=manifest,
            serves=self._share is not None,
            rate=self._rate,
            health=self._health,
            settings=self._settings,
            last_resort=self._last_resort,
        )

    async def _open(self, swarm: PieceSwarm, store: PieceStore) -> StoredCheckpoint:
        """Fetch until the model opens; then it is known what else is needed."""
        for _ in range(_MOST_ROUNDS):
            try:
                checkpoint = await asyncio.to_thread(open_stored, store.folder)
                break
            except IncompleteError as incomplete:
                pieces = incomplete.pieces
            await self._get(swarm, store, pieces)
        else:
            raise ModelMismatchError(f"the weights of {self.model.name} cannot be opened piece by piece")
        if self.model.digest and checkpoint.ref.digest != self.model.digest:
            checkpoint.close()
            raise ModelMismatchError(
                f"what peers share as {self.model.name} is another model: {checkpoint.ref.digest[:12]}",
                hint="Whoever announced it is mistaken, or lies. Give the path of a local copy.",
            )
        return checkpoint

    async def _get(self, swarm: PieceSwarm, store: PieceStore, pieces: Iterable[int]) -> None:
        missing = await asyncio.to_thread(store.missing, pieces)
        self._remark(store)
        total = sum(map(store.manifest.size_of, missing))
        if not missing:
            return
        await asyncio.to_thread(self._cache.make_room, store, total)
        done, told_at = 0, 0.0

        def on_bytes(n: int) -> None:
            nonlocal done, told_at
            done += n
            now = time.monotonic()
            if done >= total or now - told_at > _PROGRESS_S:
                told_at = now
                self._tell(done, total, f"Fetching {self.model.name} from {swarm.source_names()}")

        self._tell(0, total, f"Fetching {self.model.name}")
        await swarm.get(missing, store, on_bytes)

    def _remark(self, store: PieceStore) -> None:
        """Say it once that some of the disk is not what it was."""
        damaged = self._damaged | store.damaged
        if self._on_remark is not None and len(damaged) > self._remarked:
            pieces = "1 piece" if len(damaged) == 1 else f"{len(damaged)} pieces"
            self._on_remark(f"{pieces} of {self.model.name} on this disk were damaged: fetching them again")
            self._remarked = len(damaged)
        self._damaged = damaged

    def _tell(self, done: int, total: int, label: str) -> None:
        if self._on_progress is not None:
            self._on_progress(done, total, label)

    def _count(self, statistics: FetchStatistics) -> None:
        for source, n in statistics.bytes_by_source.items():
            self._fetched[source] = self._fetched.get(source, 0) + n
        self._banned |= statistics.banned
        self._wasted += statistics.wasted_bytes


def _has(store: PieceStore, model: ModelRef, blocks: Span | None, client: bool) -> bool:
    try:
        with open_stored(store.folder, blocks, client) as checkpoint:
            return not model.digest or checkpoint.ref.digest == model.digest
    except IncompleteError:
        return False


async def fetch_model(
    model: ModelRef,
    *,
    blocks: Span | None,
    client: bool,
    nodes: Nodes,
    transport: Transport,
    cache: PieceCache,
    root: str = "",
    on_progress: Progress | None = None,
    on_remark: Callable[[str], None] | None = None,
    settings: FetchSettings | None = None,
    last_resort: LastResort | None = None,
) -> Path:
    """Once, for somebody who shares nothing: see ``ModelFetch``."""
    async with ModelFetch(
        model,
        nodes=nodes,
        transport=transport,
        cache=cache,
        root=root,
        on_progress=on_progress,
        on_remark=on_remark,
        settings=settings,
        last_resort=last_resort,
    ) as fetch:
        return await fetch.fetch(blocks, client=client)
