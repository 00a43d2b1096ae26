"""The client's side of one hop: a session on one node, over the client's link to it.

It opens the session, closes it, and rewires it (ATTACH, REPLAY). What else the node says goes into the hop's
state until a diagnosis looks at it: how the session failed, which neighbour the node has lost. Steps and
results belong to segments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Protocol, TypeVar

from ...swarm.errors import (
    ErrorCode,
    PeerMuteError,
    PeerTimeoutError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
)
from ...swarm.links.link import NodeLink, Reply, Told, span_problem, width_problem
from ...swarm.links.pool import LinkPool
from ...swarm.protocol.error_frames import error_of
from ...swarm.protocol.field_types import MAX_RETRY_MS, PAGE_TOKENS, Downstream, Progress
from ...swarm.protocol.messages import (
    Attach,
    Attached,
    Busy,
    Close,
    ErrorMessage,
    Open,
    Opened,
    Pong,
    Refused,
    Replay,
    Replayed,
    Result,
    Void,
    Welcome,
)
from ...swarm.protocol.wire import DEFAULT_MAX_FRAME, FIXED_HEADER, MAX_HEADER, Payload
from ...swarm.routing.prediction import decode_seconds, prefill_seconds
from ...swarm.timeouts import DIAL_CHAIN_S, work_within_s
from ...swarm.transport.direct_maddrs import way_of
from .plan import HopPlan, SessionSettings
from .requests import Requests
from .state import HopState
from .trace import HopTimings

FRAME_OVERHEAD = FIXED_HEADER.size + MAX_HEADER
REPLAY_TOKENS = 256
"""A replay goes in chunks of this many tokens. The hop sends the next chunk when the next hop has computed
the last one."""
NOBODY = b""
"""The next session of a hop whose next hop is lost: its results go nowhere."""

_Answer = TypeVar("_Answer", Opened, Attached, Replayed)
StepTold = Callable[[Progress, float], None]
"""Takes what a hop tells of its session, and how many seconds steps wait there."""


class Listener(Protocol):
    """What works with a hop: a segment, or a repair. None of these waits."""

    @property
    def waiting_since(self) -> float | None:
        """When (perf_counter) the oldest step without an answer was sent."""

    @property
    def is_chain(self) -> bool:
        """Several hops answer together."""

    @property
    def awaited_payloads(self) -> Sequence[tuple[Payload, int]]:
        """The payload and token count of each step without a result: an error is about one of them."""

    def take(self, hop: HopClient, result: Result) -> None: ...

    def question(self, hop: HopClient) -> StepTold | None:
        """Where is the oldest step without a result? None: there is no such step."""

    def mark_broken(self) -> None:
        """The hop's state has changed for the worse."""


