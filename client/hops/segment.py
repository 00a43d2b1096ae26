"""Hops chained one to the next: steps go in at the first, results come out of the last.

Steps may be sent ahead of their results, which come back in order. A hop that is not chained is a segment of
its own, and the client carries its results to the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from time import perf_counter

from ...swarm.codecs.codec import Codec
from ...swarm.errors import (
    BrokenError,
    ErrorCode,
    LocalProtocolError,
    PeerLateError,
    PeerMuteError,
    PeerTimeoutError,
    RemoteProtocolError,
    SwarmError,
)
from ...swarm.fidelity.row_reader import RowReader
from ...swarm.fidelity.row_sampler import is_sampled
from ...swarm.protocol.branches import computed_rows, rows_of
from ...swarm.protocol.field_types import MAX_RETRY_MS, Branches, Progress
from ...swarm.protocol.messages import Result, Step, Want
from ...swarm.protocol.step_watch import Fault, StepWatch, Verdict
from ...swarm.protocol.wire import Payload
from ...swarm.timeouts import transit_within_s
from ...swarm.transport.address_groups import address_group
from .hop import HopClient, StepTold
from .plan import Patient
from .row_watch import RowWatch
from .trace import ChainTimings

IN_FLIGHT_BYTES = 1024 * 1024
"""Bytes of payload that one session has on the way to a node at most. A prefill puts no more before other
sessions' decode steps on a link, and this fills a line of 100 Mbit/s with a round trip of 80 ms."""
STEPS_IN_FLIGHT = 2
"""A hop may always have this many steps, whatever their size: one that it computes and one that waits."""


@dataclass(slots=True)
class _Sent:
    """A step whose result is still to come. ``payload`` is kept to find out who is to blame for a bad one.
    ``is_alone``: no other was under way; ``is_behind``: steps that nobody waits for were."""

    step: int
    position: int
    tokens: int
    want: Want
    hold: bool
    payload: Payload
    at: float
    decoding: bool
    is_alone: bool
    is_behind: bool
    guess: int = 0
    branches: Branches = ()

    @property
    def own_tokens(self) -> int:
        """Those before its branches."""
        return self.tokens - rows_of(self.branches)

    @property
    def computed(self) -> int:
        """Rows that a hop computes for it."""
        return self.own_tokens + computed_rows(self.branches)


