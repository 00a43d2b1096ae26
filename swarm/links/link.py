"""One stream to one node, shared by all sessions that its opener, a client or the node before, has there.

OPEN follows HELLO at once, so that a first session costs one round trip after the dial; every other session
on a live link costs one round trip and no dial. What several sessions send in one turn of the event loop
leaves in one write, their steps in one frame. A node that is silent while a session waits for it gets a PING,
once a link; when that is not answered either, or the stream ends, every session on the link fails with the
same error.

``timers`` decides when a peer is asked, and when it counts as gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import inf
from time import perf_counter
from time import time as wall_clock
from typing import Protocol

from ..boundaries import Boundaries
from ..codecs.names import KINDS
from ..errors import (
    ErrorCode,
    LocalProtocolError,
    ModelMismatchError,
    PeerError,
    PeerTimeoutError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
    other_root_hint,
)
from ..protocol.error_frames import error_of
from ..protocol.field_types import MAX_ABOUT, MAX_MEMBERS, Progress
from ..protocol.messages import (
    Attached,
    Busy,
    ErrorMessage,
    Hello,
    Message,
    Opened,
    Ping,
    Pong,
    Refused,
    Replayed,
    Result,
    Results,
    Step,
    Welcome,
)
from ..protocol.wire import DEFAULT_MAX_FRAME
from ..timeouts import Patience
from ..transport.interface import Stream
from ..types import Hop, ModelRef, NodeInfo, short_peer_id
from . import timers
from .message_stream import Connection
from .outbox import Outbox
from .timers import AskNow, Heard, LinkTimers, LinkVerdict, LookAgain, PeerGone, Unused

logger = logging.getLogger(__name__)

PROTOCOL_VERSION = 1
Reply = Opened | Busy | Refused | Result | ErrorMessage | Replayed | Attached
"""What a node says to one session."""


ROW_TIME_S = 2.0
"""A node is asked this often, in seconds, what a row takes, while guesses are sent to it: a PING of a few
bytes, where a round of guesses has thousands."""
Told = Callable[[Progress | None, Pong], None]
"""Takes what the node tells of one session (None: nothing), and the PONG that it comes in."""


class LinkUser(Protocol):
    """A session on a link. None of these waits."""

    @property
    def waiting_since(self) -> float | None:
        """When (perf_counter) it sent its oldest request without an answer; None: it waits for nothing."""

    def question(self) -> Told | None:
        """What it has to ask about its session now, and the function that takes the answer."""

    def deliver(self, reply: Reply) -> None: ...

    def fail(self, error: SwarmError) -> None:
        """The link has failed with ``error``: nothing more will come."""


@dataclass(slots=True)
class _Asked:
    """A PING without its PONG. ``answer`` gets its round trip. ``about`` gets what is told of each
    session."""

    answer: asyncio.Future[float] | None
    about: dict[bytes, Told]


class NodeLink:
    """A live stream. ``welcome`` is done when the node has answered HELLO, or the link has failed.

    ``row_us``: microseconds that one row more in a batch takes there, as PONG told last; 0: it is not known.
    ``siblings``: the links of the same pool, this one too. ``max_frame``: bytes of a frame that is accepted.
    """

    def __init__(
        self,
        stream: Stream,
        model: ModelRef,
        agent: str,
        patience: Patience,
        on_end: Callable[[], None],
        siblings: Collection[NodeLink] = (),
        max_frame: int = DEFAULT_MAX_FRAME,
    ) -> None:
        self.failure: SwarmError | None = None
        self.row_us = 0  # as the node told last
        self._connection = Connection(stream, max_frame)
        self._model = model
        self._patience = patience
        self._on_end = on_end
        self._users: dict[bytes, LinkUser] = {}
        self._outbox = Outbox(DEFAULT_MAX_FRAME)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when it goes off, on the loop's clock
        self._siblings = siblings
        self._row_asked_at = -inf
        self._asked: dict[int, _Asked] = {}  # by nonce, the oldest first
        self._timers = LinkTimers(patience, perf_counter(), wall_clock())
        self.welcome: asyncio.Future[Welcome] = self._loop.create_future()
        self.post(
            Hello(
                (PROTOCOL_VERSION,),
                model.digest,
                KINDS,
                DEFAULT_MAX_FRAME,
                agent,
                parts=model.parts,
                root=model.root,
                members=MAX_MEMBERS,
            )
        )
        self._reader = self._loop.create_task(self._read())
        self._wake_in(timers.IDLE_S)

    @property
    def peer_id(self) -> str:
        return self._connection.peer_id

    @property
    def remote_maddr(self) -> str:
        """Where the node is, as far as the transport knows."""
        return self._connection.remote_maddr

    @property
    def name(self) -> str:
        return f"peer {short_peer_id(self.peer_id)}"

    @property
    def round_trip_s(self) -> float:
        """The smoothed round trip of HELLO and PINGs; 0 before the first."""
        return self._timers.round_trip_s

    @property
    def line_bytes_per_s(self) -> float:
        """What a person limits the line to, on this side or the node's; ``inf``: nobody does."""
        return self._timers.line_bytes_per_s

    @property
    def bytes_sent(self) -> int:
        return self._connection.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._connection.bytes_received

    @property
    def heard_at(self) -> float:
        """When (perf_counter) the peer's last bytes came, or the link was made."""
        return self._connection.heard_at

    def join(self, session: bytes, user: LinkUser) -> None:
        """Deliver to ``user`` what the node says to ``session``, until ``leave``."""
        self._users[session] = user
        self._timers.used()

    def leave(self, session: bytes) -> None:
        """End the use of the link by ``session``. Answers that come later are ignored. Idempotent."""
        self._users.pop(session, None)
        if not self._users and self.failure is None:
            self._timers.unused(perf_counter())
            self._wake_in(timers.IDLE_S)

    def post(self, message: Message) -> None:
        """Send: in this turn of the event loop, or with what others send in it. Never waits.

        The sessions alone limit what is queued: each bounds its steps under way. Raises the link's error if
        it has failed.
        """
        if self.failure is not None:
            raise self.failure
        if not self._outbox and len(self._users) > 1:
            self._loop.call_soon(self._flush_turn)
        self._outbox.add(message)
        size = len(message.payload) if isinstance(message, Step) else 0
        self._timers.posted(size, perf_counter(), self.heard_at)
        if len(self._users) <= 1:
            self._flush()

    async def drain(self) -> None:
        """Wait until the queue of what was posted is short. Raises the link's error if it has failed."""
        self._flush()
        if self.failure is not None:
            raise self.failure
        await self._connection.stream.drain()

    def watch(self) -> None:
        """A session waits from now on: notice it if the node falls silent."""
        patience = self._patience.ping_after_s
        if self._timer is None or self._due > self._loop.time() + patience:
            self._wake_in(patience)

    def ask_row_time(self) -> None:
        """Let ``row_us`` be told anew, if that was not asked lately. Never waits."""
        now = perf_counter()
        if self.failure is None and now - self._row_asked_at >= ROW_TIME_S and not self._timers.is_asking:
            self._row_asked_at = now
            self._ping(None)
            self._wake_in(self._timers.answer_within_s())

    async def ping(self) -> float:
        """Ask whether the node is there; returns the seconds until it answered. Raises the link's error if it
        has failed."""
        if self.failure is not None:
            raise self.failure
        answer: asyncio.Future[float] = self._loop.create_future()
        self._ping(answer)
        self._wake_in(self._timers.answer_within_s())
        return await answer

    async def check(self) -> None:
        """Wait until the node has answered a PING, or the link has failed."""
        try:
            await self.ping()
        except SwarmError:
            pass  # it is in ``failure``

    async def close(self) -> None:
        """End the stream and wait for its reader. What was posted is still written."""
        self._flush()
        self._end(StreamClosedError("the link was closed on this side"))
        await asyncio.wait([self._reader])

    def _flush(self) -> None:
        """Raises LocalProtocolError for what cannot be sent."""
        if not self._outbox or self.failure is not None:
            return
        frames = self._outbox.take()
        try:
            self._connection.write(frames)
        except StreamClosedError:
            pass  # the reader ends the link: what the node said last may say why

    def _flush_turn(self) -> None:
        try:
            self._flush()
        except LocalProtocolError as error:  # of which session is not known: a fault of this process
            logger.exception("event=bad_message peer=%s", self.peer_id)
            self._end(error)

    # Receiving.

    async def _read(self) -> None:
        error: SwarmError = StreamClosedError("the link was closed on this side")
        try:
            while True:
                self._dispatch(await self._connection.receive())
        except SwarmError as caught:
            error = caught
        finally:
            self._end(error)

    def _dispatch(self, message: Message) -> None:
        match message:
            case Results():
                for member in message.members:
                    if (user := self._users.get(member.session)) is not None:
                        user.deliver(member)
            case Result() | Opened() | Busy() | Refused() | Replayed() | Attached():
                if (user := self._users.get(message.session)) is not None:
                    user.deliver(message)
            case Pong() if self.welcome.done():
                self._heard_pong(message)
            case ErrorMessage(session=None):
                raise error_of(message, self.peer_id)
            case ErrorMessage():
                if message.session is not None and (user := self._users.get(message.session)) is not None:
                    user.deliver(message)
            case Welcome() if not self.welcome.done():
                self._check(message)
                self._connection.peer_max_frame = self._outbox.max_frame = message.max_frame
                self._outbox.members = message.members
                self._timers.welcomed(perf_counter(), message.line or inf)
                self.welcome.set_result(message)
            case _:
                name = type(message).__name__.upper()
                raise RemoteProtocolError(f"{self.name}: {name} is not an answer here")

    def _check(self, welcome: Welcome) -> None:
        model = self._model
        if welcome.version != PROTOCOL_VERSION:
            raise RemoteProtocolError(
                f"{self.name}: chose protocol version {welcome.version}, which was not offered"
            )
        if welcome.digest != model.digest or welcome.n_blocks != model.n_blocks:
            raise ModelMismatchError(
                f"{self.name} serves a model with digest {welcome.digest[:12]}, ours has {model.digest[:12]}",
                hint="Client and nodes need the same model files: same weights, same quantization.",
            )
        if model.root and welcome.root and welcome.root != model.root:
            raise ModelMismatchError(
                f"{self.name} has other files of {model}: their root is {welcome.root[:12]}, "
                f"that of ours {model.root[:12]}",
                hint=other_root_hint(model.name, welcome.root),
            )

    # Watching.

    def _wake_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._loop.time() + seconds
        self._timer = self._loop.call_at(self._due, self._look)

    def _heard(self) -> Heard:
        return Heard(self.heard_at, self._connection.bytes_received)

    def _look(self) -> None:
        """Do what the timers say, or look again later."""
        self._timer = None
        if self.failure is not None:
            return
        now, late_s = perf_counter(), self._loop.time() - self._due
        verdict: LinkVerdict | None = self._timers.excuse(now, wall_clock(), late_s, self._heard())
        if verdict is None:
            self._give_up_overdue(now)
            since = min((at for user in self._users.values() if (at := user.waiting_since)), default=None)
            verdict = self._timers.judge(now, self._heard(), since, self._others_heard_at())
        match verdict:
            case LookAgain():
                if verdict.ping:
                    self._ping(None)
                self._wake_in(verdict.after_s)
            case AskNow():
                self._ask(now)
                for link in list(self._siblings):  # one that finds itself dead leaves them
                    if link is not self and now - link.heard_at >= self._patience.ping_after_s:
                        link.check_self(now)
            case Unused():
                self._end(StreamClosedError("the link was not used"))
            case PeerGone():
                self._end(PeerTimeoutError(f"{self.name} {verdict.reason}"))

    def _others_heard_at(self) -> list[float]:
        return [
            link.heard_at
            for link in self._siblings
            if link is not self and link.failure is None and link.welcome.done()
        ]

    def _ask(self, now: float) -> None:
        """Is the node there, and where are the requests that wait?"""
        waiting = [
            (since, session, told)
            for session, user in self._users.items()
            if (since := user.waiting_since) is not None and (told := user.question()) is not None
        ]
        waiting.sort(key=lambda each: each[0])
        self._timers.looked_at_sessions(now, wait=bool(waiting))
        self._ping(None, {session: told for _, session, told in waiting[:MAX_ABOUT]})
        self._wake_in(self._timers.answer_within_s())

    def check_self(self, now: float) -> None:
        """Another link is silent: find out whether this one is silent too."""
        if self.failure is None and not self._timers.is_asking:
            self._ask(now)

    def _ping(self, answer: asyncio.Future[float] | None, about: dict[bytes, Told] | None = None) -> None:
        about = about or {}
        nonce = self._timers.asked(perf_counter(), self._heard(), of_sessions=bool(about))
        self._asked[nonce] = _Asked(answer, about)
        self.post(Ping(nonce, tuple(about)))

    def _heard_pong(self, pong: Pong) -> None:
        asked = self._asked.pop(pong.nonce, None)
        seconds = self._timers.answered(pong.nonce, perf_counter())
        if asked is None or seconds is None:
            return
        self.row_us = pong.row_us or self.row_us
        if asked.answer is not None and not asked.answer.done():
            asked.answer.set_result(seconds)
        self._wake_in(self._timers.ask_again_s)
        told = {progress.session: progress for progress in pong.tells}
        for session, take in asked.about.items():
            if session in self._users:
                take(told.get(session), pong)

    def _give_up_overdue(self, now: float) -> None:
        limit = self._patience.step_s
        for user in list(self._users.values()):
            since = user.waiting_since
            if since is not None and now - since > limit:
                user.fail(PeerTimeoutError(f"{self.name} answered no step for {limit:g} s"))

    def _end(self, error: SwarmError) -> None:
        """Runs once, whatever the reason of the end."""
        if self.failure is not None:
            return
        self.failure = error
        sessions = len(self._users)
        level = logging.INFO if sessions else logging.DEBUG
        logger.log(
            level, "event=link_ended peer=%s sessions=%d reason=%r", self.peer_id, sessions, error.message
        )
        if self._timer is not None:
            self._timer.cancel()
        self._reader.cancel()
        self._connection.close()
        if not self.welcome.done():
            self.welcome.set_exception(error)
            self.welcome.exception()  # without a waiter it must not be reported as forgotten
        users, self._users = list(self._users.values()), {}
        for user in users:
            user.fail(error)
        pending, self._asked = list(self._asked.values()), {}
        for asked in pending:
            if asked.answer is not None and not asked.answer.done():
                asked.answer.set_exception(error)
        self._on_end()


