"""The client's side of one hop: a session on one node, over the client's link to it.

Opens it, closes it, and rewires it (ATTACH, REPLAY). What else the node says is kept here until somebody
looks: how the session failed, which neighbour the node has lost. Steps and results are a segment's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, TypeVar

from ...swarm.codecs.activations import payload_bytes
from ...swarm.errors import (
    ErrorCode,
    PeerMuteError,
    PeerTimeoutError,
    RemoteProtocolError,
    ReplayRefusedError,
    StreamClosedError,
    SwarmError,
)
from ...swarm.links.link import NodeLink, Reply, Told, span_problem
from ...swarm.links.pool import LinkPool
from ...swarm.protocol.error_frames import error_of
from ...swarm.protocol.messages import (
    MAX_RETRY_MS,
    PAGE_TOKENS,
    Attach,
    Attached,
    Busy,
    Close,
    Downstream,
    ErrorMessage,
    Open,
    Opened,
    Pong,
    Progress,
    Refused,
    Replay,
    Replayed,
    Result,
    Welcome,
)
from ...swarm.protocol.wire import DEFAULT_MAX_FRAME, FIXED_HEADER, MAX_HEADER, Payload
from ...swarm.routing.prediction import decode_seconds, prefill_seconds
from ...swarm.timeouts import DIAL_CHAIN_S, work_within_s
from ...swarm.types import Hop, NodeInfo
from ..routing.prefix import PageNames
from .trace import HopTrace

FRAME_OVERHEAD = FIXED_HEADER.size + MAX_HEADER
REPLAY_TOKENS = 256
"""Of a chunk of a replay: what a hop waits for until the next hop has computed it."""
NOBODY = b""
"""Where a hop's results go when its next hop is lost."""

_Answer = TypeVar("_Answer", Opened, Attached, Replayed)
StepTold = Callable[[Progress, float], None]
"""Takes what a hop tells of its session, and how many seconds steps wait there."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What all hops of a session share. ``max_tokens``: KV cache to reserve, in tokens. ``embedding_rms``:
    root mean square of the model's usual embedding, 0 where it is not known."""

    hidden_size: int
    max_tokens: int
    embedding_rms: float = 0.0


@dataclass(frozen=True, slots=True)
class Seat:
    """A hop's place in a route, before it is open.

    ``session`` is chosen before any OPEN, so that each can name the next. ``codec`` is of what comes in,
    ``reply_codec`` of what goes out, ``weights`` as announced. ``upstream`` and ``downstream`` as in OPEN.
    ``chain`` names the pages of ``ids`` that the node may hold already. ``parent``: the session on that node
    whose first ``parent_tokens`` tokens it begins with.
    """

    hop: Hop
    number: int
    hops: int
    session: bytes
    codec: str
    reply_codec: str
    weights: str = ""
    upstream: str = ""
    downstream: Downstream | None = None
    names: PageNames | None = None
    ids: Sequence[int] = ()
    parent: bytes | None = None
    parent_tokens: int = 0


class Listener(Protocol):
    """Who works with a hop. None of these waits."""

    @property
    def waiting_since(self) -> float | None:
        """When (perf_counter) the oldest step without an answer was sent."""

    @property
    def is_chain(self) -> bool:
        """Several hops answer together."""

    @property
    def awaited_payload(self) -> tuple[Payload, int] | None:
        """The payload and token count of the oldest step without a result: what an error is about."""

    def take(self, hop: HopClient, result: Result) -> None: ...

    def question(self, hop: HopClient) -> StepTold | None:
        """Where is the oldest step without a result? None: there is no such step."""

    def trouble(self) -> None:
        """One of the hop's ``troubled`` fields has changed."""


