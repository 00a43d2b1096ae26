"""Bringing a broken route back while its other hops keep what they have computed.

A repair goes in rounds, until a look at all hops finds nothing wrong. In a round, hops that are lost are
replaced by others for the same blocks; neighbours are wired to each other; and each new hop is fed what it
lacks, up to the last token that came out of the route. Its input comes from the journal of the hop before,
from node to node. A hop whose journal does not reach back far enough is replaced too, and so on up to the
first hop, which is fed from the token ids. Where two living hops do not reach each other, or one refuses what
the other sends, this client carries the activations between them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ...swarm.codecs.kinds import FP16
from ...swarm.codecs.plain import TAKE_BF16
from ...swarm.errors import (
    BrokenError,
    CodecRangeError,
    ErrorCode,
    HopFailedError,
    PeerError,
    PeerTimeoutError,
    RemoteProtocolError,
    ReplayRefusedError,
    SwarmError,
)
from ...swarm.runtime.tasks import all_of
from ...swarm.types import Hop, Span
from ..hops.diagnosis import Diagnosis, diagnose
from ..hops.hop import HopClient
from ..hops.line_up import Line, is_fed_anew, lacks_tokens, plan_line
from ..hops.plan import HopPlan
from ..hops.route_session import Pairs, RouteSession, attach, open_hop, own_fault
from ..hops.trace import HopTimings
from ..routing.bans import NO_FAULT
from .attempts import Attempts
from .gap_search import GapSearch, RouteLostError
from .repair_record import RepairRecord
from .replay import HopListener, feed_ids, relay_rows

SKIPPED_STEPS = 2**20
"""A repair skips up to this many step numbers, at random. A hop that fed the next one, and leaves, cannot
know which number the client uses then: a step that it sent under that number would be answered in place of
the client's."""


class MoveAbandonedError(Exception):
    """A hop that still works was to be replaced, and was not: the route is as it was."""


class _InterruptedError(Exception):
    """A hop failed while others were being replaced or fed."""


