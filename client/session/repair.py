"""Bringing a broken route back while its other hops keep what they have computed.

In rounds, until a look at all hops finds nothing wrong: hops that are lost are replaced by others for the
same blocks; neighbours are wired to them; and each new hop is fed what it lacks, up to the last token that
came out of the route. Its input comes from the journal of the hop before, from node to node; a hop whose
journal does not reach back is replaced too, and so on to the first hop, which is fed from the token ids. Two
living hops that do not reach each other, or refuse what the other sends, are fed through this client.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor

from ...swarm.errors import (
    BrokenError,
    HopFailedError,
    PeerError,
    PeerTimeoutError,
    RemoteProtocolError,
    ReplayRefusedError,
    SwarmError,
)
from ...swarm.protocol.messages import Downstream
from ...swarm.runtime.tasks import all_of
from ...swarm.types import Hop, Span
from ..hops.diagnosis import Diagnosis, diagnose
from ..hops.hop import HopClient, Seat
from ..hops.route_session import RouteSession, attach, names_for, new_session, open_seat, own_fault, places
from ..hops.trace import HopTimings
from ..routing.bans import NO_FAULT
from ..routing.route_finder import Planned
from .replay import Fed, Port, feed_ids, relay_rows

SKIPPED_STEPS = 2**20
"""Step numbers that are passed over at a repair, at most. A hop that fed the next one, and goes, cannot know
which number the client uses then: a step that it sent under that number would be answered in its place."""


class FindHops(Protocol):
    """Hops for a gap between two peers (None: the client): none of those to ``keep``, of those to ``avoid``
    only where there are no others, and with borders at ``cuts`` if that is possible."""

    def __call__(
        self,
        gap: Span,
        before: str | None,
        after: str | None,
        keep: frozenset[str],
        avoid: frozenset[str],
        cuts: Sequence[int],
    ) -> Awaitable[Planned]: ...


class OpenHops(Protocol):
    """Awaits the opening of hops for some blocks, unless others are there sooner: then HopFailedError."""

    def __call__(
        self, opening: Coroutine[Any, Any, HopClient], hops: Sequence[Hop], gap: Span
    ) -> Awaitable[HopClient]: ...


class CannotMendError(Exception):
    """Nothing of the route is to be kept. ``failure``: why."""

    def __init__(self, failure: HopFailedError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class MoveAbandonedError(Exception):
    """A hop that still works was to be replaced, and was not: the route is as it was."""


@dataclass(slots=True)
class Mending:
    """What a repair did. ``lost``: peer ids of hops that were replaced; ``replaced``: what they had cost."""

    lost: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    replaced: list[HopTimings] = field(default_factory=list)
    fed: Fed = field(default_factory=Fed)


class _InterruptedError(Exception):
    """A hop failed while others were being mended."""


class Mender:
    """One repair of a session. ``ids``: what it was fed. ``embed(start, end)``: the embeddings of a part of
    them. ``find`` plans; ``failed`` is told of every hop that failed, and whether it did so at its
    opening; ``opened`` waits for those that open."""

    def __init__(
        self,
        session: RouteSession,
        ids: Sequence[int],
        *,
        embed: Callable[[int, int], Tensor],
        find: FindHops,
        failed: Callable[[HopFailedError, bool], None],
        opened: OpenHops,
    ) -> None:
        self.report = Mending()
        self._session = session
        self._ids = ids
        self._embed = embed
        self._find = find
        self._failed = failed
        self._opened = opened
        self._forced: dict[HopClient, str] = {}  # hops that work and are replaced all the same, and why
        self._excluded: set[str] = set()
        self._gone: set[str] = set()
        self._told: set[int] = set()  # of failures, by identity: they concern the router once
        self._without_journal: set[str] = set()
        self._misfed: set[str] = set()  # whose sessions held too little: once that may be another's doing
        self._alarm = asyncio.Event()
        self._moving = False
        self._round = 0  # answers to steps before it are of no interest

    async def move(self, number: int, cause: str) -> None:
        """Replace a hop that works. Raises MoveAbandonedError, and as ``run``."""
        hop = self._session.hops[number]
        self._moving = True
        self._forced[hop] = cause
        await self.run()

    async def run(self) -> None:
        """Mend the session; ``forward`` may go on at ``acked`` then.

        Raises CannotMendError, and what ``find`` raises.
        """
        session = self._session
        while True:
            session.check_open()
            self._alarm.clear()
            found = await diagnose(session.hops, session.settings.session.hidden_size)
            self._round = session.take_steps(1 + secrets.randbelow(SKIPPED_STEPS))
            for hop in session.hops:
                hop.first_step = self._round
                self._listen(hop)
            await self._take_note(found)
            try:
                if found.lost or self._forced:
                    await self._unless_alarmed(self._replace(found))
                await self._unless_alarmed(self._wire())
            except MoveAbandonedError:
                session.resume()
                raise
            except (HopFailedError, BrokenError, _InterruptedError):
                continue
            if not any(hop.troubled for hop in session.hops):
                break
        session.resume()

    # What is wrong.

    async def _take_note(self, found: Diagnosis) -> None:
        session = self._session
        hops = session.hops
        await self._blame_ourselves(found)
        for number, cause in found.lost.items():
            hop = hops[number]
            if id(cause) not in self._told:
                self._told.add(id(cause))
                self.report.lost.append(hop.peer_id)
                self.report.causes.append(cause.message)
                if not (isinstance(cause, PeerError) and cause.code in NO_FAULT):
                    self._gone.add(hop.peer_id)
                self._failed(HopFailedError(hop.peer_id, cause), False)
            if isinstance(cause, RemoteProtocolError):
                raise CannotMendError(HopFailedError(hop.peer_id, cause))
            self._forced.pop(hop, None)
        if len(found.lost) == len(hops):
            raise CannotMendError(found.worst(hops))  # type: ignore[arg-type]
        for number, cause in found.spoilt.items():
            self._forced[hops[number]] = cause.message
        for number, cause in found.edges.items():
            self.report.causes.append(cause.message)
            session.edge_failed(hops[number - 1], hops[number])
        for number, hop in enumerate(hops):
            if number not in found.lost:
                hop.step_error = hop.stalled = hop.upstream_lost = hop.downstream_lost = None

    async def _blame_ourselves(self, found: Diagnosis) -> None:
        """Hops that are silent because of our own daemon have done nothing."""
        if any(isinstance(cause, PeerTimeoutError) for cause in found.lost.values()):
            own = await own_fault(self._session.links)
            for number, cause in found.lost.items():
                if own is not None and isinstance(cause, PeerTimeoutError):
                    found.lost[number] = own

    # New hops.

    async def _replace(self, found: Diagnosis) -> None:
        session = self._session
        hops = session.hops
        lost = [number in found.lost or hop in self._forced for number, hop in enumerate(hops)]
        if all(lost) and not self._moving:
            raise CannotMendError(HopFailedError(hops[0].peer_id, _cause(found, self._forced, hops)))
        try:
            line = await self._line(lost)
            seats = self._seats(line)
            clients = await self._open(line, seats)
        except (SwarmError, _InterruptedError) as error:
            if self._moving and not found.lost:
                raise MoveAbandonedError(str(error)) from error
            raise
        self._moving = False
        self._take_places(lost, line, clients)

    async def _line(self, lost: Sequence[bool]) -> list[HopClient | Hop]:
        """The hops of the route that stay, and those found for each gap between them."""
        session = self._session
        hops = session.hops
        keep = {hop.peer_id for hop, gone in zip(hops, lost, strict=True) if not gone}
        keep |= self._excluded
        if self._moving:
            keep |= {hop.peer_id for hop in self._forced}
        line: list[HopClient | Hop] = []
        number = 0
        while number < len(hops):
            if not lost[number]:
                line.append(hops[number])
                number += 1
                continue
            end = number
            while end < len(hops) and lost[end]:
                end += 1
            gap = Span(hops[number].hop.span.start, hops[end - 1].hop.span.end)
            before = hops[number - 1].peer_id if number else None
            after = hops[end].peer_id if end < len(hops) else None
            cuts = [hop.hop.span.end for hop in hops[number : end - 1]]
            avoid = frozenset(self._gone - keep)
            planned = await self._find(gap, before, after, frozenset(keep), avoid, cuts)
            session.settings.nodes.update(planned.nodes)
            keep |= planned.nodes.keys()
            line.extend(planned.route.hops)
            number = end
        return line

    def _seats(self, line: Sequence[HopClient | Hop]) -> dict[int, Seat]:
        """The places of the new hops, by number. Edges to hops that stay keep their codec."""
        session = self._session
        settings = session.settings
        sessions = [item.session if isinstance(item, HopClient) else new_session() for item in line]
        seats: dict[int, Seat] = {}
        for number, item in enumerate(line):
            if isinstance(item, HopClient):
                continue
            before = line[number - 1] if number else None
            after = line[number + 1] if number + 1 < len(line) else None
            before_id = before.peer_id if before is not None else None
            after_id = after.peer_id if after is not None else None
            codec = (
                before.reply_codec
                if isinstance(before, HopClient)
                else settings.codec_between(before_id, item.peer_id)
            )
            reply_codec = (
                after.codec
                if isinstance(after, HopClient)
                else settings.codec_between(item.peer_id, after_id)
            )
            downstream = None
            if after is not None and session.may_chain(item.peer_id, after.peer_id):
                where = after.hop if isinstance(after, HopClient) else after
                downstream = Downstream(where.peer_id, sessions[number + 1], where.record)
            upstream = before_id if before_id and session.may_chain(before_id, item.peer_id) else ""
            seats[number] = Seat(
                item,
                number,
                len(line),
                sessions[number],
                codec,
                reply_codec,
                settings.weights_of(item.peer_id),
                upstream,
                downstream,
                # A hop that has to feed the next from its journal must compute all of it.
                ids=() if _is_hungry(after) else self._ids,
            )
        return self._named(line, seats)

    def _named(self, line: Sequence[HopClient | Hop], seats: dict[int, Seat]) -> dict[int, Seat]:
        """With the names of their pages, which depend on all that the hops before have computed."""
        whole = [item if isinstance(item, HopClient) else seats[number] for number, item in enumerate(line)]
        names = names_for(whole, self._session.settings)
        known = True
        for number, item in enumerate(line):
            if isinstance(item, HopClient):
                known = known and item.names is not None and not self._changed(item, whole)
            elif known:
                seats[number] = replace(seats[number], names=names[number])
        return seats

    def _changed(self, hop: HopClient, line: Sequence[HopClient | Seat]) -> bool:
        """Whether what came to a hop that stays was computed by others than are before it now."""
        old = self._session.hops
        then, now = places(old[: old.index(hop) + 1]), places(line[: line.index(hop) + 1])
        return then != now

    async def _open(self, line: Sequence[HopClient | Hop], seats: dict[int, Seat]) -> dict[int, HopClient]:
        """Open the new hops, and tell those behind them who comes before, at the same time."""
        session = self._session
        opened: dict[int, HopClient] = {}

        async def open_hop(number: int) -> None:
            seat = seats[number]
            spoken = session.settings.nodes[seat.hop.peer_id].codecs
            if spoken and not {seat.codec, seat.reply_codec} <= set(spoken):
                self._excluded.add(seat.hop.peer_id)
                raise _InterruptedError  # it cannot take what its neighbours send: plan again without it
            try:
                opening = open_seat(session.links, seat, session.settings)
                opened[number] = await self._opened(opening, [seat.hop], seat.hop.span)
            except HopFailedError as failure:
                self._failed(failure, True)
                raise
            opened[number].first_step = self._round
            self._listen(opened[number])

        async def attach_next(number: int) -> None:
            after = line[number + 1] if number + 1 < len(line) else None
            if isinstance(after, HopClient) and seats[number].downstream is not None and not self._moving:
                await self._attach(after, seats[number].hop.peer_id, unnamed=True)

        try:
            await all_of(*(task(number) for number in seats for task in (open_hop, attach_next)))
            session.check_open()
        except BaseException:
            for client in opened.values():
                client.listener = None
                client.close()
            raise
        return opened

    def _take_places(
        self, lost: Sequence[bool], line: Sequence[HopClient | Hop], clients: dict[int, HopClient]
    ) -> None:
        session = self._session
        old, acked = session.hops, session.acked
        hops = [item if isinstance(item, HopClient) else clients[number] for number, item in enumerate(line)]
        changed = [hop for hop in hops if hop in old and self._changed(hop, hops)]
        for hop in changed:
            hop.misnamed = hop.misnamed or hop.names is not None
            hop.names = None  # its pages are not what their names would say
        session.hops = hops
        for number, client in clients.items():
            held = min(client.length, acked)
            client.hungry_from = held if held < acked else None
            if client.downstream is not None and client.downstream_rtt_s is not None:
                edges = session.settings.edges
                edges.edge_worked(client.peer_id, hops[number + 1].peer_id, client.downstream_rtt_s)
            elif client.asked_downstream:
                session.edge_failed(client, hops[number + 1])
        for hop, gone in zip(old, lost, strict=True):
            if gone:
                if hop in self._forced:
                    self.report.lost.append(hop.peer_id)
                    self.report.causes.append(self._forced.pop(hop))
                self.report.replaced.append(hop.trace.timings())
                hop.listener = None
                hop.close(self._ids)

    # Wires and journals.

    async def _attach(self, hop: HopClient, upstream: str, *, unnamed: bool = False) -> None:
        held = await attach(hop, upstream, unnamed=unnamed)
        if hop.hungry_from is None and held < self._session.acked:
            text = f"{hop.link.name} holds {held} tokens of the {self._session.acked} that it has answered"
            if hop.was_fed and hop.peer_id not in self._misfed:  # who sent its steps could take it back
                self._misfed.add(hop.peer_id)
                self._forced[hop] = text
                raise _InterruptedError
            error = RemoteProtocolError(text)
            hop.end(error)
            raise HopFailedError(hop.peer_id, error)

    async def _wire(self) -> None:
        """Make every edge what it should be, and feed what is hungry."""
        session = self._session
        pairs = list(pairwise(session.hops))
        chained = [session.may_chain(a.peer_id, b.peer_id) for a, b in pairs]
        for number, (before, after) in enumerate(pairs):
            works = before.downstream is None and not after.upstream and after.hungry_from is None
            if works and (before.peer_id, after.peer_id) not in session.rejoin:
                chained[number] = False  # relayed: leave it so
        await all_of(
            *(
                self._attach(after, upstream, unnamed=after.misnamed)
                for (before, after), chain in zip(pairs, chained, strict=True)
                if after.upstream != (upstream := before.peer_id if chain else "") or after.misnamed
            )
        )
        jobs: list[Coroutine[Any, Any, None]] = []
        first = session.hops[0]
        if first.hungry_from is not None:
            jobs.append(self._feed_first(first, first.hungry_from))
        for (before, after), chain in zip(pairs, chained, strict=True):
            wanted = after.session if chain else None
            if after.hungry_from is not None or before.downstream != wanted:
                jobs.append(self._replay(before, after, chain))
        await all_of(*jobs)

    async def _feed_first(self, hop: HopClient, start: int) -> None:
        until = self._session.acked
        step = self._session.take_steps(until - start)
        port = self._listen(hop)
        await feed_ids(port, start, until, step, self._embed, self.report.fed)
        hop.hungry_from = None

    async def _replay(self, before: HopClient, after: HopClient, chain: bool) -> None:
        session = self._session
        until = session.acked
        start = until if after.hungry_from is None else after.hungry_from
        step = session.take_steps(until - start + 1)
        if start < until and before.was_fed and before.hungry_from is None:
            # A replay of rows that it does not have would wait for them.
            await self._attach(before, before.upstream)
        try:
            if chain:
                done = await before.replay(start, until, step, after.downstream_for())
                self.report.fed.by_nodes(done.tokens, done.payload_bytes)
                session.settings.edges.edge_worked(before.peer_id, after.peer_id, done.link_us * 1e-6)
            else:
                source, target = self._listen(before), self._listen(after)
                await relay_rows(source, target, start, until, step, self.report.fed)
        except ReplayRefusedError as refused:
            if refused.journal_lost:
                if before.peer_id in self._without_journal:
                    raise CannotMendError(HopFailedError(before.peer_id, refused.cause)) from refused
                self._without_journal.add(before.peer_id)
                self._forced[before] = refused.message
            else:
                await self._lost_edge(before, after, chain, refused)
            raise _InterruptedError from refused
        except SwarmError as error:
            if not isinstance(error, BrokenError):
                before.end(error)
            raise BrokenError from error
        after.hungry_from = None

    async def _lost_edge(
        self, before: HopClient, after: HopClient, chain: bool, refused: ReplayRefusedError
    ) -> None:
        """A hop does not reach the next; if that one is alive, they go through this client."""
        await asyncio.gather(before.link.check(), after.link.check())
        if before.failure is None and after.failure is None:
            if not chain:
                before.end(refused.cause)
                return
            self.report.causes.append(refused.message)
            self._session.edge_failed(before, after)

    # Watching while others are waited for.

    def _listen(self, hop: HopClient) -> Port:
        if isinstance(hop.listener, Port) and hop.listener.alarm is self._alarm:
            return hop.listener
        port = Port(hop, self._alarm, self._session.settings.session.hidden_size)
        hop.listener = port
        hop.link.watch()
        return port

    async def _unless_alarmed(self, work: Coroutine[Any, Any, None]) -> None:
        """Raises _InterruptedError as soon as a hop of the route fails."""
        self._session.check_open()
        doing = asyncio.ensure_future(work)
        alarm = asyncio.ensure_future(self._alarm.wait())
        try:
            await asyncio.wait((doing, alarm), return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise _InterruptedError
        finally:
            for task in (doing, alarm):
                task.cancel()
            await asyncio.wait((doing, alarm))
            if not doing.cancelled():
                doing.exception()  # of work that was broken off, nobody asks
        doing.result()


def _is_hungry(item: HopClient | Hop | None) -> bool:
    return isinstance(item, Hop) or (item is not None and item.hungry_from is not None)


def _cause(found: Diagnosis, forced: dict[HopClient, str], hops: Sequence[HopClient]) -> SwarmError:
    for cause in found.lost.values():
        return cause
    return SwarmError(next(iter(forced.values()), "no hop of the route can be kept"))