class HopClient:
    """An open session on one node. Made by ``open``; ends with ``close``.

    ``length``: tokens that its KV cache held already when it opened. ``upstream`` and ``downstream`` are how
    it is wired now, as the node knows it: a peer id or "", a session, None (us) or NOBODY. ``hungry_from``:
    position from which it lacks what the other hops have computed; None: it lacks nothing. ``was_fed``: by
    another hop, so that what it holds and counts may be that one's doing. ``names``: of its
    pages; None: they have none. ``misnamed``: they have none any more, and the node has yet to be told.
    ``announced``: the node's announcement, if it is known.

    Troubles: ``failure`` ends the session here; ``step_error`` one step; ``stalled``: a chain that it is in
    answered nothing for too long; ``upstream_lost`` and ``downstream_lost`` are what it says of neighbours.
    """

    def __init__(self, seat: Seat, link: NodeLink, settings: SessionSettings, deadline_ms: int) -> None:
        self.hop = seat.hop
        self.session = seat.session
        self.codec = seat.codec
        self.reply_codec = seat.reply_codec
        self.weights = seat.weights
        self.names = seat.names
        self.misnamed = False
        self.link = link
        self.deadline_ms = deadline_ms
        self.trace = HopTrace(seat.hop.peer_id, seat.hop.span, seat.codec)
        self.max_step_tokens = 0
        self.length = 0
        self.first_step = 0  # answers to steps before it are of no interest any more
        self.upstream = seat.upstream
        self.was_fed = bool(seat.upstream)
        self.asked_downstream = seat.downstream is not None
        self.downstream: bytes | None = None
        self.downstream_rtt_s: float | None = None
        self.unchained_reason = ""
        self.hungry_from: int | None = None
        self.failure: SwarmError | None = None
        self.step_error: SwarmError | None = None
        self.step_error_code = ErrorCode.INTERNAL
        self.stalled: SwarmError | None = None
        self.upstream_lost: SwarmError | None = None
        self.downstream_lost: SwarmError | None = None
        self.lost_downstream: bytes | None = None  # the session that ``downstream_lost`` is about
        self.listener: Listener | None = None
        self.announced: NodeInfo | None = None
        self._settings = settings
        self._answer: asyncio.Future[Reply] | None = None
        self._expected: type[Opened] | type[Attached] | type[Replayed] | None = None
        self._asked_since: float | None = None
        self._replay_step: int | None = None
        self._replay_work = -1  # what the node told last of a replay under way, and when that was new
        self._replay_work_at = 0.0
        self._attaches = 0  # asked for and not answered
        self._replays = 0  # asked for, and perhaps not answered yet
        self._replay_steps: set[int] = set()  # all that were ever asked for
        self._grace: asyncio.TimerHandle | None = None
        self._closed = False

    @classmethod
    async def open(cls, links: LinkPool, seat: Seat, settings: SessionSettings) -> HopClient:
        """Open a session on the node, dialling it if need be.

        Raises NetworkError's subclasses, BusyError, ModelMismatchError, PeerError and RemoteProtocolError.
        """
        link = await links.get(seat.hop.peer_id, seat.hop.maddrs)
        deadline_ms = max(1, min(MAX_RETRY_MS, int(links.patience.step_s * 1000)))
        client = cls(seat, link, settings, deadline_ms)
        try:
            await client._open(seat)
        except BaseException:
            client.close()
            raise
        return client

    @property
    def peer_id(self) -> str:
        return self.hop.peer_id

    @property
    def troubled(self) -> bool:
        return bool(
            self.failure or self.step_error or self.stalled or self.upstream_lost or self.downstream_lost
        )

    def downstream_for(self) -> Downstream:
        """How another hop is told to send its results here."""
        return Downstream(self.peer_id, self.session, self.hop.record)

    async def attach(self, upstream: str, *, unnamed: bool = False) -> int:
        """Let the peer ``upstream`` ("": us) feed the session from now on; how many tokens it holds.
        ``unnamed``: what comes now was computed by others, so its pages have no names."""
        self._attaches += 1
        self.was_fed = self.was_fed or bool(upstream)
        attached = await self._ask(Attach(self.session, upstream, unnamed), Attached)
        if unnamed:
            self.names, self.misnamed = None, False
        if upstream != self.upstream:
            self.upstream_lost = None  # said of the one before: answers keep their order
        self.upstream = upstream
        return attached.length

    async def replay(self, start: int, until: int, step: int, to: Downstream | None) -> Replayed:
        """Send what was computed for positions [start, until) to ``to`` (None: here), and what comes after.

        ``step`` and the ``until - start`` numbers after it are the replay's. Raises ReplayRefusedError, or
        what the session failed of.
        """
        self.downstream, self._replay_step = NOBODY, step
        self._replays += 1
        self._replay_steps.add(step)
        try:
            done = await self._ask(Replay(self.session, start, until, step, to), Replayed)
        finally:
            self._replay_step = None
            self.downstream_lost = None  # said of the one before, or said again by the answer
            if self._grace is not None:
                self._grace.cancel()
                self._grace = None
        self.downstream = None if to is None else to.session
        return done

    def close(self, ids: Sequence[int] = ()) -> None:
        """Free the session's KV cache on the node. Never waits; may be called again.

        ``ids``: all that was fed, so that the node can keep its whole pages for a session that begins with
        them.
        """
        if self._closed:
            return
        self._closed = True
        if self.link.failure is None:
            self.link.post(Close(self.session, self.names.of(ids) if self.names else ()))
        self.link.leave(self.session)
        self.fail(StreamClosedError("the session was closed on this side"))

    # What the link tells.

    @property
    def waiting_since(self) -> float | None:
        listening = self.listener.waiting_since if self.listener is not None else None
        asked = self._asked_since
        if listening is None or asked is None:
            return listening or asked
        return min(listening, asked)

    def question(self) -> Told:
        """Ask where its requests are, and look at the answer: what was sent before the question has come
        before it, and what the node had to say before the answer has come before that."""
        asked = self._answer if self._answer is not None and not self._answer.done() else None
        of_step = self.listener.question(self) if self.listener is not None else None

        def told(progress: Progress | None, pong: Pong) -> None:
            if self.failure is not None or self._closed:
                return
            queue_s = pong.queue_us * 1e-6
            if progress is None:
                self.end(self._mute("knows nothing of a session that it was asked to open"))
            elif asked is not None and asked is self._answer and not asked.done():
                self._look_at_request(progress, queue_s)
            if of_step is not None and progress is not None and self.failure is None:
                of_step(progress, queue_s)

        return told

    def _mute(self, what: str) -> PeerMuteError:
        return PeerMuteError(f"{self.link.name} answers PING, but {what}")

    def expected_s(self, tokens: int) -> float:
        """Seconds that a step of ``tokens`` tokens should take here: as measured, and not less than
        announced."""
        seen = self.trace.decode if tokens == 1 else self.trace.prefill
        expected_s = seen.compute_s / seen.tokens * tokens if seen.tokens else 0.0
        if self.announced is None:
            return expected_s
        token_s = (decode_seconds if tokens == 1 else prefill_seconds)(self.announced)
        return max(expected_s, token_s * len(self.hop.span) * tokens)

    def work_within_s(self, tokens: int, queue_s: float) -> float:
        """Seconds for which the node may show no progress with ``tokens`` tokens."""
        cold = not (self.trace.decode.steps or self.trace.prefill.steps)
        most_s = self.deadline_ms / 1000
        return work_within_s(self.expected_s(tokens), queue_s, cold=cold, most_s=most_s)

    def _look_at_request(self, told: Progress, queue_s: float) -> None:
        """The node has not answered what it was asked, and tells so of the session."""
        what = "ATTACH" if self._expected is Attached else "REPLAY" if self._expected is Replayed else "OPEN"
        waited_s = perf_counter() - (self._asked_since or perf_counter())
        dials = self._expected is Opened and self.asked_downstream
        if not told.busy or not (dials or self._expected is Replayed):
            self.end(self._mute(f"leaves {what} without an answer"))
        elif dials:
            if waited_s > DIAL_CHAIN_S + 2 * self.link.round_trip_s:
                self.end(PeerTimeoutError(f"{self.link.name} did not answer OPEN for {waited_s:.1f} s"))
        else:
            if told.work != self._replay_work:
                self._replay_work, self._replay_work_at = told.work, perf_counter()
            still_s = perf_counter() - max(self._replay_work_at, self._asked_since or 0.0)
            if still_s > self.work_within_s(REPLAY_TOKENS, queue_s):
                self.end(PeerTimeoutError(f"{self.link.name} replays nothing for {still_s:.0f} s"))

    def deliver(self, reply: Reply) -> None:
        waiting = self._answer is not None and not self._answer.done()
        match reply:
            case Result():
                if reply.step >= self.first_step and self.listener is not None:
                    self.listener.take(self, reply)
            case ErrorMessage():
                self._heard_error(reply)
            case Replayed() if self._replays and not (waiting and self._expected is Replayed):
                self._replays -= 1  # of one that was given up; the node may leave out such answers
            case Attached() if self._attaches > (waiting and self._expected is Attached):
                self._attaches -= 1  # likewise, but it answers each
            case _ if self._answer is not None and waiting:
                # Counted now: whoever waits may be cancelled before it sees the answer.
                self._replays -= isinstance(reply, Replayed) and self._replays > 0
                self._attaches -= isinstance(reply, Attached) and self._attaches > 0
                self._answer.set_result(reply)
            case _:
                name = type(reply).__name__.upper()
                self.fail(RemoteProtocolError(f"{self.link.name} says {name}, for which nobody has asked"))

    def fail(self, error: SwarmError) -> None:
        listener = self.listener
        late = isinstance(error, PeerTimeoutError) and self.link.failure is None
        if late and listener is not None and listener.is_chain and self._answer is None:
            self.stalled = self.stalled or error  # nobody knows whose fault it is
            listener.trouble()
        else:
            self.end(error)

    def doubt(self, error: SwarmError) -> None:
        """A step went wrong here, for which the hop before may be to blame."""
        if self.step_error is None:
            self.step_error, self.step_error_code = error, ErrorCode.BAD_STEP
        if self.listener is not None:
            self.listener.trouble()

    def end(self, error: SwarmError) -> None:
        """The session is over, and it is this hop's doing."""
        if self.failure is None:
            self.failure = error
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self.failure)
        if self.listener is not None:
            self.listener.trouble()

    def _heard_error(self, message: ErrorMessage) -> None:
        step, code, error = message.step, message.code, error_of(message, self.peer_id)
        if self._replay_step is not None and (
            step == self._replay_step or (step is None and code is ErrorCode.JOURNAL_LOST)
        ):
            self._refuse_replay(error, code)
        elif step in self._replay_steps:
            pass  # a replay that was given up
        elif step is not None:
            if step >= self.first_step and self.step_error is None:
                self.step_error, self.step_error_code = error, code
        elif code is ErrorCode.DOWNSTREAM_LOST:
            self.downstream_lost = error
            if self._replay_step is None:
                self.lost_downstream, self.downstream = self.downstream, NOBODY
            elif self._grace is None:  # of the hop before, or of this replay: REPLAYED may yet come
                wait = max(0.3, 4 * self.link.round_trip_s)
                self._grace = asyncio.get_running_loop().call_later(wait, self._refuse_replay, error, code)
        elif code is ErrorCode.UPSTREAM_LOST:
            self.upstream_lost = error
        else:
            self.end(error)
        if self.listener is not None:
            self.listener.trouble()

    def _refuse_replay(self, error: SwarmError, code: ErrorCode) -> None:
        if self._answer is not None and not self._answer.done():  # REPLAYED may come all the same
            journal_lost = code is ErrorCode.JOURNAL_LOST
            self._answer.set_exception(ReplayRefusedError(error, journal_lost=journal_lost))

    # Asking.

    async def _ask(self, message: Open | Attach | Replay, expected: type[_Answer]) -> _Answer:
        if self.failure is not None:
            raise self.failure
        self._answer = answer = asyncio.get_running_loop().create_future()
        self._expected = expected
        self._asked_since = perf_counter()
        try:
            self.link.post(message)
            self.link.watch()
            if isinstance(message, Open):
                # Shielded: one session's end must not take the answer from the others.
                welcome = await asyncio.shield(self.link.welcome)
                if (problem := self._problem(welcome)) is not None:
                    raise problem
            reply = await answer
        finally:
            self._answer = self._expected = self._asked_since = None
            if answer.done() and not answer.cancelled():
                answer.exception()  # looked at, whoever gave up waiting
        if not isinstance(reply, expected):
            raise self._unexpected(reply)
        return reply

    async def _open(self, seat: Seat) -> None:
        settings, link = self._settings, self.link
        prefix = seat.names.of(seat.ids) if seat.names is not None else ()
        link.join(self.session, self)
        opened = await self._ask(
            Open(
                session=self.session,
                span=self.hop.span,
                max_tokens=settings.max_tokens,
                codec=self.codec,
                reply_codec=self.reply_codec,
                hop=seat.number,
                hops=seat.hops,
                prefix=prefix,
                upstream=seat.upstream,
                downstream=seat.downstream,
                journal=seat.number < seat.hops - 1,
                parent=seat.parent,
                parent_tokens=seat.parent_tokens,
            ),
            Opened,
        )
        welcome = link.welcome.result()
        row = max(payload_bytes(codec, 1, settings.hidden_size) for codec in (self.codec, self.reply_codec))
        fits = (min(welcome.max_frame, DEFAULT_MAX_FRAME) - FRAME_OVERHEAD) // row
        self.max_step_tokens = min(opened.max_step_tokens, fits)
        if self.max_step_tokens < 1:
            raise RemoteProtocolError(f"{link.name}: frames of {welcome.max_frame} bytes hold no token")
        self.length = self._checked_length(opened.length, welcome, len(prefix), seat)
        if seat.downstream is not None:
            if opened.chained:
                self.downstream, self.downstream_rtt_s = seat.downstream.session, opened.link_us * 1e-6
            else:
                self.unchained_reason = opened.reason or "no reason given"

    def _problem(self, welcome: Welcome) -> SwarmError | None:
        return span_problem(welcome, self.hop, self.codec, self.link.name) or span_problem(
            welcome, self.hop, self.reply_codec, self.link.name
        )

    def _checked_length(self, length: int, welcome: Welcome, pages: int, seat: Seat) -> int:
        if seat.parent is not None:
            if length != seat.parent_tokens:
                raise RemoteProtocolError(
                    f"{self.link.name}: a fork of {seat.parent_tokens} tokens holds {length}"
                )
            return length
        offered = pages * PAGE_TOKENS if welcome.page_tokens == PAGE_TOKENS else 0
        if length > offered or length % PAGE_TOKENS:
            raise RemoteProtocolError(
                f"{self.link.name}: a new session holds {length} tokens already, "
                f"not whole pages of the {offered} that it may know"
            )
        return length

    def _unexpected(self, message: Reply) -> SwarmError:
        if isinstance(message, ErrorMessage | Refused | Busy):
            return error_of(message, self.peer_id)
        name = type(message).__name__.upper()
        return RemoteProtocolError(f"{self.link.name}: {name} is no answer here")
