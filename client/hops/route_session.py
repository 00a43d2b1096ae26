"""One session on every hop of a route: hidden states in at block 0, hidden states out after the last block.

Hops pass activations on to each other (a chained edge); where two cannot, the client carries them (a relayed
edge), as they came: both sides of an edge speak one codec. A run of chained hops is a segment. A short step,
of one token or of a few, is one write and one read a segment, in the caller's task; several may be sent ahead
of their results (``post``, ``receive``). A prefill goes through in chunks, so that all hops work at the same
time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise
from time import perf_counter

import numpy as np

from ...swarm.errors import (
    BrokenError,
    EdgeFailedError,
    HopFailedError,
    LocalNetworkError,
    LocalProtocolError,
    PeerTimeoutError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
)
from ...swarm.fidelity.row_sampler import FewAtATime
from ...swarm.fidelity.written_rows import WrittenRows
from ...swarm.links.pool import LinkPool
from ...swarm.protocol.branches import MAX_CHAIN_ROWS, rows_of, too_many
from ...swarm.protocol.field_types import Branches
from ...swarm.protocol.messages import Want
from ...swarm.protocol.wire import Payload
from ...swarm.routing.prediction import chunk_tokens
from ...swarm.runtime.tasks import all_of
from ...swarm.transport.address_groups import address_group
from ...swarm.types import NodeInfo, Route, Span
from .diagnosis import diagnose
from .hop import HopClient
from .line_up import plan_line
from .plan import HopPlan, RouteSettings
from .row_watch import RowWatch
from .rows import Rows
from .segment import IN_FLIGHT_BYTES, Segment
from .step_flow import StepFlow

SHORT_TOKENS = 33
"""A step of at most this many tokens goes through in one piece."""
CHUNKS_AHEAD = 4
"""At most this many chunks of a prefill wait between two segments."""

Pairs = frozenset[tuple[str, str]]
"""Neighbours on a route, by peer id."""
_Chunk = tuple[Payload, int, int]  # payload, tokens, position


class RouteSession:
    """Hops opened together. ``close`` frees them at once; after any error it must be called, or the session
    repaired (see ``session.repair``).

    ``length``: tokens that every hop holds already when the session opens. The first ``forward`` goes on from
    there, or from before. ``acked``: tokens that went through all hops. ``void_rows``: those sent ahead of
    their results which then were of no use. ``retired``: segments of hops that were wired in another way.
    """

    def __init__(self, links: LinkPool, route: Route, hops: list[HopClient], settings: RouteSettings) -> None:
        self.links = links
        self.route = route
        self.hops = hops
        self.settings = settings
        self.length = min(hop.length for hop in hops)
        self.acked = self.length
        self.void_rows = 0
        self.segments: list[Segment] = []
        self._flow: StepFlow | None = None  # of the segments, while steps are sent ahead of their results
        self.retired: list[Segment] = []
        self.closed = False
        self._apart: set[tuple[str, str]] = set()  # peer ids that this session does not chain
        self._steps = 0
        self._fed = False
        self._max_step_tokens = 0
        self.most_ahead = 0  # tokens behind a certain one that a line holds, and one step
        reader = settings.codecs.reader
        self._learned = None if reader is None else FewAtATime(reader.sampler)
        self._written = WrittenRows()

    @classmethod
    async def open(
        cls, links: LinkPool, route: Route, settings: RouteSettings, ids: Sequence[int] = ()
    ) -> RouteSession:
        """Open every hop at the same time; ``ids``: what it may hold already of what it is going to be fed.

        Raises HopFailedError for the first hop that fails; the others are closed.
        """
        plans = plan_line(route.hops, settings, ids, settings.may_chain)
        return await cls.open_planned(links, route, settings, [*plans.values()])

    @classmethod
    async def open_planned(
        cls, links: LinkPool, route: Route, settings: RouteSettings, plans: Sequence[HopPlan]
    ) -> RouteSession:
        """Open the hops of ``route`` as ``plans`` say; raises as ``open``."""
        opened: dict[int, HopClient] = {}

        async def open_one(plan: HopPlan) -> None:
            opened[plan.number] = await open_hop(links, plan, settings)

        try:
            await all_of(*(open_one(plan) for plan in plans))
            self = cls(links, route, [opened[number] for number in sorted(opened)], settings)
            await self.join_apart()
        except BaseException:
            for client in opened.values():
                client.close()
            raise
        self.resume()
        return self

    # What a repair, a fork or a search for slow hops changes.

    def may_chain(self, before: str, after: str) -> bool:
        return (before, after) not in self._apart and self.settings.may_chain(before, after)

    def rewire(self, apart: Pairs, join: Pairs = frozenset()) -> None:
        """From the next repair on, carry what goes between the pairs ``apart``, and no more between those to
        ``join``."""
        self._apart |= apart
        self._apart -= join

    @property
    def apart(self) -> Pairs:
        """Pairs of neighbours, by peer id, that this session does not chain."""
        return frozenset(self._apart)

    def edge_failed(self, before: HopClient, after: HopClient) -> None:
        self._apart.add((before.peer_id, after.peer_id))
        if self.settings.router is not None:
            self.settings.router.edge_failed(before.peer_id, after.peer_id)

    def edge_worked(self, before: HopClient, after: HopClient, rtt_s: float) -> None:
        if self.settings.router is not None:
            self.settings.router.edge_worked(before.peer_id, after.peer_id, rtt_s)

    def learn(self, nodes: Mapping[str, NodeInfo]) -> None:
        """The announcements of hops that are about to be opened."""
        self.settings.nodes.update(nodes)

    def replace_hops(self, hops: list[HopClient]) -> None:
        """Others take the places of some; ``resume`` goes on with them."""
        self.hops = hops

    def take_steps(self, count: int) -> int:
        """The first of ``count`` unused step numbers."""
        first = self._steps + 1
        self._steps += count
        return first

    async def join_apart(self) -> None:
        """After hops were opened: note which edges are chained; hops behind the others are fed from here."""
        alone = []
        for before, after in pairwise(self.hops):
            if before.downstream is not None:
                if before.downstream_rtt_s is not None:
                    self.edge_worked(before, after, before.downstream_rtt_s)
            elif after.upstream:
                self.edge_failed(before, after)
                alone.append(after)
        await all_of(*(attach(hop, "") for hop in alone))

    def resume(self) -> None:
        """Begin, or go on after the hops or their wiring have changed; what was under way is forgotten."""
        self._end_flow(void=False)
        self.retired.extend(self.segments)
        runs: list[list[HopClient]] = [[]]
        for hop in self.hops:
            hop.ignore_before(self._steps + 1)
            runs[-1].append(hop)
            if hop.downstream is None and hop is not self.hops[-1]:
                runs.append([])
        self.segments = [self._segment(run) for run in runs]
        self._max_step_tokens = min(hop.max_step_tokens for hop in self.hops)
        most = max(1, IN_FLIGHT_BYTES // max(hop.row_bytes for hop in self.hops))
        few = self._max_step_tokens < MAX_CHAIN_ROWS  # a hop that takes less than a step of guesses
        self.most_ahead = min(most, self._max_step_tokens - 1) if few else most
        hops = tuple(hop.plan.hop for hop in self.hops)
        if hops != self.route.hops:
            self.route = Route(hops)

    def _segment(self, hops: Sequence[HopClient]) -> Segment:
        settings = self.settings.session
        rows = RowWatch(
            settings.boundaries,
            Span(hops[0].plan.hop.span.start, hops[-1].plan.hop.span.end),
            own_input=hops[0] is self.hops[0],
            embedding_rms=settings.embedding_rms,
        )
        is_last = hops[-1].plan.hop.span.end == len(self.settings.session.boundaries.widths) - 1
        return Segment(hops, rows, self.settings.doubts, self.settings.codecs.reader if is_last else None)

    def check_open(self) -> None:
        """Raises StreamClosedError for a session that was closed here."""
        if self.closed:
            raise StreamClosedError("the session was closed on this side")

    async def forward(self, x: Rows, position: int, want: Want = Want.LAST) -> np.ndarray:
        """Push ``x`` (tokens, hidden) through all blocks at ``position``; a long one is asked for in parts.

        Returns (0, hidden), (1, hidden) or (tokens, hidden) float32 as ``want`` says. A ``position`` below
        what was pushed before rolls every hop back to it. Raises HopFailedError and EdgeFailedError.
        """
        self._end_flow()
        self.acked = position
        short = len(x) <= min(SHORT_TOKENS, self._max_step_tokens) and (self._fed or len(x) == 1)
        step = self._short_step if short else self._prefill
        try:
            hidden = await step(x, position, want)
        except BrokenError as error:
            raise await self.failure() from error
        self._fed = True
        return hidden

    @property
    def line_row_s(self) -> float:
        """Seconds that a row keeps the slowest line to a hop busy, as far as a limit was told; else 0."""
        return max(hop.row_bytes / hop.link.line_bytes_per_s for hop in self.hops)

    @property
    def takes_branches(self) -> bool:
        """Whether all hops compute branches of steps."""
        return all("branches" in hop.features for hop in self.hops)

    def post(self, x: np.ndarray, position: int, branches: Branches = ()) -> None:
        """Send a short step, ``x`` (tokens, hidden) at ``position``: the first behind what was received,
        others behind the one before. Never waits; ``receive`` raises for one that cannot be sent.

        The last rows of ``x`` are those of ``branches``, (row, count) each: see ``Step``."""
        own = len(x) - rows_of(branches)
        if problem := too_many(own, branches):
            raise LocalProtocolError(f"the step has {problem}")
        if len(x) > self._max_step_tokens:
            x, branches = x[:own], ()
        if self._flow is None:
            self._flow = StepFlow(self.segments)
            self.acked = position
        began = perf_counter()
        payload = self._encode(x, position, own)
        self.hops[0].trace.decode.coded(perf_counter() - began)
        self._flow.post(self.take_steps(1), payload, len(x), position, branches)
        self._fed = True

    async def receive(self) -> np.ndarray:
        """The rows (tokens, hidden) float32 of the oldest step that was posted; those of its branches are the
        last, or missing where a hop had no room. Raises HopFailedError and EdgeFailedError."""
        flow = self._flow
        if flow is None or not flow.tokens:
            raise LocalProtocolError("no step is under way")
        try:
            result, own = await flow.receive()
            hidden = self._decode(result.payload, result.tokens, True, own)
        except BrokenError as error:
            flow.stop()
            raise await self.failure() from error
        self.acked = result.position + own
        return hidden

    def _end_flow(self, *, void: bool = True) -> None:
        """What is under way, posted or of a ``forward`` that was cancelled, is of no use any more: answers to
        it are ignored. ``void``: the hops are told, if all of them understand it."""
        if self._flow is not None:
            self._flow.stop()
            self.void_rows += self._flow.tokens
            self._flow = None
        oldest = [segment.oldest_step for segment in self.segments if segment.awaited]
        if not oldest:
            return
        first = min(oldest) if void and all("void" in hop.features for hop in self.hops) else 0
        for segment in self.segments:
            segment.forget_steps(first)
        for hop in self.hops:
            hop.ignore_before(self._steps + 1)
            if first:
                hop.void(first, self._steps)

    async def failure(self) -> HopFailedError | EdgeFailedError:
        """What has broken the route, the worst first."""
        diagnosis = await diagnose(self.hops)
        return diagnosis.worst(self.hops)

    def rollback(self, length: int) -> None:
        """The tokens from ``length`` on are not part of the sequence any more; ``forward`` or ``post`` goes
        on there, and what is under way is void."""
        if self._flow is not None:
            self.void_rows += max(0, self.acked - length)
        self._end_flow()
        self.acked = min(self.acked, length)
        for hop in self.hops:
            if hop.names is not None:
                hop.names.rollback(length)

    def close(self, ids: Sequence[int] = ()) -> None:
        """Free every hop's session at once. Never waits. Idempotent. ``ids``: what was fed, for the
        hops to keep the pages of it: as far as all of them have it, since CLOSE may overtake what is under
        way, in whose place they hold something else."""
        self.closed = True
        ids = ids[: self.acked]
        self._end_flow(void=False)
        for hop in self.hops:
            hop.close(ids)

    async def _short_step(self, x: Rows, position: int, want: Want) -> np.ndarray:
        first, last, tokens = self.hops[0], self.hops[-1], len(x)
        began = perf_counter()
        payload = self._encode(x[:], position)
        first.trace.phase(self._fed).coded(perf_counter() - began)
        step = self.take_steps(1)
        for segment in self.segments:
            asked = want if segment.last is last else Want.ALL
            segment.post(step, payload, tokens, position, asked, decoding=self._fed)
            result = await segment.receive()
            payload = result.payload
        hidden = self._decode(payload, result.tokens, self._fed)
        self.acked = position + tokens
        return hidden

    async def _prefill(self, x: Rows, position: int, want: Want) -> np.ndarray:
        """In chunks; each segment has a task that feeds it and one that takes its results."""
        size = chunk_tokens(len(x), len(self.hops), self._max_step_tokens)
        starts = range(0, len(x), size)
        steps = self.take_steps(len(starts))
        segments = self.segments
        queues = [asyncio.Queue[_Chunk](CHUNKS_AHEAD) for _ in segments]
        outputs: list[np.ndarray] = []

        def wanted(segment: Segment, start: int) -> Want:
            if segment is not segments[-1]:
                return Want.ALL
            return Want.NOTHING if want is Want.LAST and start != starts[-1] else want

        async def encode_chunks() -> None:
            for start in starts:
                piece = x[start : start + size]
                began = perf_counter()
                payload = self._encode(piece, position + start)
                self.hops[0].trace.prefill.coded(perf_counter() - began)
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
                    if self.settings.on_progress is not None:
                        self.settings.on_progress(self.acked)
                else:
                    await queues[number + 1].put((result.payload, result.tokens, position + start))

        await all_of(
            encode_chunks(), *(task(number) for number in range(len(segments)) for task in (feed, take))
        )
        return outputs[-1] if want is Want.LAST else np.concatenate(outputs)

    def _encode(self, x: np.ndarray, position: int, own: int | None = None) -> Payload:
        """``x`` (tokens, hidden) for the first hop, whose table is not believed again if it does harm to the
        first ``own`` rows, which are those from ``position`` on; None: all are."""
        first = self.hops[0]
        if self._written.harmed(first.codec, x[:own], position):
            self.settings.codecs.doubts.add(first.peer_id)
        return first.codec.encode(x)

    def _decode(self, payload: Payload, tokens: int, decoding: bool, own: int | None = None) -> np.ndarray:
        """The hidden states (tokens, hidden) that the last hop sent; the first ``own``, or all, are those of
        the sequence. Blames it if they are not valid."""
        hop = self.hops[-1]
        began = perf_counter()
        try:
            x = hop.reply_codec.decode(payload, tokens, hop.reply_width)
        except RemoteProtocolError as error:
            hop.mark_lost(error)
            raise BrokenError from error
        hop.trace.phase(decoding).coded(perf_counter() - began)
        if self._learned is not None:
            self._learned.came(x[:own], address_group(hop.link.remote_maddr))
        return x


async def open_hop(links: LinkPool, plan: HopPlan, settings: RouteSettings) -> HopClient:
    """Raises HopFailedError."""
    try:
        return await HopClient.open(links, plan, settings.session)
    except PeerTimeoutError as error:
        raise HopFailedError(plan.hop.peer_id, await own_fault(links) or error) from error
    except SwarmError as error:
        raise HopFailedError(plan.hop.peer_id, error) from error


async def own_fault(links: LinkPool, remote_maddr: str = "") -> LocalNetworkError | None:
    """What is wrong with our own end of the way to there, which makes every peer look silent."""
    try:
        await links.check(remote_maddr)
    except LocalNetworkError as error:
        return error
    return None


async def attach(hop: HopClient, upstream: str, *, unnamed: bool = False) -> int:
    """As ``HopClient.attach``; raises HopFailedError."""
    try:
        return await hop.attach(upstream, unnamed=unnamed)
    except SwarmError as error:
        hop.mark_lost(error)
        raise HopFailedError(hop.peer_id, error) from error