class RouteRepair:
    """One repair of a session, which is written into ``record``. ``ids``: what the session was fed.
    ``embed(start, end)``: the embeddings of a part of them. ``gaps`` finds hops and may ``wait`` for them;
    ``attempts`` opens them, and is told of each that fails. ``replaced``: what the hops that left cost."""

    def __init__(
        self,
        session: RouteSession,
        ids: Sequence[int],
        record: RepairRecord,
        embed: Callable[[int, int], np.ndarray],
        gaps: GapSearch,
        attempts: Attempts,
        *,
        wait: bool,
    ) -> None:
        self.replaced: list[HopTimings] = []
        self._session = session
        self._ids = ids
        self._record = record
        self._embed = embed
        self._gaps = gaps
        self._attempts = attempts
        self._wait = wait
        self._rejoin: Pairs = frozenset()
        # Hops that work and are replaced all the same, and why.
        self._forced: dict[HopClient, SwarmError] = {}
        self._excluded: set[str] = set()
        self._gone: set[str] = set()
        self._told: set[int] = set()  # of failures, by identity: they concern the router once
        self._without_journal: set[str] = set()
        self._cache_lost = False  # a hop's pages are of no use: new sessions get no names of them
        self._misfed: set[str] = set()  # whose sessions held too little: once that may be another's doing
        self._alarm = asyncio.Event()
        self._moving = False
        self._round = 0  # answers to steps before it are ignored

    async def move(self, number: int, cause: SwarmError) -> None:
        """Replace a hop that works. Raises MoveAbandonedError, and as ``run``."""
        hop = self._session.hops[number]
        self._moving = True
        self._forced[hop] = cause
        await self.run()

    async def run(self, rejoin: Pairs = frozenset()) -> None:
        """Repair the session; ``forward`` may go on at ``acked`` then. ``rejoin``: pairs of neighbours that
        work apart and are to be chained again.

        Raises RouteLostError, and what ``GapSearch.find`` raises.
        """
        session, self._rejoin = self._session, rejoin
        while True:
            session.check_open()
            self._alarm.clear()
            found = await diagnose(session.hops)
            self._round = session.take_steps(1 + secrets.randbelow(SKIPPED_STEPS))
            for hop in session.hops:
                hop.ignore_before(self._round)
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
            if not any(hop.state.is_troubled for hop in session.hops):
                break
        session.resume()

    # What is wrong.

    async def _take_note(self, found: Diagnosis) -> None:
        session = self._session
        hops = session.hops
        for number, refusal in found.behind.items():
            again = session.acked - refusal.holds
            if again < 0 or not self._attempts.excuses_loss(hops[number].peer_id, session.acked, again):
                found.lost[number] = refusal.cause
        await self._blame_ourselves(found)
        for number, cause in found.lost.items():
            hop = hops[number]
            told = cause.code if isinstance(cause, PeerError) else None
            if told is ErrorCode.UNSUPPORTED_CODEC and hop.reply_codec is FP16:
                raise CodecRangeError(cause.message, hint=TAKE_BF16)  # no other hop would help
            if told is ErrorCode.UNSUPPORTED_CODEC and hop.reply_codec.exponents:
                reader = hops[number + 1].peer_id if number + 1 < len(hops) else None
                session.settings.codecs.doubts.add(reader)  # the hop has only seen what the table does
                self._record.hop_lost(hop.peer_id, cause)
                raise RouteLostError(HopFailedError(hop.peer_id, cause))  # edges keep codecs in a repair
            if id(cause) not in self._told:
                self._told.add(id(cause))
                self._record.hop_lost(hop.peer_id, cause)
                if told is ErrorCode.CACHE_LOST:
                    self._cache_lost = True
                    excused = self._attempts.excuses_loss(hop.peer_id, session.acked, session.acked)
                else:
                    excused = told in NO_FAULT and self._attempts.excuses(hop.peer_id)
                if not excused:
                    self._gone.add(hop.peer_id)
                self._attempts.failed(HopFailedError(hop.peer_id, cause), False)
            if isinstance(cause, RemoteProtocolError):
                raise RouteLostError(HopFailedError(hop.peer_id, cause))
            self._forced.pop(hop, None)
        if len(found.lost) == len(hops):
            raise RouteLostError(found.worst(hops))  # type: ignore[arg-type]
        for number, cause in found.spoilt.items():
            self._forced[hops[number]] = cause
        for number, cause in found.edges.items():
            self._record.edge_lost(cause)
            session.edge_failed(hops[number - 1], hops[number])
        for number, hop in enumerate(hops):
            if number not in found.lost:
                hop.clear()
                if number in found.behind:
                    self._record.went_back(found.behind[number].cause)
                    if (holds := found.behind[number].holds) < session.acked:
                        hop.lacks(holds)

    async def _blame_ourselves(self, found: Diagnosis) -> None:
        """Hops that are silent because of our own daemon have done nothing."""
        session = self._session
        silent = [number for number, cause in found.lost.items() if isinstance(cause, PeerTimeoutError)]
        ways = [session.hops[number].link.remote_maddr for number in silent]
        faults = await asyncio.gather(*(own_fault(session.links, way) for way in ways))
        for number, own in zip(silent, faults, strict=True):
            if own is not None:
                found.lost[number] = own

    # New hops.

    async def _replace(self, found: Diagnosis) -> None:
        session = self._session
        hops = session.hops
        lost = [number in found.lost or hop in self._forced for number, hop in enumerate(hops)]
        if all(lost) and not self._moving:
            raise RouteLostError(HopFailedError(hops[0].peer_id, _cause(found, self._forced)))
        try:
            line = await self._line(lost)
            # Of what comes behind ``acked``, guesses may be others before a new hop is fed them.
            ids = () if self._cache_lost else self._ids[: session.acked]
            plans = plan_line(line, session.settings, ids, session.may_chain, hops)
            clients = await self._open(line, plans)
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
            gap = Span(hops[number].plan.hop.span.start, hops[end - 1].plan.hop.span.end)
            before = hops[number - 1].peer_id if number else None
            after = hops[end].peer_id if end < len(hops) else None
            borders = [hop.plan.hop.span.end for hop in hops[number : end - 1]]
            avoid = frozenset(self._gone - keep)
            neighbours, kept = (before, after), frozenset(keep)
            planned = await self._gaps.find(
                session, gap, neighbours, kept, avoid, borders, wait=self._wait, began=self._record.began
            )
            session.learn(planned.nodes)
            keep |= planned.nodes.keys()
            line.extend(planned.route.hops)
            number = end
        return line

    async def _open(self, line: Line, plans: dict[int, HopPlan]) -> dict[int, HopClient]:
        """Open the new hops, and at the same time tell the hops behind them which peer comes before."""
        session = self._session
        opened: dict[int, HopClient] = {}

        async def open_one(number: int) -> None:
            plan = plans[number]
            spoken = session.settings.nodes[plan.hop.peer_id].codecs
            if spoken and not {plan.codec.kind, plan.reply_codec.kind} <= set(spoken):
                self._excluded.add(plan.hop.peer_id)
                raise _InterruptedError  # it cannot take what its neighbours send: plan again without it
            try:
                opening = open_hop(session.links, plan, session.settings)
                opened[number] = await self._attempts.opened(opening, [plan.hop], plan.hop.span)
            except HopFailedError as failure:
                self._attempts.failed(failure, True, plan.hop.span)
                raise
            opened[number].ignore_before(self._round)
            self._listen(opened[number])

        async def attach_next(number: int) -> None:
            after = line[number + 1] if number + 1 < len(line) else None
            if isinstance(after, HopClient) and plans[number].downstream is not None and not self._moving:
                await self._attach(after, plans[number].hop.peer_id, unnamed=True)

        try:
            await all_of(*(task(number) for number in plans for task in (open_one, attach_next)))
            session.check_open()
        except BaseException:
            for client in opened.values():
                client.listen(None)
                client.close()
            raise
        return opened

    def _take_places(self, lost: Sequence[bool], line: Line, clients: dict[int, HopClient]) -> None:
        session = self._session
        old, acked = session.hops, session.acked
        hops = [item if isinstance(item, HopClient) else clients[number] for number, item in enumerate(line)]
        plans = [hop.plan for hop in hops]
        for number, hop in enumerate(hops):
            if hop in old and is_fed_anew(hop, old, plans[:number]):
                hop.forget_names()
        session.replace_hops(hops)
        for number, client in clients.items():
            held = min(client.length, acked)
            if held < acked:
                client.lacks(held)
            if client.downstream is not None and client.downstream_rtt_s is not None:
                session.edge_worked(client, hops[number + 1], client.downstream_rtt_s)
            elif client.plan.downstream is not None:
                session.edge_failed(client, hops[number + 1])
        for hop, gone in zip(old, lost, strict=True):
            if gone:
                if hop in self._forced:
                    self._record.hop_lost(hop.peer_id, self._forced.pop(hop))
                self.replaced.append(hop.trace.timings())
                hop.listen(None)
                hop.close(self._ids[:acked])

    # Wires and journals.

    async def _attach(self, hop: HopClient, upstream: str, *, unnamed: bool = False) -> None:
        held = await attach(hop, upstream, unnamed=unnamed)
        if hop.state.missing_from is None and held < self._session.acked:
            error = RemoteProtocolError(
                f"{hop.link.name} holds {held} tokens of the {self._session.acked} that it has answered"
            )
            if hop.was_fed and hop.peer_id not in self._misfed:  # who sent its steps could take it back
                self._misfed.add(hop.peer_id)
                self._forced[hop] = error
                raise _InterruptedError
            hop.mark_lost(error)
            raise HopFailedError(hop.peer_id, error)

    async def _wire(self) -> None:
        """Make every edge what it should be, and feed the hops that lack tokens."""
        session = self._session
        pairs = list(pairwise(session.hops))
        chained = [session.may_chain(a.peer_id, b.peer_id) for a, b in pairs]
        for number, (before, after) in enumerate(pairs):
            works = before.downstream is None and not after.upstream and not lacks_tokens(after)
            if works and (before.peer_id, after.peer_id) not in self._rejoin:
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
        if first.state.missing_from is not None:
            jobs.append(self._feed_first(first, first.state.missing_from))
        for (before, after), chain in zip(pairs, chained, strict=True):
            wanted = after.session if chain else None
            if lacks_tokens(after) or before.downstream != wanted:
                jobs.append(self._replay(before, after, chain))
        await all_of(*jobs)

    async def _feed_first(self, hop: HopClient, start: int) -> None:
        until = self._session.acked
        step = self._session.take_steps(until - start)
        await feed_ids(self._listen(hop), start, until, step, self._embed, self._record.cost)
        hop.fed()

    async def _replay(self, before: HopClient, after: HopClient, chain: bool) -> None:
        session = self._session
        until = session.acked
        start = until if after.state.missing_from is None else after.state.missing_from
        step = session.take_steps(until - start + 1)
        if start < until and before.was_fed and not lacks_tokens(before):
            # A replay of rows that it does not have would wait for them.
            await self._attach(before, before.upstream)
        try:
            if chain:
                done = await before.replay(start, until, step, after.downstream_for())
                self._record.cost.by_nodes(done.tokens, done.payload_bytes)
                session.edge_worked(before, after, done.link_us * 1e-6)
            else:
                source, target = self._listen(before), self._listen(after)
                await relay_rows(source, target, start, until, step, self._record.cost)
        except ReplayRefusedError as refused:
            if refused.journal_lost:
                if before.peer_id in self._without_journal:
                    raise RouteLostError(HopFailedError(before.peer_id, refused.cause)) from refused
                self._without_journal.add(before.peer_id)
                self._forced[before] = refused
            else:
                await self._lost_edge(before, after, chain, refused)
            raise _InterruptedError from refused
        except SwarmError as error:
            if not isinstance(error, BrokenError):
                before.mark_lost(error)
            raise BrokenError from error
        if lacks_tokens(after):
            after.fed()

    async def _lost_edge(
        self, before: HopClient, after: HopClient, chain: bool, refused: ReplayRefusedError
    ) -> None:
        """A hop does not reach the next; if that one is alive, they go through this client."""
        await asyncio.gather(before.link.check(), after.link.check())
        if before.failure is None and after.failure is None:
            if not chain:
                before.mark_lost(refused.cause)
                return
            self._record.edge_lost(refused)
            self._session.edge_failed(before, after)

    # Watching while others are waited for.

    def _listen(self, hop: HopClient) -> HopListener:
        if isinstance(hop.listener, HopListener) and hop.listener.alarm is self._alarm:
            return hop.listener
        listener = HopListener(hop, self._alarm)
        hop.listen(listener)
        hop.link.watch()
        return listener

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
                doing.exception()  # looked at: the work was broken off, and its error is not wanted
        doing.result()


def _cause(found: Diagnosis, forced: dict[HopClient, SwarmError]) -> SwarmError:
    for cause in (*found.lost.values(), *forced.values()):
        return cause
    return SwarmError("no hop of the route can be kept")
