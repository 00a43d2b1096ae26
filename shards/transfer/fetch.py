"""Fetches what a node or a client needs of a model from peers that have it, into the piece cache."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ...swarm.errors import (
    CheckpointError,
    LocalNetworkError,
    ModelMismatchError,
    NetworkError,
    SwarmError,
    UsageError,
)
from ...swarm.peer_health import PeerHealth
from ...swarm.transport.interface import Transport
from ...swarm.types import ModelRef, Span
from ..checkpoint.stored import (
    ForgedError,
    IncompleteError,
    StoredCheckpoint,
    check_whole_files,
    counted,
    open_stored,
)
from ..pieces.cache import PieceCache
from ..pieces.manifest import PieceManifest, piece_size_for
from ..pieces.store import PieceStore
from .downloader import Downloader, FetchSettings, FetchStatistics, LastResort, Nodes
from .server import SharedModels
from .upload_limits import RateLimit
from .weights_root import LikelyRoots, likely_roots

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""``progress(done_bytes, total_bytes, label)``, in the event loop."""
_PROGRESS_S = 0.1
_AGREE_S = 0.5
"""Seconds between looks for the first peer that shares the model: it may still be hashing its files."""
_GIVEN_S = 4.0
"""Seconds to wait for a peer that has what can be done without."""
_MOST_ROUNDS = 16
"""An opening may ask this many times for more: for headers, and for what they name."""

_RIVAL_S = 15.0
"""Seconds to wait for a root that no source gives, while peers announce another."""
_MOST_PROOF = 4_000_000_000
"""A model of up to this many bytes is fetched whole to learn which of several roots is false: half a minute
on a LAN."""
_MOST_SET_ASIDE = 8
"""After this many roots that turned out to be wrong no further one is tried: each cost a manifest, or
more."""