class Segment:
    """A run of open hops between two places where the client takes part; the ``hop.Listener`` of each of
    them.

    Everything that goes wrong raises BrokenError, and is in the state of the hop concerned. ``rows`` checks
    the rows that come out. ``doubts`` decides about hops that may only be slow. ``reader`` is given the rows
    that come out, to judge their codec by.
    """

    def __init__(
        self,
        hops: Sequence[HopClient],
        rows: RowWatch | None = None,
        doubts: Patient | None = None,
        reader: RowReader | None = None,
    ) -> None:
        self.hops = tuple(hops)
        self._reader = reader
        self.first, self.last = self.hops[0], self.hops[-1]
        self.trace = ChainTimings(tuple(hop.peer_id for hop in hops))
        self._rows = rows
        self._sent: deque[_Sent] = deque()
        self._inbox: deque[tuple[Result, float]] = deque()  # and when they came
        self._came_at = 0.0  # the last of them
        self._is_behind = False  # steps that nobody waits for may be under way
        self._in_flight = 0  # bytes of payload
        self._void = 0  # steps from this one on are void, up to the next that is sent; 0: none
        self._void_told = True  # to the hops behind the first, with a step
        self._void_tokens = 0  # of them, which may still be on their way
        self._taken_at = 0.0  # when the result came that was accounted last
        self._slowest_wire_s = 0.0  # of a decode step alone, since it was read last
        self._doubts = doubts
        self._watch = StepWatch(len(hops), self._work_within_s, self._transit_within_s, self._doubt_within_s)
        self._queue_s = 0.0  # that the hop which told last says of its steps
        self._broken = any(hop.state.is_troubled for hop in hops)
        self._waiter: asyncio.Future[None] | None = None  # of the receiver
        self._room: asyncio.Future[None] | None = None  # of the sender that waits
        for hop in hops:
            hop.listen(self)

    @property
    def is_chain(self) -> bool:
        return len(self.hops) > 1

    @property
    def codec(self) -> Codec:
        """The codec of what goes in."""
        return self.first.codec

    @property
    def reply_codec(self) -> Codec:
        """The codec of what comes out."""
        return self.last.reply_codec

    @property
    def awaited_payloads(self) -> Sequence[tuple[Payload, int]]:
        """The payload and token count of each step without a result: an error is about one of them."""
        return [(sent.payload, sent.tokens) for sent in self._sent]

    @property
    def awaited(self) -> int:
        """Steps without a result."""
        return len(self._sent)

    @property
    def oldest_step(self) -> int:
        """The number of the oldest of them."""
        return self._sent[0].step

    def take_slowest_wire_s(self) -> float:
        """The slowest wire time of the decode steps alone since the last call, in seconds."""
        slowest_s, self._slowest_wire_s = self._slowest_wire_s, 0.0
        return slowest_s

    def post(
        self,
        step: int,
        payload: Payload,
        tokens: int,
        position: int,
        want: Want,
        *,
        decoding: bool = False,
        hold: bool = False,
        guess: int = 0,
        branches: Branches = (),
    ) -> None:
        """Send a step of ``tokens`` encoded tokens, those of ``branches`` included, of which the last
        ``guess`` may be for nothing. Never waits; a caller that sends many awaits ``room`` first."""
        if self._broken:
            raise BrokenError
        first, void = self.first, 0 if self._void_told else self._void
        deadline_ms = min(MAX_RETRY_MS, first.deadline_ms * (1 + len(self._sent)))
        message = Step(
            *(first.session, step, position, tokens, want, deadline_ms, hold),
            void=void,
            guess=guess,
            branches=branches,
            payload=payload,
        )
        try:
            first.link.post(message)
        except LocalProtocolError:
            raise  # a fault of this process: no other hop would help
        except SwarmError as error:
            first.mark_lost(error)
            raise BrokenError from error
        self._void_told = True
        alone, behind = len(self._sent) == len(self._inbox), self._is_behind
        timing = perf_counter(), decoding, alone, behind
        self._sent.append(_Sent(step, position, tokens, want, hold, payload, *timing, guess, branches))
        self._in_flight += len(payload)
        for hop in self.hops:
            hop.link.watch()

    async def room(self, size: int) -> None:
        """Wait until a step of ``size`` bytes may be sent: every hop has one to compute and one that waits,
        and the line is full. One task at a time."""
        steps = STEPS_IN_FLIGHT * len(self.hops)
        while len(self._sent) >= steps and self._in_flight + size > IN_FLIGHT_BYTES:
            if self._broken:
                raise BrokenError
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def receive(self) -> Result:
        """The result of the oldest step that has none yet: of the right size, its values not decoded yet."""
        while not self._inbox:
            if self._broken:
                raise BrokenError
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._broken and self._inbox[0][0].step != self._sent[0].step:
            raise BrokenError  # a step was refused, and those behind it went on
        (result, came_at), sent = self._inbox.popleft(), self._sent.popleft()
        self._in_flight -= len(sent.payload)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        try:
            check_size(self.last, result)
        except RemoteProtocolError as error:
            self._sent.appendleft(sent)  # what it is about
            self.last.mark_lost(error)  # whatever it was sent, it could count the rows that it made of it
            raise BrokenError from error
        if (problem := self._problem(result, sent) or self._oddity(result, sent)) is not None:
            self._sent.appendleft(sent)
            self._mismatch(problem)
            raise BrokenError from problem
        self._void = self._void_tokens = 0
        self._account(result, sent, came_at)
        if self._reader is not None and is_sampled(result.position, result.tokens):
            last, rows = self.last, min(result.tokens, sent.own_tokens)
            self._reader.sampler.took(
                *(last.reply_codec, _first_rows(result.payload, result.tokens, rows), result.position, rows),
                *(address_group(last.link.remote_maddr), last.peer_id),
            )
        return result

    def forget_steps(self, void: int = 0) -> None:
        """Nobody waits for results of what was posted. The hops have to ignore answers to it. ``void``: the
        steps from that one on are void, which the next step tells the hops of a chain; 0: nobody is told."""
        if void:
            self._void, self._void_told = self._void or void, not self.is_chain
        self._is_behind = self._is_behind or len(self._sent) > len(self._inbox)
        for sent in self._sent:
            self._void_tokens += sent.tokens
            for trace in (self.trace, self.first.trace):
                trace.phase(sent.decoding).bytes_sent += len(sent.payload)
        self._sent.clear()
        self._inbox.clear()
        self._in_flight = 0
        self._wake(self._room)

    # What the hops tell.

    @property
    def _oldest(self) -> _Sent | None:
        """The oldest step whose result has not come. Those in the inbox have, and wait for their turn."""
        return self._sent[len(self._inbox)] if len(self._sent) > len(self._inbox) else None

    @property
    def waiting_since(self) -> float | None:
        """When the oldest step's turn came: those before it took their time."""
        oldest = self._oldest
        return max(oldest.at, self._came_at) if oldest is not None else None

    def question(self, hop: HopClient) -> StepTold | None:
        asked = self._oldest
        if asked is None:
            return None

        def told(progress: Progress, queue_s: float) -> None:
            if self._oldest is not asked or self._broken:
                return
            self._queue_s = queue_s
            number = self.hops.index(hop)
            verdict = self._watch.heard(number, progress, asked.step, perf_counter(), tokens=asked.own_tokens)
            if verdict is not None:
                self._convict(verdict)

        return told

    def _convict(self, verdict: Verdict) -> None:
        hop = self.hops[verdict.number]
        text = f"{hop.link.name} answers PING, but {verdict.reason}"
        match verdict.fault:
            case Fault.MUTE:
                hop.mark_lost(PeerMuteError(text))
            case Fault.LATE:
                hop.mark_lost(PeerTimeoutError(text))
            case Fault.SLOW:
                if self._doubts is not None and self._doubts.leave(hop.plan.hop):
                    hop.mark_lost(PeerLateError(text))
            case Fault.LOST:
                hop.suspect_upstream(PeerTimeoutError(text))

    def _work_within_s(self, number: int) -> float:
        oldest = self._oldest
        return self.hops[number].work_within_s(oldest.computed if oldest is not None else 1, self._queue_s)

    def _doubt_within_s(self, number: int) -> float:
        oldest = self._oldest
        if self._doubts is None or oldest is None:
            return inf
        return self._doubts.within_s(self.hops[number].expected_s(oldest.computed), self._queue_s)

    def _transit_within_s(self, number: int) -> float:
        before, hop = self.hops[number - 1], self.hops[number]
        row = hop.codec.row_bytes(hop.width)
        size = row * (self._void_tokens + sum(sent.tokens for sent in self._sent))
        return transit_within_s(
            size,
            max(before.link.round_trip_s, hop.link.round_trip_s),
            min(before.link.line_bytes_per_s, hop.link.line_bytes_per_s),
        )

    def take(self, hop: HopClient, result: Result) -> None:
        if hop is not self.last:
            hop.mark_lost(RemoteProtocolError(f"{hop.link.name} answered a step that it had to send on"))
            return
        if len(self._inbox) >= len(self._sent):
            self._mismatch(
                RemoteProtocolError(f"{hop.link.name}: RESULT of step {result.step} without a request")
            )
            return
        self._came_at = perf_counter()
        self._inbox.append((result, self._came_at))
        self._wake(self._waiter)

    def mark_broken(self) -> None:
        self._broken = True
        self._wake(self._waiter)
        self._wake(self._room)

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _mismatch(self, error: RemoteProtocolError) -> None:
        """A result that fits no step of ours: of a hop that was sent our step, nonsense; of one that another
        hop feeds, or has fed, it may be the right answer to a wrong step."""
        if self.is_chain or self.last.was_fed:
            self.last.suspect(error)
        else:
            self.last.mark_lost(error)

    def _problem(self, result: Result, sent: _Sent) -> RemoteProtocolError | None:
        own = sent.own_tokens
        rows = 0 if sent.hold else {Want.NOTHING: 0, Want.LAST: 1, Want.ALL: own}[sent.want]
        name = self.last.link.name
        if sent.want is Want.ALL and sent.branches and result.tokens == sent.tokens and not sent.hold:
            rows = own = sent.tokens  # no hop has left its branches out
        if result.step != sent.step or result.tokens != rows:
            return RemoteProtocolError(
                f"{name}: RESULT of step {result.step} with {result.tokens} rows, "
                f"not of step {sent.step} with {rows}"
            )
        if rows and result.position != sent.position + own - rows:
            return RemoteProtocolError(f"{name}: RESULT of another position, {result.position}")
        return None

    def _oddity(self, result: Result, sent: _Sent) -> RemoteProtocolError | None:
        """What is wrong with rows that no model computes."""
        if self._rows is None:
            return None
        name, codec, reply_codec = self.last.link.name, self.codec, self.reply_codec
        tokens = max(result.tokens, sent.own_tokens)  # those that the rows are the last of
        payload = _first_rows(sent.payload, sent.tokens, tokens)
        try:
            self._rows.check(name, codec, payload, tokens, reply_codec, result.payload, result.position)
        except RemoteProtocolError as error:
            return error
        return None

    def _account(self, result: Result, sent: _Sent, came_at: float) -> None:
        """Each hop says what a step cost it, no more in all than it took; the rest is the chain's wire. What
        was sent behind others took what came after their results."""
        hops, last = self.hops, self.last
        alone = sent.decoding and sent.is_alone
        since = sent.at if alone or not sent.decoding else max(sent.at, self._taken_at)
        self._taken_at, self._is_behind = came_at, self._is_behind and not sent.is_behind
        spent: list[tuple[int, int, int]] = []
        batches: list[int] = []
        if len(result.spent) == len(hops) - 1:  # else a hop left something out: use none of it
            spent = [(queue, compute, codec) for queue, compute, codec, _ in result.spent]
            batches = [batch for _, _, _, batch in result.spent]
        spent.append((result.queue_us, result.compute_us, result.codec_us))
        if sent.decoding:
            self._note_load((*batches, result.batch), sent, result.row_us)
        elapsed_s = max(0.0, came_at - since)
        told_s = sum(map(sum, spent)) * 1e-6
        unit_s = 1e-6 if told_s <= elapsed_s else 1e-6 * elapsed_s / told_s
        for hop, (queue, compute, codec) in zip(hops[-len(spent) :], spent, strict=True):
            hop.trace.phase(sent.decoding).spent(queue, compute, codec, unit_s)
            if alone:  # our own steps, which nobody waits for, are no queue of the hop's
                hop.trace.alone.spent(0 if sent.is_behind else queue, compute, codec, unit_s)
        wire_s = max(0.0, elapsed_s - told_s)
        for hop in hops:
            came = len(result.payload)
            if hop is not last:
                came = hop.reply_codec.payload_bytes(sent.tokens, hop.reply_width)
            alone_s = wire_s if hops[0] is last else 0.0
            phase = hop.trace.phase(sent.decoding)
            went = hop.codec.payload_bytes(sent.tokens, hop.width)
            phase.stepped(sent.tokens, went, came, alone_s)
            if alone:
                hop.trace.alone.stepped(sent.tokens, went, came, alone_s)
        self.trace.phase(sent.decoding).stepped(sent.tokens, len(sent.payload), len(result.payload), wire_s)
        if alone:
            self._slowest_wire_s = max(self._slowest_wire_s, wire_s)
            self.trace.alone.stepped(sent.tokens, len(sent.payload), len(result.payload), wire_s)

    def _note_load(self, batches: Sequence[int], sent: _Sent, row_us: int) -> None:
        """``batches``: with how many sessions the last hops computed a step; ``row_us``: of the last one."""
        if sent.guess < sent.tokens:
            for hop, batch in zip(self.hops[-len(batches) :], batches, strict=True):
                hop.trace.load.computed_with(batch)
        if sent.tokens > 1:
            for hop in self.hops[:-1]:  # what the last one tells comes with its results
                hop.link.ask_row_time()
                hop.trace.load.told(hop.link.row_us)
            self.last.trace.load.told(row_us)


def _first_rows(payload: Payload, rows: int, wanted: int) -> Payload:
    """Of a payload of ``rows`` rows the first ``wanted``."""
    return payload if rows == wanted else memoryview(payload)[: len(payload) // rows * wanted]


def check_size(hop: HopClient, result: Result) -> None:
    """Raises RemoteProtocolError if a payload does not have the size of its rows."""
    size = hop.reply_codec.payload_bytes(result.tokens, hop.reply_width)
    if len(result.payload) != size:
        raise RemoteProtocolError(
            f"{hop.link.name}: RESULT of {len(result.payload)} bytes; {result.tokens} rows take {size}",
            code=ErrorCode.BAD_TENSOR,
        )