class HopClient:
    """An open session on one node. Made by ``open``; ends with ``close``.

    ``width`` and ``reply_width``: values of the rows that come in and go out.
    ``length``: tokens that its KV cache held already when it opened. ``state``: what is known against it, and
    what it lacks. ``upstream`` and ``downstream`` are how it is wired now, as the node knows it: a peer id or
    "", a session, None (us) or NOBODY. ``was_fed``: by another hop, which may be the cause of what it holds
    and counts. ``features``: what else its node understands. ``names``: of its pages; None: they have none.
    ``misnamed``: they have none any more, and the node has yet to be told.
    """

    def __init__(self, plan: HopPlan, link: NodeLink, settings: SessionSettings, deadline_ms: int) -> None:
        self.plan = plan
        self.session = plan.session
        self.codec = plan.codec
        self.reply_codec = plan.reply_codec
        self.width = settings.boundaries.widths[plan.hop.span.start]
        self.reply_width = settings.boundaries.widths[plan.hop.span.end]
        self.link = link
        self.deadline_ms = deadline_ms
        self.state = HopState()
        self.trace = HopTimings(
            plan.hop.peer_id,
            plan.hop.span,
            plan.codec.kind,
            name=plan.hop.name,
            codec_on=plan.reply_codec.kind,
        )
        self.listener: Listener | None = None
        self.max_step_tokens = 0
        self.length = 0
        self.features: tuple[str, ...] = ()
        self.first_step = 0  # answers to steps before it are ignored
        self.names = plan.names
        self.misnamed = False
        self.upstream = plan.upstream
        self.was_fed = bool(plan.upstream)
        self.downstream: bytes | None = None
        self.downstream_rtt_s: float | None = None
        self._settings = settings
        self._requests = Requests()
        self._closed = False

    @classmethod
    async def open(cls, links: LinkPool, plan: HopPlan, settings: SessionSettings) -> HopClient:
        """Open a session on the node, dialling it if need be.

        Raises NetworkError's subclasses, BusyError, ModelMismatchError, PeerError and RemoteProtocolError.
        """
        link = await links.get(plan.hop.peer_id, plan.hop.maddrs)
        deadline_ms = max(1, min(MAX_RETRY_MS, int(links.patience.step_s * 1000)))
        client = cls(plan, link, settings, deadline_ms)
        client.trace.ways.here = str(way_of(link.remote_maddr))
        try:
            await client._open()
        except BaseException:
            client.close()
            raise
        return client

    @property
    def peer_id(self) -> str:
        return self.plan.hop.peer_id

    @property
    def row_bytes(self) -> int:
        """Of a row that goes in or comes out, whichever is larger."""
        return max(self.codec.row_bytes(self.width), self.reply_codec.row_bytes(self.reply_width))

    @property
    def failure(self) -> SwarmError | None:
        """What ended the session."""
        return self.state.failure

    def downstream_for(self) -> Downstream:
        """How another hop is told to send its results here."""
        return Downstream(self.peer_id, self.session, self.plan.hop.record)

    async def attach(self, upstream: str, *, unnamed: bool = False) -> int:
        """Let the peer ``upstream`` ("": us) feed the session from now on; how many tokens it holds.
        ``unnamed``: what comes now was computed by others, so its pages have no names."""
        self.was_fed = self.was_fed or bool(upstream)
        attached = await self._ask(Attach(self.session, upstream, unnamed), Attached)
        if unnamed:
            self.names, self.misnamed = None, False
        if upstream != self.upstream:
            self.state = self.state.attached()  # answers keep their order
        self.upstream = upstream
        return attached.length

    async def replay(self, start: int, until: int, step: int, to: Downstream | None) -> Replayed:
        """Send what was computed for positions [start, until) to ``to`` (None: here), and what comes after.

        ``step`` and the ``until - start`` numbers after it are the replay's. Raises ReplayRefusedError, or
        the session's error.
        """
        self.downstream = NOBODY
        try:
            done = await self._ask(Replay(self.session, start, until, step, to), Replayed)
        finally:
            self.state = self.state.replayed()  # what is lost now is said again by the answer
        self.downstream = None if to is None else to.session
        self.trace.ways.on = done.way
        return done

    def close(self, ids: Sequence[int] = ()) -> None:
        """Free the session's KV cache on the node. Never waits. Idempotent.

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

    # What its route's session and its repair change.

    def listen(self, listener: Listener | None) -> None:
        """Tell only ``listener`` what happens from now on."""
        self.listener = listener

    def void(self, first: int, last: int) -> None:
        """Nobody wants the results of the steps from ``first`` to ``last``. Never waits."""
        if self.failure is None and self.link.failure is None:
            self.link.post(Void(self.session, first, last))

    def ignore_before(self, step: int) -> None:
        """From now on ignore answers to steps before ``step``."""
        self.first_step = step

    def forget_names(self) -> None:
        """Its pages are not what their names would say."""
        self.misnamed = self.misnamed or self.names is not None
        self.names = None

    def lacks(self, position: int) -> None:
        """It lacks what the others have computed, from ``position`` on."""
        self.state = self.state.lacks(position)

    def fed(self) -> None:
        """It lacks nothing any more."""
        self.state = self.state.fed()

    def clear(self) -> None:
        """What was known against it is in a diagnosis, and it may go on."""
        self.state = self.state.cleared()

    def suspect(self, error: SwarmError) -> None:
        """A step went wrong here, for which the hop before may be to blame."""
        self.state = self.state.step_failed(error, ErrorCode.BAD_STEP)
        self._tell()

    def suspect_upstream(self, error: SwarmError) -> None:
        """What the hop before it has sent does not arrive."""
        self.state = self.state.upstream_is_lost(error)
        self._tell()

    def mark_lost(self, error: SwarmError) -> None:
        """The session is over, and it is this hop's doing."""
        self.state = self.state.lost(error)
        self._requests.fail(self.state.failure or error)
        self._tell()

    def _tell(self) -> None:
        if self.listener is not None:
            self.listener.mark_broken()

    # What the link tells.

    @property
    def waiting_since(self) -> float | None:
        listening = self.listener.waiting_since if self.listener is not None else None
        asked = self._requests.since
        if listening is None or asked is None:
            return listening or asked
        return min(listening, asked)

    def question(self) -> Told:
        """Ask where its requests are, and look at the answer: what was sent before the question has come
        before it, and what the node had to say before the answer has come before that."""
        asked = self._requests.pending
        of_step = self.listener.question(self) if self.listener is not None else None

        def told(progress: Progress | None, pong: Pong) -> None:
            if self.failure is not None or self._closed:
                return
            queue_s = pong.queue_us * 1e-6
            if progress is None:
                self.mark_lost(self._mute("does not know a session that it was asked to open"))
            elif asked is not None and asked is self._requests.pending:
                self._look_at_request(progress, queue_s)
            if of_step is not None and progress is not None and self.failure is None:
                of_step(progress, queue_s)

        return told

    def _mute(self, what: str) -> PeerMuteError:
        return PeerMuteError(f"{self.link.name} answers PING, but {what}")

    def expected_s(self, tokens: int) -> float:
        """Seconds that a step of ``tokens`` tokens should take here: as measured, and not less than
        announced."""
        alone, prefill = self.trace.alone, self.trace.prefill
        if tokens == 1:
            expected_s = alone.compute_s / max(1, alone.steps)
        else:
            expected_s = prefill.compute_s / max(1, prefill.tokens) * tokens
        if self.plan.announced is None:
            return expected_s
        token_s = (decode_seconds if tokens == 1 else prefill_seconds)(self.plan.announced)
        return max(expected_s, token_s * len(self.plan.hop.span) * tokens)

    def work_within_s(self, tokens: int, queue_s: float) -> float:
        """Seconds for which the node may show no progress with ``tokens`` tokens."""
        cold = not (self.trace.decode.steps or self.trace.prefill.steps)
        most_s = self.deadline_ms / 1000
        return work_within_s(self.expected_s(tokens), queue_s, cold=cold, most_s=most_s)

    def _look_at_request(self, told: Progress, queue_s: float) -> None:
        """The node has not answered what it was asked, and tells so of the session."""
        expected, since = self._requests.expected, self._requests.since
        what = "ATTACH" if expected is Attached else "REPLAY" if expected is Replayed else "OPEN"
        waited_s = perf_counter() - (since or perf_counter())
        dials = expected is Opened and self.plan.downstream is not None
        if not told.busy or not (dials or expected is Replayed):
            self.mark_lost(self._mute(f"does not answer {what}"))
        elif dials:
            if waited_s > DIAL_CHAIN_S + 2 * self.link.round_trip_s:
                self.mark_lost(PeerTimeoutError(f"{self.link.name} did not answer OPEN for {waited_s:.1f} s"))
        else:
            still_s = self._requests.still_s(told.work)
            if still_s > self.work_within_s(REPLAY_TOKENS, queue_s):
                self.mark_lost(PeerTimeoutError(f"{self.link.name} replays nothing for {still_s:.0f} s"))

    def deliver(self, reply: Reply) -> None:
        match reply:
            case Result():
                if reply.step >= self.first_step and self.listener is not None:
                    self.listener.take(self, reply)
            case ErrorMessage():
                self._heard_error(reply)
            case _ if not self._requests.take(reply):
                name = type(reply).__name__.upper()
                self.fail(RemoteProtocolError(f"{self.link.name} sent {name} without a request"))

    def fail(self, error: SwarmError) -> None:
        listener = self.listener
        late = isinstance(error, PeerTimeoutError) and self.link.failure is None
        if late and listener is not None and listener.is_chain and self._requests.since is None:
            self.state = self.state.chain_stalled(error)  # it is not known whose fault that is
            self._tell()
        else:
            self.mark_lost(error)

    def _heard_error(self, message: ErrorMessage) -> None:
        step, code, error = message.step, message.code, error_of(message, self.peer_id)
        requests, replaying = self._requests, self._requests.replay_step
        if replaying is not None and (step == replaying or (step is None and code is ErrorCode.JOURNAL_LOST)):
            requests.refuse_replay(error, code)
        elif requests.is_replay(step):
            return  # a replay that was given up
        elif step is not None:
            if step < self.first_step:
                return  # of a step that nobody waits for
            self.state = self.state.step_failed(error, code)
        elif code is ErrorCode.DOWNSTREAM_LOST:
            self.state = self.state.downstream_is_lost(error, self.downstream)
            self.downstream = NOBODY
            if replaying is not None:  # of the hop before, or of this replay: REPLAYED may yet come
                requests.refuse_replay_soon(max(0.3, 4 * self.link.round_trip_s), error, code)
        elif code is ErrorCode.UPSTREAM_LOST:
            self.state = self.state.upstream_is_lost(error)
        else:
            self.mark_lost(error)
        self._tell()

    # Asking.

    async def _ask(self, message: Open | Attach | Replay, expected: type[_Answer]) -> _Answer:
        if self.failure is not None:
            raise self.failure
        with self._requests.asking(message, expected) as answer:
            self.link.post(message)
            self.link.watch()
            if isinstance(message, Open):
                # Shielded: one session's end must not take the answer from the others.
                welcome = await asyncio.shield(self.link.welcome)
                if (problem := self._problem(welcome)) is not None:
                    raise problem
            reply = await answer
        if not isinstance(reply, expected):
            raise self._unexpected(reply)
        return reply

    async def _open(self) -> None:
        plan, settings, link = self.plan, self._settings, self.link
        prefix = plan.names.of(plan.ids) if plan.names is not None else ()
        link.join(self.session, self)
        opened = await self._ask(
            Open(
                session=self.session,
                span=plan.hop.span,
                max_tokens=settings.max_tokens,
                codec=self.codec.name,
                reply_codec=self.reply_codec.name,
                hop=plan.number,
                hops=plan.hops,
                prefix=prefix,
                upstream=plan.upstream,
                downstream=plan.downstream,
                journal=plan.number < plan.hops - 1,
                parent=plan.parent,
                parent_tokens=plan.parent_tokens,
                scales=tuple(dict.fromkeys(filter(None, (self.codec.exponents, self.reply_codec.exponents)))),
            ),
            Opened,
        )
        welcome = link.welcome.result()
        self.features = welcome.features
        fits = (min(welcome.max_frame, DEFAULT_MAX_FRAME) - FRAME_OVERHEAD) // self.row_bytes
        self.max_step_tokens = min(opened.max_step_tokens, fits)
        if self.max_step_tokens < 1:
            raise RemoteProtocolError(f"{link.name}: frames of {welcome.max_frame} bytes hold no token")
        self.length = self._checked_length(opened.length, welcome, len(prefix))
        if plan.downstream is not None and opened.chained:
            self.downstream, self.downstream_rtt_s = plan.downstream.session, opened.link_us * 1e-6
            self.trace.ways.on = opened.way

    def _problem(self, welcome: Welcome) -> SwarmError | None:
        hop, name = self.plan.hop, self.link.name
        return (
            span_problem(welcome, hop, self.codec.kind, name)
            or span_problem(welcome, hop, self.reply_codec.kind, name)
            or width_problem(welcome, self._settings.boundaries, name)
        )

    def _checked_length(self, length: int, welcome: Welcome, pages: int) -> int:
        plan = self.plan
        if plan.parent is not None:
            if length != plan.parent_tokens:
                raise RemoteProtocolError(
                    f"{self.link.name}: a fork of {plan.parent_tokens} tokens holds {length}"
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
        return RemoteProtocolError(f"{self.link.name}: {name} is not an answer here")