class ModelFetch:
    """One model, fetched bit by bit: to look at it, then a span, later another span.

        async with ModelFetch(ref, nodes=..., transport=..., cache=...) as fetch:
            path = await fetch.fetch(None, client=False)      # enough to open and to look at
            path = await fetch.fetch(Span(0, 8), client=False)

    ``model.digest`` may be "" if only the name and ``root`` are known. ``root``: used without asking peers. A
    root of the peers' that turns out to be of another model, or of files that are not the model's, is set
    aside and not tried again. ``share``: where to offer what is here while it is fetched, and until this
    object is closed. ``last_resort``: asked for pieces that no peer gives. ``on_root(root)``: pieces are kept
    under this root from here on; "": under none. ``on_remark(sentence)``: for people, in the event loop, when
    pieces on this disk were damaged.
    """

    def __init__(
        self,
        model: ModelRef,
        *,
        nodes: Nodes,
        transport: Transport,
        cache: PieceCache,
        root: str = "",
        share: SharedModels | None = None,
        rate: RateLimit | None = None,
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
        self._given = bool(root)
        self._set_aside: set[str] = set()  # roots
        self._unanswered: set[str] = set()  # roots under which no source gave anything
        self._has_rivals = False  # the root in use: others are announced
        self._in_doubt = False  # and it may be the one that lies
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
        """Stop offering what was fetched; it stays in the cache. Idempotent."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """As ``close``, from outside the event loop's tasks; blocks for a moment."""
        store, self._store = self._store, None
        if store is not None:
            if self._share is not None and self._share.get(self.root) is store:
                self._share.remove(self.root)
            store.close()

    def statistics(self) -> FetchStatistics:
        """The statistics of everything fetched so far."""
        return FetchStatistics(dict(self._fetched), dict(self._banned), self._wasted)

    async def fetch(self, blocks: Span | None, *, client: bool, next_bytes: int = 0) -> Path:
        """What ``open_checkpoint`` takes, with all that a node of ``blocks`` and a client need; with neither,
        all that every opening needs. ``next_bytes``: where something has to be fetched, the first block that
        guesses further tokens is, too, if it is at most of this size and peers soon give it.

        If peers announce several roots, the next is tried when one is wrong, or when no source gives anything
        under it. Raises NetworkError if no source gives the model, ModelMismatchError if all announced roots
        are of another model, CheckpointError, and UsageError if the pieces do not fit on the disk.
        """
        while True:
            try:
                return await self._fetch(blocks, client, next_bytes)
            except (ForgedError, ModelMismatchError) as error:
                if self._given or not self.root or len(self._set_aside) >= _MOST_SET_ASIDE:
                    raise
                await self._give_up_root(error)
            except LocalNetworkError:
                raise
            except NetworkError as error:
                if self._given or not self._has_rivals:
                    if self._store is None and not self._given:
                        self.root = ""  # the next question may find another
                        self._unanswered.clear()
                    raise
                await self._give_up_root(error)

    # Steps of fetch.

    async def _fetch(self, blocks: Span | None, client: bool, next_bytes: int) -> Path:
        if (here := await asyncio.to_thread(self._cached, blocks, client)) is not None:
            self.root = here.manifest.root
            return self._keep(here).folder
        if not self.root:
            await self._agree()
        store = self._store
        if store is None and (found := await asyncio.to_thread(self._cache.find, self.root)) is not None:
            store = self._keep(found)
        manifest = None if store is None else store.manifest
        if manifest is not None:
            self._check(manifest)
        async with self._swarm(manifest) as swarm:
            try:
                if store is None:
                    self._tell(0, 0, f"Looking for the weights of {self.model.name}")
                    manifest = await swarm.manifest()
                    self._check(manifest)
                    opened = await asyncio.to_thread(
                        self._cache.open, manifest, replace(self.model, digest=manifest.identity.digest)
                    )
                    store = self._keep(opened)
                checkpoint = await self._open(swarm, store)
                try:
                    pieces = self._with_proof(store, checkpoint.needed(blocks, client))
                    more = checkpoint.next_pieces(next_bytes)
                finally:
                    checkpoint.close()
                await self._get(swarm, store, pieces)
                await self._get_if_given(swarm, store, more)
            finally:
                self._count(swarm.statistics())
        return store.folder

    def _check(self, manifest: PieceManifest) -> None:
        """Before anything else is fetched, check that these are the files of the model, cut in the usual way.
        Other pieces of the same files have another root, so peers that have it would be refused."""
        digest = manifest.identity.digest
        if self.model.digest not in ("", digest):
            raise ModelMismatchError(
                f"what peers share as {self.model.name} under {self.root[:12]} is another model: "
                f"its digest is {digest[:12]}, not {self.model.digest[:12]}",
                hint="The peer that announced it is wrong, or lies. Give the path of a local copy.",
            )
        if manifest.piece_size != (usual := piece_size_for(manifest.total_bytes)):
            raise ModelMismatchError(
                f"what peers share as {self.model.name} under {self.root[:12]} is cut into pieces of "
                f"{manifest.piece_size} bytes, not {usual}",
                hint="The peer that announced it is wrong, or lies. Give the path of a local copy.",
            )

    def _with_proof(self, store: PieceStore, pieces: list[int]) -> list[int]:
        """If it is in doubt which of several roots is false: all pieces, as the digest proves whole files,
        and a root that is wrong in one file is refused by all peers that have the right one. Of a model of
        more than ``_MOST_PROOF`` bytes only ``pieces``."""
        manifest = store.manifest
        if not self._in_doubt or manifest.total_bytes > _MOST_PROOF:
            return pieces
        return list(range(manifest.n_pieces))

    async def _give_up_root(self, error: SwarmError) -> None:
        """Never use a root again that was wrong, and keep nothing that came under it; skip one that no source
        gives. Raises ``error`` if peers announce no other."""
        logger.warning(
            "event=weights_set_aside root=%s peers=%s error=%r",
            self.root,
            sorted(self._fetched),
            error.message,
        )
        folder = None if self._store is None else self._store.folder
        await self.close()
        if folder is not None and isinstance(error, ForgedError):  # else it is of another model, and right
            await asyncio.to_thread(self._cache.discard, folder)
        (self._unanswered if isinstance(error, NetworkError) else self._set_aside).add(self.root)
        self.root = ""
        if self._on_root is not None:
            self._on_root("")
        try:
            others = (await self._believable()).roots
        except NetworkError:
            others = []
        if not others and self._unanswered and self._settings.wait_s is None:
            self._unanswered.clear()  # from the first again: a source may be back
        elif not others:
            self._unanswered.clear()
            raise error

    async def _believable(self) -> LikelyRoots:
        """The roots that have not failed."""
        failed = self._set_aside | self._unanswered
        nodes = [node for node in await self._nodes() if node.weights_root not in failed]
        return await likely_roots(nodes, self.model, self._transport)

    def _cached(self, blocks: Span | None, client: bool) -> PieceStore | None:
        """The store in the cache that has all of it. Blocks."""
        for model in self._cache.models():
            if model.root != self.root if self.root else not self.model.digest:
                continue
            if self.model.digest and model.digest != self.model.digest:
                continue
            own = self._store is not None and self._store.folder == model.path
            store = self._store if own else self._cache.find(model.root)
            if store is not None and _has(store, blocks, client):
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
        """Find the likeliest root under which peers share the model; wait for the first of them."""
        began = time.monotonic()
        while True:
            try:
                found = await self._believable()
                self.root, self._has_rivals = (found.roots or [""])[0], len(found.roots) > 1
                self._in_doubt = found.in_doubt
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

    def _swarm(self, manifest: PieceManifest | None) -> Downloader:
        settings = self._settings
        if self._has_rivals:
            settings = replace(settings, wait_s=min(_RIVAL_S, settings.wait_s or _RIVAL_S))
        return Downloader(
            self.root,
            self._nodes,
            self._transport,
            manifest=manifest,
            serves=self._share is not None,
            rate=self._rate,
            health=self._health,
            settings=settings,
            last_resort=self._last_resort,
        )

    async def _open(self, swarm: Downloader, store: PieceStore) -> StoredCheckpoint:
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
        return checkpoint

    async def _get(
        self, swarm: Downloader, store: PieceStore, pieces: Iterable[int], *, wait_s: float | None = None
    ) -> None:
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
        await swarm.get(missing, store, on_bytes, wait_s=wait_s)
        with suppress(IncompleteError):  # the disk has lost some again: the next opening asks for it
            await asyncio.to_thread(check_whole_files, store)

    async def _get_if_given(self, swarm: Downloader, store: PieceStore, pieces: Iterable[int]) -> None:
        """The same with what can be done without."""
        try:
            await self._get(swarm, store, pieces, wait_s=_GIVEN_S)
        except (NetworkError, UsageError, CheckpointError) as error:
            logger.info("event=next_block_not_fetched model=%s error=%r", self.model.name, error.message)

    def _remark(self, store: PieceStore) -> None:
        """Say once that some pieces on the disk were damaged."""
        damaged = self._damaged | store.damaged
        if self._on_remark is not None and len(damaged) > self._remarked:
            pieces = f"{counted(len(damaged))} of {self.model.name}"
            self._on_remark(f"Damaged on this disk: {pieces}; fetched again before it is used")
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


def _has(store: PieceStore, blocks: Span | None, client: bool) -> bool:
    try:
        open_stored(store.folder, blocks, client).close()
        return True
    except (IncompleteError, ForgedError):
        return False


async def fetch_model(
    model: ModelRef,
    *,
    blocks: Span | None,
    client: bool,
    next_bytes: int = 0,
    nodes: Nodes,
    transport: Transport,
    cache: PieceCache,
    root: str = "",
    on_progress: Progress | None = None,
    on_remark: Callable[[str], None] | None = None,
    settings: FetchSettings | None = None,
    last_resort: LastResort | None = None,
) -> Path:
    """One fetch for a process that shares nothing: see ``ModelFetch``."""
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
        return await fetch.fetch(blocks, client=client, next_bytes=next_bytes)
