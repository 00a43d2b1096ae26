"""Serves pieces of the models that this process was asked to share, to every peer that may have them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from ...swarm.errors import CheckpointError, ErrorCode, NetworkError, RemoteProtocolError
from ...swarm.fairness.recent import RecentMap
from ...swarm.fairness.shares import Holder
from ...swarm.links.message_stream import MessageStream
from ...swarm.transport.address_groups import address_group
from ...swarm.transport.dial_guard import same_host
from ...swarm.transport.interface import Stream
from ..pieces.holder import PieceHolder
from .messages import (
    HOLDER_MAX_FRAME,
    MAX_HAVE,
    PIECE_MESSAGES,
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
from .sent_log import SentLog
from .upload_limits import MAX_PEERS, RateLimit, ServeLimits, Uploads

logger = logging.getLogger(__name__)

_READ_AHEAD = 2
"""This many pieces of one stream are in memory beside the one that is being sent."""


class SharedModels:
    """The models that are shared, by root. Nothing else can be asked for."""

    def __init__(self) -> None:
        self._holders: dict[str, PieceHolder] = {}

    def put(self, holder: PieceHolder) -> None:
        """Share ``holder`` in place of what was shared under its root before."""
        self._holders[holder.manifest.root] = holder

    def remove(self, root: str) -> None:
        self._holders.pop(root, None)

    def get(self, root: str) -> PieceHolder | None:
        return self._holders.get(root)

    @property
    def roots(self) -> frozenset[str]:
        return frozenset(self._holders)


class PieceServer:
    """``handle`` serves one stream of WEIGHTS_PROTOCOL. ``rate`` bounds what goes to all peers together.
    ``bytes_by_peer``: of pieces, sent since the start."""

    def __init__(
        self,
        shared_models: SharedModels,
        *,
        rate: RateLimit | None = None,
        limits: ServeLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shared_models = shared_models
        self._rate = rate or RateLimit()
        self._limits = limits or ServeLimits()
        self._clock = clock
        self._uploads = Uploads(self._limits)
        self._open: dict[MessageStream[PieceMessage], Holder] = {}  # the oldest first
        self._sent_logs: dict[str, SentLog] = {}
        # Of peers that serve what they get.
        self._addresses: RecentMap[str, tuple[str, ...]] = RecentMap(MAX_PEERS)
        self.bytes_by_peer: Counter[str] = Counter()

    async def handle(self, stream: Stream) -> None:
        """Raises nothing but cancellation: what a peer does wrong ends its stream."""
        connection: MessageStream[PieceMessage] = MessageStream(stream, PIECE_MESSAGES, HOLDER_MAX_FRAME)
        peer = stream.peer_id
        holder = Holder(peer, address_group(stream.remote_maddr))
        if (loser := self._uploads.loser(holder, self._clock())) is not None:
            theirs = next(each for each, whose in self._open.items() if whose == loser)
            theirs.close()
            self._leave(theirs)
        if problem := self._uploads.enter(holder, self._clock()):
            await connection.close_with(PieceError(ErrorCode.OVERLOADED, problem))
            return
        self._open[connection] = holder
        try:
            await self._serve(connection)
        except RemoteProtocolError as error:
            logger.debug("event=weights_protocol peer=%s error=%r", peer, error.message)
            await connection.close_with(PieceError(error.code, error.message))
        except NetworkError:
            pass  # it is gone
        except TimeoutError:
            logger.debug("event=weights_idle peer=%s", peer)
        finally:
            self._leave(connection)
            connection.close()

    def _leave(self, connection: MessageStream[PieceMessage]) -> None:
        """Its stream is over. Idempotent."""
        if (holder := self._open.pop(connection, None)) is not None:
            self._uploads.leave(holder)

    async def _serve(self, connection: MessageStream[PieceMessage]) -> None:
        async with asyncio.timeout(self._limits.hello_s):
            ask = await connection.receive()
        if not isinstance(ask, Ask):
            raise unexpected(ask, "ASK")
        holder = self.shared_models.get(ask.root.hex())
        if holder is None:
            await connection.close_with(PieceError(ErrorCode.UNSUPPORTED, "this model is not shared here"))
            return
        if ask.serves:
            self._addresses[connection.peer_id] = same_host(ask.maddrs, connection.remote_maddr)
        visit = _Visit(self, connection, holder, ask.serves)
        with visit.watching():
            await visit.send(Holds.of(holder.held()))
            tasks = [
                asyncio.create_task(visit.tell_news(), name="weights-news"),
                asyncio.create_task(visit.send_answers(), name="weights-answers"),
            ]
            try:
                await visit.take_requests()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                visit.forget_answers()

    def _sent_log(self, root: str) -> SentLog:
        for gone in self._sent_logs.keys() - self.shared_models.roots:
            del self._sent_logs[gone]
        return self._sent_logs.setdefault(root, SentLog())


class _Visit:
    """One stream, once it is known what it is about."""

    def __init__(
        self, server: PieceServer, connection: MessageStream[PieceMessage], holder: PieceHolder, serves: bool
    ) -> None:
        self._server = server
        self._connection = connection
        self._holder = holder
        self._serves = serves
        self._peer = connection.peer_id
        self._limits = server._limits
        self._news: set[int] = set()
        self._has_news = asyncio.Event()
        self._answers: asyncio.Queue[_Answer] = asyncio.Queue(_READ_AHEAD)
        self._refusals = 0
        self._manifests = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def came(piece: int) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the stream
                loop.call_soon_threadsafe(self._add_news, piece)

        end = self._holder.watch(came)
        try:
            yield
        finally:
            end()

    def _add_news(self, piece: int) -> None:
        self._news.add(piece)
        self._has_news.set()

    async def tell_news(self) -> None:
        """Send HAVE for new pieces; while the peer does not read, pieces gather in one set."""
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            while self._news:
                pieces = [self._news.pop() for _ in range(min(MAX_HAVE, len(self._news)))]
                try:
                    await self.send(Have(tuple(sorted(pieces))))
                except (NetworkError, TimeoutError):
                    return  # ``answer`` finds out, too

    async def take_requests(self) -> None:
        """Each in turn. While answers are not sent, requests are not read."""
        server = self._server
        while True:
            async with asyncio.timeout(self._limits.idle_s):
                request = await self._connection.receive()
            if server.shared_models.get(self._holder.manifest.root) is not self._holder:
                await self._connection.close_with(
                    PieceError(ErrorCode.UNSUPPORTED, "this model is not shared here any more")
                )
                return
            match request:
                case GetManifest():
                    answer = self._manifest()
                case Get():
                    answer = self._piece(request)
                case _:
                    raise unexpected(request, "GET")
            await self._answers.put(answer)

    async def send_answers(self) -> None:
        """Send answers in the order of the requests; the next pieces are read from the disk meanwhile."""
        server = self._server
        while True:
            answer = await self._answers.get()
            message = answer.message
            if isinstance(message, asyncio.Future):
                message = await message
            size = len(message.payload) if isinstance(message, Piece | Manifest) else 0
            if size and (delay := server._rate.delay(size, server._clock())) > 0:
                await asyncio.sleep(delay)
            try:
                await self.send(message)
            except (NetworkError, TimeoutError):
                answer.failed()
                self._connection.close()  # ``take_requests`` finds out
                return
            if isinstance(message, Piece):
                server.bytes_by_peer[self._peer] += size
            elif not isinstance(message, Manifest):
                answer.failed()

    def forget_answers(self) -> None:
        """Drop the answers that will not be sent."""
        while not self._answers.empty():
            self._answers.get_nowait().failed()

    async def send(self, message: PieceMessage) -> None:
        async with asyncio.timeout(self._limits.send_s):
            await self._connection.send(message)

    def _manifest(self) -> _Answer:
        self._manifests += 1
        if self._manifests > self._limits.manifests:
            raise RemoteProtocolError("the manifest was asked for too often")
        return _Answer(Manifest(self._holder.manifest.encoded))

    def _piece(self, request: Get) -> _Answer:
        server, holder, piece, now = self._server, self._holder, request.piece, self._server._clock()
        if not holder.has(piece):
            return self._refusal(piece, ErrorCode.UNSUPPORTED, "this piece is not here")
        manifest = holder.manifest
        sent_log = server._sent_log(manifest.root) if holder.held().all() else None
        if sent_log is not None and not request.insist:
            other = sent_log.elsewhere(piece, self._peer, now)
            if other is not None and other in server._addresses:
                return _Answer(Elsewhere(piece, other, server._addresses[other]))
        if not server._uploads.take(self._peer, manifest.size_of(piece), manifest.total_bytes, now):
            return self._refusal(piece, ErrorCode.OVERLOADED, "you took the model several times this hour")
        failed: Callable[[], None] = _nothing
        if sent_log is not None and self._serves:
            sent_log.sent(piece, self._peer, now)
            failed = partial(sent_log.failed, piece, self._peer)
        loop = asyncio.get_running_loop()
        return _Answer(loop.run_in_executor(None, _read, holder, piece), failed)

    def _refusal(self, piece: int, code: ErrorCode, message: str) -> _Answer:
        self._refusals += 1
        if self._refusals > self._limits.refusals:
            raise RemoteProtocolError("too many pieces were asked for that are not here")
        return _Answer(PieceError(code, message, piece))


def _nothing() -> None: ...


@dataclass(frozen=True, slots=True)
class _Answer:
    """``message``, or what is being read. ``failed`` is called when no piece is sent after all."""

    message: PieceMessage | asyncio.Future[PieceMessage]
    failed: Callable[[], None] = _nothing


def _read(holder: PieceHolder, piece: int) -> PieceMessage:
    """Blocks."""
    try:
        return Piece(piece, holder.read(piece))
    except CheckpointError as error:
        logger.warning("event=weights_unreadable piece=%d error=%r", piece, error.message)
        return PieceError(ErrorCode.INTERNAL, "this piece cannot be read any more", piece)
