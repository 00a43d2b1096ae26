"""Gets pieces of one model from many sources at once: connects, asks, checks, bans.

``schedule`` decides what to ask which source for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...swarm.errors import (
    CheckpointError,
    NetworkError,
    PeerError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
)
from ...swarm.faults import Faults
from ...swarm.links.message_stream import MessageStream
from ...swarm.peer_health import PeerHealth
from ...swarm.transport.dial_guard import choose, for_client, reaches
from ...swarm.transport.interface import Transport
from ...swarm.types import NodeInfo, NodeState, short_peer_id
from ..pieces.manifest import MAX_PIECES, PieceManifest
from ..pieces.store import PieceStore
from .messages import (
    ASKER_MAX_FRAME,
    PIECE_MESSAGES,
    WEIGHTS_PROTOCOL,
    Ask,
    Elsewhere,
    Get,
    GetManifest,
    Have,
    Holds,
    Manifest,
    Piece,
    PieceError,
    PieceMessage,
    unexpected,
)
from .schedule import PieceSchedule, Request
from .upload_limits import RateLimit
from .weights_root import holders

logger = logging.getLogger(__name__)

Nodes = Callable[[], Awaitable[Sequence[NodeInfo]]]
"""The nodes that serve the model, fresh from the directory. May raise NetworkError."""
LastResort = Callable[[PieceManifest, int], bytes]
"""A piece from outside the swarm. Blocks; raises NetworkError, CheckpointError."""
LAST_RESORT = "the hub"
"""Its name among the sources; no peer id has a space."""
_LAST_RESORT_READS = 4
_NOT_YET_S = 1.0
"""A peer that shares nothing is left alone for this many seconds."""
_AGAIN_S = 0.1
"""Seconds between dials of such a peer while others say that it was sent pieces, which are waited for."""
_MAX_LOST_REFERRALS = 8
"""After this many peers that one source named and that did not answer, its further names are ignored."""
_WRITES = 4
"""This many pieces of one source are checked and written at once, while it sends the next."""


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """``sources`` at once. In seconds: ``wait_s`` without a source for what is missing, None: for ever;
    ``ban_s`` for a source that sent wrong bytes; ``look_s`` between looks into the directory; ``dial_s`` for
    a stream; ``answer_s`` without a byte of a first answer, or of a manifest; ``hedge_s`` until another
    source is also asked for the manifest."""

    sources: int = 12
    wait_s: float | None = 60.0
    ban_s: float = 3600.0
    look_s: float = 2.0
    dial_s: float = 6.0
    answer_s: float = 3.0
    hedge_s: float = 1.0
    tick_s: float = 0.25


@dataclass(frozen=True, slots=True)
class FetchStatistics:
    """``bytes_by_source``: of right pieces, by peer id (or "hub"). ``banned``: why, by peer id."""

    bytes_by_source: dict[str, int]
    banned: dict[str, str]
    wasted_bytes: int


class Downloader:
    """The sources of one root. ``async with`` it; then ``manifest`` and ``get`` as often as wanted.

    ``serves``: others may also ask us for what we get. ``health``: remembers bans beyond this object.
    """

    def __init__(
        self,
        root: str,
        nodes: Nodes,
        transport: Transport,
        *,
        manifest: PieceManifest | None = None,
        serves: bool = False,
        rate: RateLimit | None = None,
        health: PeerHealth | None = None,
        settings: FetchSettings | None = None,
        last_resort: LastResort | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root
        self._nodes = nodes
        self._transport = transport
        self._serves = serves
        self._rate = rate or RateLimit()
        self._health = health or PeerHealth()
        self._settings = settings or FetchSettings()
        self._last_resort = last_resort
        self._clock = clock
        self._manifest = manifest
        self._faults = Faults("fetching weights")
        self._manifest_came = asyncio.Event()
        self._manifest_asked_at = float("-inf")  # of some source; others wait a moment for it
        self._schedule: PieceSchedule | None = None
        self._store: PieceStore | None = None
        self._links: dict[str, MessageStream[PieceMessage]] = {}
        self._visits: dict[str, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._reads: asyncio.Queue[Request] = asyncio.Queue()
        self._on_bytes: Callable[[int], None] | None = None
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None
        self._bytes: Counter[str] = Counter()
        self._wasted = 0
        self._banned: dict[str, str] = {}
        self._refused_at: dict[str, float] = {}
        self._announced: dict[str, tuple[str, ...]] = {}  # addresses of nodes, by their own records
        self._named_by: dict[str, str] = {}  # peers that were met at a source's word
        self._lost_referrals: Counter[str] = Counter()

    async def __aenter__(self) -> Downloader:
        self._looking = self._spawn(self._look(), "weights-look")
        if self._last_resort is not None:
            self._readers = [
                self._spawn(self._read_last_resort(), "weights-hub") for _ in range(_LAST_RESORT_READS)
            ]
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._readers, *self._visits.values()]
        if self._looking is not None:
            tasks.append(self._looking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def statistics(self) -> FetchStatistics:
        return FetchStatistics(dict(self._bytes), dict(self._banned), self._wasted)

    async def manifest(self) -> PieceManifest:
        """Raises NetworkError if no source gives it within ``wait_s``."""
        began = self._clock()
        while self._manifest is None:
            self._check(began)
            await self._tick()
        return self._manifest

    async def get(
        self,
        pieces: Iterable[int],
        store: PieceStore,
        on_bytes: Callable[[int], None] | None = None,
        *,
        wait_s: float | None = None,
    ) -> None:
        """Fetch those of ``pieces`` that ``store`` does not have. ``on_bytes(n)`` is called for each piece
        that comes.

        Raises NetworkError if no source gives one for ``wait_s`` (None: as the settings say), CheckpointError
        if the disk fails.
        """
        missing = await asyncio.to_thread(store.missing, pieces)
        if not missing:
            return
        store.expect(missing)
        self._store, self._on_bytes = store, on_bytes
        schedule = self._schedule_of(store.manifest)
        schedule.want(missing)
        stuck_since = self._clock()
        while schedule.n_wanted:
            now = self._clock()
            if schedule.can_come():
                stuck_since = now
            self._check(stuck_since, wait_s)
            for peer, link in self._links.items():
                schedule.flowed(peer, link.bytes_received, now)
            for peer in schedule.dead(now):
                self._end(peer, "it was asked for pieces and sent none")
            for request in schedule.requests(now):
                await self._ask(request)
            await self._tick()
        await asyncio.to_thread(store.flush)

    def source_names(self) -> str:
        """The sources that send now, in words for people."""
        names = [peer if peer == LAST_RESORT else f"{short_peer_id(peer)}" for peer in sorted(self._bytes)]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    # Waiting.

    def _check(self, since: float, wait_s: float | None = None) -> None:
        """Raise an error that has come meanwhile."""
        if self._failure is not None:
            raise self._failure
        wait = self._settings.wait_s if wait_s is None else wait_s
        if wait is None or self._clock() - since <= wait:
            return
        banned = "".join(
            f"; {short_peer_id(peer)} {reason}" for peer, reason in list(self._banned.items())[:3]
        )
        raise NetworkError(
            f"no peer gave what is missing of the weights for {wait:.0f} s{banned}",
            hint="Start a peer that has the model with --share-weights, or give the path of a local copy.",
        )

    async def _tick(self) -> None:
        try:
            async with asyncio.timeout(self._settings.tick_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
        self._wake.set()

    # Sources.

    async def _look(self) -> None:
        """Find sources in the directory, for as long as this object lives."""
        while True:
            try:
                nodes = await self._nodes()
            except SwarmError as error:
                logger.debug("event=weights_directory error=%r", error.message)
                nodes = ()
            else:
                self._announced = {node.peer_id: node.dial_maddrs for node in nodes}
            found = sorted(
                holders(nodes, self.root), key=lambda n: (n.state is not NodeState.ONLINE, n.peer_id)
            )
            if len(self._links) >= self._settings.sources and not self._can_come():
                self._links[next(iter(self._links))].close()  # room for one that has more
            self._make_room({node.peer_id for node in found})
            for node in found:
                self._meet(node.peer_id, node.dial_maddrs)
            await asyncio.sleep(self._settings.look_s)

    def _make_room(self, found: set[str]) -> None:
        """Give up sources that send nothing where others could have their places."""
        waiting = len(found - self._visits.keys())
        free = self._settings.sources - sum(not visit.done() for visit in self._visits.values())
        if self._schedule is not None and waiting > free:
            for peer in self._schedule.stalled(self._clock())[: waiting - free]:
                self._end(peer, "it was asked for pieces and sends none, while other sources wait")

    def _can_come(self) -> bool:
        return self._schedule is not None and self._schedule.can_come()

    def _meet(self, peer: str, maddrs: Sequence[str], *, named: bool = False) -> bool:
        """Connect to a source, unless it is banned or there are enough of them. ``named``: another says that
        it has pieces by now, though it may have said a moment ago that it shares nothing."""
        now = self._clock()
        if peer == self._transport.peer_id or self._health.is_banned(peer, now):
            return False
        refused_s = now - self._refused_at.get(peer, float("-inf"))
        if refused_s < _NOT_YET_S and not named:
            return False
        if peer in self._visits and not self._visits[peer].done():
            return True
        for gone in [known for known, task in self._visits.items() if task.done()]:
            del self._visits[gone]
        if len(self._visits) >= self._settings.sources:
            return False
        after_s = max(0.0, _AGAIN_S - refused_s)
        self._visits[peer] = self._spawn(self._visit(peer, maddrs, after_s), "weights-source")
        return True

    def _meet_named(self, peer: str, maddrs: Sequence[str], source: str) -> bool:
        """Connect to a peer that another source has named, which may be any address."""
        if self._lost_referrals[source] >= _MAX_LOST_REFERRALS:
            return False
        maddrs = self._announced.get(peer, maddrs)
        if not self._meet(peer, maddrs, named=True):
            return False
        if peer not in self._links:
            self._named_by[peer] = source
        return True

    async def _visit(self, peer: str, maddrs: Sequence[str], after_s: float) -> None:
        """One source, from dial to end. Its errors end only itself."""
        try:
            await asyncio.sleep(after_s)
            announced = peer in self._announced
            own = () if announced else await self._transport.maddrs()
            stream = await self._transport.open_stream(
                peer,
                WEIGHTS_PROTOCOL,
                for_client(maddrs) if announced else choose(maddrs, reaches(own)),
                timeout=self._settings.dial_s,
                lazy=True,
            )
            self._named_by.pop(peer, None)
            link: MessageStream[PieceMessage] = MessageStream(stream, PIECE_MESSAGES, ASKER_MAX_FRAME)
            try:
                await self._greet(peer, link)
                await self._follow(peer, link)
            finally:
                link.close()
        except RemoteProtocolError as error:
            self._ban(peer, error.message)
        except PeerError as error:  # it may be about to share: those that begin with nothing do
            logger.debug("event=weights_source_refuses peer=%s error=%r", peer, error.message)
            self._refused_at[peer] = self._clock()
        except (NetworkError, TimeoutError) as error:
            logger.debug("event=weights_source_lost peer=%s error=%r", peer, str(error))
            self._health.failed(peer, self._clock(), str(error))
            if (source := self._named_by.pop(peer, None)) is not None:
                self._lost_referrals[source] += 1
        except (OSError, CheckpointError):
            raise  # of this machine's own disk
        except Exception as fault:  # noqa: BLE001 - others have the weights too
            self._faults.note(fault, peer)
            self._ban(peer, f"its answers caused a fault of this program: {fault!r:.100}")
        finally:
            self._links.pop(peer, None)
            if self._schedule is not None:
                self._schedule.remove(peer)
                self._schedule.unreachable(peer)

    async def _follow(self, peer: str, link: MessageStream[PieceMessage]) -> None:
        """Take what the source says, until it ends. Pieces are checked and written while the next come."""
        room = asyncio.Semaphore(_WRITES)
        ended: NetworkError | None = None
        try:
            async with asyncio.TaskGroup() as writing:
                while ended is None:
                    try:
                        message = await link.receive()
                    except NetworkError as error:
                        ended = error  # what came before counts
                        continue
                    self._take(peer, message)
                    if isinstance(message, Piece):
                        await room.acquire()
                        writing.create_task(self._keep(peer, message.piece, message.payload, room))
        except BaseExceptionGroup as group:  # the first that failed has cancelled the rest
            raise group.exceptions[0] from None
        if ended is not None:
            raise ended

    async def _greet(self, peer: str, link: MessageStream[PieceMessage]) -> None:
        maddrs = await self._transport.maddrs() if self._serves else ()
        await link.send(Ask(bytes.fromhex(self.root), self._serves, tuple(maddrs[:12])))
        holds = await link.receive_within(self._settings.answer_s)
        if isinstance(holds, PieceError):
            raise _refusal(peer, holds)
        if not isinstance(holds, Holds):
            raise unexpected(holds, "HOLDS")
        came = await self._learn_manifest(peer, link)
        if self._manifest is None:
            raise AssertionError("a source that was asked has told no manifest")
        if holds.pieces != self._manifest.n_pieces:
            raise RemoteProtocolError(f"HOLDS: {holds.pieces} pieces, the manifest has another number")
        schedule = self._schedule_of(self._manifest)
        self._links[peer] = link
        schedule.add(peer, holds.held(), self._clock())
        if came:
            self._take(peer, Have(tuple(came)))
        self._wake.set()

    async def _learn_manifest(self, peer: str, link: MessageStream[PieceMessage]) -> list[int]:
        """The manifest, from this source or, within ``hedge_s``, from one that was asked before; the pieces
        that the source said to have meanwhile."""
        settings = self._settings
        while self._manifest is None:
            left = self._manifest_asked_at + settings.hedge_s - self._clock()
            if left <= 0:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._manifest_came.wait()
        came: list[int] = []
        if self._manifest is not None:
            return came
        self._manifest_asked_at = self._clock()
        await link.send(GetManifest())
        while isinstance(answer := await link.receive_within(settings.answer_s), Have):
            came += answer.pieces
            if len(came) > MAX_PIECES:
                raise RemoteProtocolError("HAVE: more pieces than a model can have, and no MANIFEST")
        if isinstance(answer, PieceError):
            raise _refusal(peer, answer)
        if not isinstance(answer, Manifest):
            raise unexpected(answer, "MANIFEST")
        if self._manifest is None:
            self._manifest = PieceManifest.parse(answer.payload, self.root)
            self._manifest_came.set()
        return came

    def _take(self, peer: str, message: PieceMessage) -> None:
        """Check and note it; the bytes of a piece are for ``_keep``."""
        if peer not in self._links:
            raise StreamClosedError(f"{short_peer_id(peer)} was given up")
        schedule, now = self._schedule_of(self._manifest), self._clock()
        match message:
            case Have():
                if self._manifest is None or max(message.pieces) >= self._manifest.n_pieces:
                    raise RemoteProtocolError("HAVE: a piece that the model does not have")
                schedule.has(peer, message.pieces, now)
            case Piece() | Elsewhere() if not schedule.was_asked(peer, message.piece):
                raise RemoteProtocolError(f"piece {message.piece} came without a request")
            case Piece():
                pass
            case Elsewhere():
                other = message.peer_id
                schedule.elsewhere(peer, message.piece, other, now)
                if not self._meet_named(other, message.maddrs, peer):
                    schedule.unreachable(other)
            case PieceError():
                if message.piece is None:
                    raise _refusal(peer, message)
                schedule.refused(peer, message.piece, now)
            case _:
                raise unexpected(message, "PIECE")
        self._wake.set()

    async def _keep(
        self, peer: str, piece: int, data: bytes | bytearray | memoryview, room: asyncio.Semaphore
    ) -> None:
        """Check the piece and write it, before any peer is told that it is here."""
        try:
            schedule, store = self._schedule_of(self._manifest), self._store
            if store is None or not schedule.is_wanted(piece):  # two were asked, and the other was faster
                schedule.got(peer, piece, self._clock())
                self._wasted += len(data)
                return
            if not await asyncio.to_thread(store.add, piece, data):
                raise RemoteProtocolError(f"sent wrong bytes as piece {piece}")
            schedule.got(peer, piece, self._clock())
            self._bytes[peer] += len(data)
            if self._on_bytes is not None:
                self._on_bytes(len(data))
            if (delay := self._rate.delay(len(data), self._clock())) > 0:
                await asyncio.sleep(delay)
        finally:
            room.release()
            self._wake.set()

    async def _ask(self, request: Request) -> None:
        if request.peer == LAST_RESORT:
            self._reads.put_nowait(request)
            return
        link = self._links.get(request.peer)
        if link is None:
            return  # it has just gone: the schedule hears of it
        try:
            await link.send(Get(request.piece, request.insist))
        except NetworkError:
            link.close()  # its reader cleans up

    async def _read_last_resort(self) -> None:
        """Answers requests from outside the swarm if all other sources fail."""
        read, room = self._last_resort, asyncio.Semaphore()
        while read is not None:
            request = await self._reads.get()
            manifest = await self.manifest()
            try:
                data = await asyncio.to_thread(read, manifest, request.piece)
                await room.acquire()
                await self._keep(LAST_RESORT, request.piece, data, room)
            except (NetworkError, CheckpointError, RemoteProtocolError) as error:
                self._banned[LAST_RESORT] = str(error)
                self._schedule_of(manifest).remove(LAST_RESORT)
                return

    def _schedule_of(self, manifest: PieceManifest | None) -> PieceSchedule:
        if self._schedule is None:
            if manifest is None:
                raise RemoteProtocolError("pieces came before their manifest")
            self._manifest = manifest
            schedule = PieceSchedule(manifest.n_pieces, manifest.piece_size, self._transport.peer_id)
            if self._last_resort is not None:
                schedule.add(
                    LAST_RESORT, np.ones(manifest.n_pieces, dtype=bool), self._clock(), last_resort=True
                )
            self._schedule = schedule
        return self._schedule

    def _ban(self, peer: str, reason: str) -> None:
        logger.warning("event=weights_source_banned peer=%s reason=%r", peer, reason)
        self._banned[peer] = reason
        self._health.ban(peer, self._clock(), self._settings.ban_s, reason)

    def _end(self, peer: str, reason: str) -> None:
        """Give up a source that does not answer."""
        self._health.failed(peer, self._clock(), reason)
        if (link := self._links.pop(peer, None)) is not None:
            link.close()
        if self._schedule is not None:
            self._schedule.remove(peer)


def _refusal(peer: str, error: PieceError) -> PeerError:
    return PeerError(
        f"{short_peer_id(peer)} shares nothing: {error.message}", code=error.code, retriable=False
    )