class NotAsAnnouncedError(PeerError):
    """A node that welcomed us cannot be this hop of a route with this codec, though it announced that it
    could: mostly it has moved since. ``kind``: the codec's."""

    def __init__(self, message: str, *, code: ErrorCode, hop: Hop, kind: str) -> None:
        super().__init__(message, code=code, retriable=False)
        self._hop = hop
        self._kind = kind

    def contradicts(self, node: NodeInfo) -> bool:
        """Whether the node's announcement says still (or again) that it could."""
        return node.span.covers(self._hop.span) and (not node.codecs or self._kind in node.codecs)


def span_problem(welcome: Welcome, hop: Hop, kind: str, name: str) -> NotAsAnnouncedError | None:
    """Why a node that welcomed us cannot be this hop of a route."""
    if not welcome.span.covers(hop.span):
        return NotAsAnnouncedError(
            f"{name} serves blocks {welcome.span}, not {hop.span} as announced",
            code=ErrorCode.SPAN_NOT_SERVED,
            hop=hop,
            kind=kind,
        )
    if kind not in welcome.codecs:
        return NotAsAnnouncedError(
            f"{name} does not speak the codec {kind}, as announced",
            code=ErrorCode.UNSUPPORTED_CODEC,
            hop=hop,
            kind=kind,
        )
    return None


def width_problem(welcome: Welcome, boundaries: Boundaries, name: str) -> ModelMismatchError | None:
    """Whether a node that welcomed us counts other values in a row than we do."""
    span, widths = welcome.span, boundaries.widths
    if span.end >= len(widths):
        return None
    for boundary, theirs in ((span.start, welcome.row_width), (span.end, welcome.reply_width)):
        if theirs not in (0, widths[boundary]):
            return ModelMismatchError(
                f"{name} has rows of {theirs} values before block {boundary}, we of {widths[boundary]}",
                hint="Use the same version of swarm-node on both sides.",
            )
    return None
