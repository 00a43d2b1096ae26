"""One session on every hop of a route: hidden states in at block 0, hidden states out after the last block.

Hops pass activations on to each other (a chained edge); where two cannot, the client carries them (a relayed
edge), as they came: both sides of an edge speak one codec. A run of chained hops is a segment. A short step,
of one token or of a draft to verify, is one write and one read a segment, in the caller's task. A prefill
goes through in chunks, so that all hops work at the same time.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from ...swarm.codecs import activations
from ...swarm.errors import (
    BrokenError,
    EdgeFailedError,
    HopFailedError,
    LocalNetworkError,
    PeerTimeoutError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
)
from ...swarm.links.pool import LinkPool
from ...swarm.protocol.messages import Downstream, Want
from ...swarm.protocol.wire import Payload
from ...swarm.routing.prediction import chunk_tokens
from ...swarm.runtime.tasks import all_of
from ...swarm.types import Hop, NodeInfo, Route
from ..routing.prefix import HopPlace, PageNames, PrefixKey, page_names
from .diagnosis import diagnose
from .hop import HopClient, Seat, SessionSettings
from .row_watch import RowWatch
from .rows import Rows
from .segment import Patient, Segment

SHORT_TOKENS = 33
"""A step of so many tokens goes through in one piece: one token and the longest draft behind it."""
CHUNKS_AHEAD = 4
"""Chunks that may wait between two segments."""

_Chunk = tuple[Payload, int, int]  # payload, tokens, position


class EdgeBook(Protocol):
    """Who can reach whom: a part of ``router.Router``."""

    def may_chain(self, a: str, b: str) -> bool: ...

    def edge_failed(self, a: str, b: str) -> None: ...

    def edge_worked(self, a: str, b: str, rtt_s: float | None) -> None: ...


class NoChains:
    """An EdgeBook for clients that carry everything themselves."""

    def may_chain(self, a: str, b: str) -> bool:
        return False

    def edge_failed(self, a: str, b: str) -> None:
        pass

    def edge_worked(self, a: str, b: str, rtt_s: float | None) -> None:
        pass


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """What a route's session is opened with. ``wire_codec``: for edges whose ends both speak it. ``nodes``:
    the announcements of its hops, by peer id. With ``prefix`` hops are asked for pages that they may hold.
    ``doubts``: when one is left that may only be slow."""

    session: SessionSettings
    wire_codec: str
    edges: EdgeBook
    nodes: dict[str, NodeInfo] = field(default_factory=dict)
    prefix: PrefixKey | None = None
    doubts: Patient | None = None

    def codec_between(self, before: str | None, after: str | None) -> str:
        """The codec of the edge between two peers; None is this client. Raises HopFailedError."""
        spoken: tuple[str, ...] = activations.CODECS
        last = before or after or ""
        for peer_id in (before, after):
            node = self.nodes.get(peer_id) if peer_id is not None else None
            if peer_id is not None and node is not None and node.codecs:
                spoken = tuple(codec for codec in spoken if codec in node.codecs)
                last = peer_id
        try:
            return activations.negotiate(activations.CODECS, spoken, self.wire_codec)
        except RemoteProtocolError as error:
            raise HopFailedError(last, error) from error

    def weights_of(self, peer_id: str) -> str:
        """As it announced them."""
        node = self.nodes.get(peer_id)
        return node.weights if node is not None else ""


class RouteSession:
    """Hops opened together. ``close`` frees them at once; after any error it must be called, or the session
    mended (see ``mend``).

    ``length``: tokens that every hop holds already when the session opens. The first ``forward`` goes on from
    there, or from before. ``acked``: tokens that went through all hops. ``on_progress`` is told of it while a
    prompt is fed.
    """

    def __init__(self, links: LinkPool, route: Route, hops: list[HopClient], settings: RouteSettings) -> None:
        self.links = links
        self.route = route
        self.hops = hops
        self.settings = settings
        self.length = min(hop.length for hop in hops)
        self.acked = self.length
        self.on_progress: Callable[[int], None] | None = None
        self.unchained: set[tuple[str, str]] = set()  # peer ids that this session found apart
        self.rejoin: frozenset[tuple[str, str]] = frozenset()  # apart and working, and to be chained again
        self.segments: list[Segment] = []
        self.retired: list[Segment] = []  # of hops that were wired in another way
        self.closed = False
        self._steps = 0
        self._fed = False
        self._max_step_tokens = 0

    @classmethod
    async def open(
        cls, links: LinkPool, route: Route, settings: RouteSettings, ids: Sequence[int] = ()
    ) -> RouteSession:
        """Open every hop at the same time; ``ids``: what it is going to be fed.

        Raises HopFailedError for the first hop that fails; the others are closed.
        """
        return await cls.open_seats(links, route, settings, _seats(route, settings, ids))

    @classmethod
    async def open_seats(
        cls, links: LinkPool, route: Route, settings: RouteSettings, seats: Sequence[Seat]
    ) -> RouteSession:
        """Open the hops of ``route`` as ``seats`` say; raises as ``open``."""
        opened: dict[int, HopClient] = {}

        async def open_hop(seat: Seat) -> None:
            opened[seat.number] = await open_seat(links, seat, settings)

        try:
            await all_of(*(open_hop(seat) for seat in seats))
            self = cls(links, route, [opened[number] for number in sorted(opened)], settings)
            await self.join_apart()
        except BaseException:
            for client in opened.values():
                client.close()
            raise
        self.resume()
        return self

    def may_chain(self, before: str, after: str) -> bool:
        return (before, after) not in self.unchained and self.settings.edges.may_chain(before, after)

    def take_steps(self, count: int) -> int:
        """The first of ``count`` step numbers that nobody else uses."""
        first = self._steps + 1
        self._steps += count
        return first

    async def join_apart(self) -> None:
        """After hops were opened: note which edges are chained; hops behind the others are fed from here."""
        alone = []
        for before, after in pairwise(self.hops):
            if before.downstream is not None:
                rtt_s, before.downstream_rtt_s = before.downstream_rtt_s, None
                if rtt_s is not None:
                    self.settings.edges.edge_worked(before.peer_id, after.peer_id, rtt_s)
            elif after.upstream:
                self.edge_failed(before, after)
                alone.append(after)
        await all_of(*(attach(hop, "") for hop in alone))

    def edge_failed(self, before: HopClient, after: HopClient) -> None:
        self.unchained.add((before.peer_id, after.peer_id))
        self.settings.edges.edge_failed(before.peer_id, after.peer_id)

    def resume(self) -> None:
        """Begin, or go on after the hops or their wiring have changed; what was under way is forgotten."""
        self.retired.extend(segment for segment in self.segments)
        runs: list[list[HopClient]] = [[]]
        for hop in self.hops:
            hop.first_step = self._steps + 1
            runs[-1].append(hop)
            if hop.downstream is None and hop is not self.hops[-1]:
                runs.append([])
        self.segments = [self._segment(run) for run in runs]
        self._max_step_tokens = min(hop.max_step_tokens for hop in self.hops)
        hops = tuple(hop.hop for hop in self.hops)
        if hops != self.route.hops:
            self.route = Route(hops)

    def _segment(self, hops: Sequence[HopClient]) -> Segment:
        settings = self.settings.session
        rows = RowWatch(
            settings.hidden_size,
            hops[-1].hop.span.end - hops[0].hop.span.start,
            own_input=hops[0] is self.hops[0],
            embedding_rms=settings.embedding_rms,
        )
        return Segment(hops, settings.hidden_size, rows, self.settings.doubts)

    def check_open(self) -> None:
        """Raises StreamClosedError for a session that was closed here."""
        if self.closed:
            raise StreamClosedError("the session was closed on this side")

    async def forward(self, x: Rows, position: int, want: Want = Want.LAST) -> Tensor:
        """Push ``x`` (tokens, hidden) through all blocks at ``position``; a long one is asked for in parts.

        Returns (0, hidden), (1, hidden) or (tokens, hidden) float32 as ``want`` says. A ``position`` below
        what was pushed before rolls every hop back to it. Raises HopFailedError and EdgeFailedError.
        """
        self.acked = position
        short = len(x) <= min(SHORT_TOKENS, self._max_step_tokens) and (self._fed or len(x) == 1)
        step = self._short_step if short else self._prefill
        try:
            hidden = await step(x, position, want)
        except BrokenError as error:
            raise await self.failure() from error
        self._fed = True
        return hidden

    async def failure(self) -> HopFailedError | EdgeFailedError:
        """What has broken the route, the worst first."""
        diagnosis = await diagnose(self.hops, self.settings.session.hidden_size)
        return diagnosis.worst(self.hops)

    def rollback(self, length: int) -> None:
        """The tokens from ``length`` on are no part of the sequence any more; ``forward`` goes on there."""
        self.acked = min(self.acked, length)
        for hop in self.hops:
            if hop.names is not None:
                hop.names.rollback(length)

    def close(self, ids: Sequence[int] = ()) -> None:
        """Free every hop's session at once. Never waits; may be called again. ``ids``: what was fed, for the
        hops to keep the pages of it."""
        self.closed = True
        for hop in self.hops:
            hop.close(ids)

    async def _short_step(self, x: Rows, position: int, want: Want) -> Tensor:
        first, last, tokens = self.hops[0], self.hops[-1], len(x)
        began = perf_counter()
        payload: Payload = activations.encode(first.codec, x[:])
        self._codec_cost(first, perf_counter() - began, self._fed)
        step = self.take_steps(1)
        for segment in self.segments:
            asked = want if segment.last is last else Want.ALL
            segment.post(step, payload, tokens, position, asked, decoding=self._fed)
            result = await segment.receive()
            payload = result.payload
        hidden = self._decode(payload, result.tokens, self._fed)
        self.acked = position + tokens
        return hidden

    async def _prefill(self, x: Rows, position: int, want: Want) -> Tensor:
        """In chunks; each segment has a task that feeds it and one that takes its results."""
        size = chunk_tokens(len(x), len(self.hops), self._max_step_tokens)
        starts = range(0, len(x), size)
        steps = self.take_steps(len(starts))
        segments = self.segments
        queues = [asyncio.Queue[_Chunk](CHUNKS_AHEAD) for _ in segments]
        outputs: list[Tensor] = []

        def wanted(segment: Segment, start: int) -> Want:
            if segment is not segments[-1]:
                return Want.ALL
            return Want.NOTHING if want is Want.LAST and start != starts[-1] else want

        async def encode_chunks() -> None:
            for start in starts:
                piece = x[start : start + size]
                began = perf_counter()
                payload = activations.encode(self.hops[0].codec, piece)
                self._codec_cost(self.hops[0], perf_counter() - began, False)
                await queues[0].put((payload, len(piece), position + start))

        async def feed(number: int) -> None:
            segment = segments[number]
            for index, start in enumerate(starts):
                payload, tokens, at = await queues[number].get()
                await segment.room(len(payload))
                segment.post(steps + index, payload, tokens, at, wanted(segment, start))

        async def take(number: int) -> None:
            for start in starts:
                result = await segments[number].receive()
                if number == len(segments) - 1:
                    outputs.append(self._decode(result.payload, result.tokens, False))
                    self.acked = position + min(len(x), start + size)
                    if self.on_progress is not None:
                        self.on_progress(self.acked)
                else:
                    await queues[number + 1].put((result.payload, result.tokens, position + start))

        await all_of(
            encode_chunks(), *(task(number) for number in range(len(segments)) for task in (feed, take))
        )
        return outputs[-1] if want is Want.LAST else torch.cat(outputs)

    def _decode(self, payload: Payload, tokens: int, decoding: bool) -> Tensor:
        """The hidden states (tokens, hidden) that the last hop sent; blames it if they are none."""
        hop = self.hops[-1]
        began = perf_counter()
        try:
            x = activations.decode(hop.reply_codec, payload, tokens, self.settings.session.hidden_size)
        except RemoteProtocolError as error:
            hop.end(error)
            raise BrokenError from error
        self._codec_cost(hop, perf_counter() - began, decoding)
        return x

    @staticmethod
    def _codec_cost(hop: HopClient, seconds: float, decoding: bool) -> None:
        (hop.trace.decode if decoding else hop.trace.prefill).codec_s += seconds


async def open_seat(links: LinkPool, seat: Seat, settings: RouteSettings) -> HopClient:
    """Raises HopFailedError."""
    try:
        client = await HopClient.open(links, seat, settings.session)
        client.announced = settings.nodes.get(seat.hop.peer_id)
        return client
    except PeerTimeoutError as error:
        raise HopFailedError(seat.hop.peer_id, await own_fault(links) or error) from error
    except SwarmError as error:
        raise HopFailedError(seat.hop.peer_id, error) from error


async def own_fault(links: LinkPool) -> LocalNetworkError | None:
    """What is wrong with our own network, which makes every peer look silent."""
    try:
        await links.check()
    except LocalNetworkError as error:
        return error
    return None


async def attach(hop: HopClient, upstream: str, *, unnamed: bool = False) -> int:
    """As ``HopClient.attach``; raises HopFailedError."""
    try:
        return await hop.attach(upstream, unnamed=unnamed)
    except SwarmError as error:
        hop.end(error)
        raise HopFailedError(hop.peer_id, error) from error


def new_session() -> bytes:
    return secrets.token_bytes(16)


def _seats(route: Route, settings: RouteSettings, ids: Sequence[int]) -> list[Seat]:
    """Sessions and wiring of a whole route, and the names of the pages that its hops may hold."""
    hops = route.hops
    peers: list[str | None] = [None, *(hop.peer_id for hop in hops), None]
    edge_codecs = [settings.codec_between(*pair) for pair in pairwise(peers)]
    sessions = [new_session() for _ in hops]
    may_chain = settings.edges.may_chain
    chained = [may_chain(a.peer_id, b.peer_id) for a, b in pairwise(hops)]

    def next_of(number: int) -> Downstream | None:
        if number == len(hops) - 1 or not chained[number]:
            return None
        after: Hop = hops[number + 1]
        return Downstream(after.peer_id, sessions[number + 1], after.record)

    seats = [
        Seat(
            hop,
            number,
            len(hops),
            sessions[number],
            edge_codecs[number],
            edge_codecs[number + 1],
            settings.weights_of(hop.peer_id),
            hops[number - 1].peer_id if number and chained[number - 1] else "",
            next_of(number),
            ids=ids,
        )
        for number, hop in enumerate(hops)
    ]
    named = names_for(seats, settings)
    return [replace(seat, names=names) for seat, names in zip(seats, named, strict=True)]


def places(hops: Sequence[Seat | HopClient]) -> list[HopPlace]:
    """What determines the input of each hop, and of those after it."""
    return [HopPlace(hop.hop.peer_id, hop.hop.span, hop.weights, hop.codec) for hop in hops]


def names_for(hops: Sequence[Seat | HopClient], settings: RouteSettings) -> list[PageNames | None]:
    """The names of each hop's pages, where the session has any."""
    if settings.prefix is None:
        return [None] * len(hops)
    return [*page_names(settings.prefix, places(hops))]
