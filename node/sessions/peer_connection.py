"""One peer's stream to this node: HELLO, then sessions and steps, until either side ends it.

A client opens sessions here and steers them; the node before this one in a route sends steps for them. A
stream's end closes the sessions that it opened, and is told to the clients of those that it fed.

The reader awaits nothing but bytes and room: a step goes to the engine by one call and its answer is written
from the engine's callback, so a decode step starts no task and sets no timer. What is said in one turn of the
event loop, such as the answers of a batch, leaves in one write, and the results in one frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ...swarm.errors import (
    ErrorCode,
    LocalProtocolError,
    NetworkError,
    PeerError,
    RemoteProtocolError,
    StreamClosedError,
)
from ...swarm.fairness.unfinished import UnfinishedFrames
from ...swarm.links.message_stream import Connection
from ...swarm.links.outbox import Outbox
from ...swarm.protocol.error_frames import error_message
from ...swarm.protocol.field_types import Progress
from ...swarm.protocol.messages import (
    Attach,
    Attached,
    Busy,
    Close,
    ErrorMessage,
    Hello,
    Message,
    Open,
    Opened,
    Ping,
    Refused,
    Replay,
    Step,
    Steps,
    Void,
)
from ...swarm.protocol.wire import DEFAULT_MAX_FRAME
from ...swarm.transport.direct_maddrs import way_of
from ...swarm.types import short_peer_id
from ..figures.work import REFUSALS, Bytes, Link, SessionEnd, StreamSide
from ..limits.quotas import FED_FACTOR, PeerAccount
from .handshake import answer_hello
from .open_sessions import OpenSessions
from .session import NodeSession

logger = logging.getLogger(__name__)

UNREAD_BYTES = 1024 * 1024
"""Told to a peer before it is asked whether it reads."""
MESSAGES_A_TURN = 32
"""Taken from one stream before others have their turn of the event loop: a flood fits many into one read."""
COSTS: dict[type[Message], float] = {Open: 5.0, Attach: 2.0, Replay: 5.0, Close: 2.0}
"""The rough cost of messages for the event loop, in units of a PING; STEPs are counted where they wait."""
ABOUT_A_UNIT = 16
"""This many sessions that a PING asks about cost as much as another PING."""
LONGEST_DELAY_S = 1.0
"""A peer that asks too much is read again after at most this many seconds."""
REOPEN = "Open the session again and send its tokens from the start."
NOT_OPEN = ("is not open on this stream", REOPEN)


class PeerConnection:
    """Serves one stream in the task that calls ``run``. ``sessions``: those of all streams. ``frames``: the
    unfinished frames of all streams."""

    def __init__(
        self, sessions: OpenSessions, frames: UnfinishedFrames, connection: Connection, account: PeerAccount
    ) -> None:
        self._all_sessions = sessions
        self._limits = sessions.limits
        self._connection = connection
        self.account = account
        self.peer_id = connection.peer_id
        connection.unfinished = frames.on_stream(account.holder, self._on_bad_frame)
        self._sessions: dict[bytes, NodeSession] = {}
        self._fed: set[NodeSession] = set()  # of other streams, whose last step came on this one
        self._outbox = Outbox(DEFAULT_MAX_FRAME)
        self._undrained = False
        self._unread = 0  # bytes written since the peer was last known to read
        self._charged = 0  # of these, counted as queued: all, once they are many
        self._drainer: asyncio.Task[None] | None = None
        self._ending = False
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self.max_step_tokens = 0
        self.welcomed = False
        self.last_heard = sessions.now()

    @property
    def link_class(self) -> Link:
        return StreamSide.INCOMING, way_of(self._connection.remote_maddr)

    @property
    def traffic(self) -> Bytes:
        """Over the stream, so far."""
        return Bytes(self._connection.bytes_received, self._connection.bytes_sent)

    @property
    def is_unused(self) -> bool:
        """Whether no session would miss the stream."""
        return not self._sessions and not self._fed

    @property
    def sessions(self) -> list[NodeSession]:
        return list(self._sessions.values())

    async def run(self) -> None:
        """Serve until the stream ends; every session of it is closed by then."""
        self._task = asyncio.current_task()
        try:
            await self._serve()
        except asyncio.CancelledError:
            if not self._ending or self._task is None or self._task.uncancel():
                raise

    async def _serve(self) -> None:
        why = "this node ended its stream"
        try:
            await self._read()
        except (RemoteProtocolError, PeerError) as error:
            logger.info(
                "event=peer_refused peer=%s code=%s message=%r", self.peer_id, error.code, error.message
            )
            why = f"it sent data that is not a message: {error.message}"
            self._forget_fed(why)
            await self._farewell(error_message(error, retriable=False))
        except NetworkError as error:
            logger.debug("event=stream_ended peer=%s reason=%r", self.peer_id, error.message)
            why = error.message
        except Exception as error:
            logger.exception("event=connection_failed peer=%s", self.peer_id)
            self._forget_fed("this node failed to serve its stream")
            await self._farewell(error_message(error))
        finally:
            self._closed = True
            self._close_sessions(SessionEnd.STREAM_ENDED)
            self._forget_fed(why)
            self._try_flush()
            self._charge()
            self._connection.close()
            if self._drainer is not None:
                self._drainer.cancel()

    async def _read(self) -> None:
        messages = 0
        while True:
            messages += 1
            if messages >= MESSAGES_A_TURN:
                messages = 0
                await asyncio.sleep(0)
            try:
                message = await self._connection.receive()
            except RemoteProtocolError as error:
                if error.code is not ErrorCode.UNKNOWN_KIND or not self.welcomed:
                    raise
                self._post(error_message(error))  # the stream is still in step
            else:
                self.last_heard = self._all_sessions.now()
                units = self._units(message)
                self._dispatch(message)
                if isinstance(message, Steps):
                    messages += len(message.members)
                if units and (delay := self.account.work.spend(units, self.last_heard)) > 0:
                    await asyncio.sleep(min(delay, LONGEST_DELAY_S))
            if self._undrained:
                # A client that does not read its answers is not read either.
                self._undrained = False
                await self.drain()
            if not self.account.room.is_set():
                await self.account.room.wait()

    def _units(self, message: Message) -> float:
        """What it costs the event loop, in units of a PING, where that is not counted elsewhere. One VOID for
        each step is a part of it: who has many sessions that guess needs more of them than of anything
        else."""
        match message:
            case Step() | Steps():
                return 0.0
            case Ping():
                return 1.0 + len(message.about) / ABOUT_A_UNIT
            case Void() if (session := self._sessions.get(message.session)) and session.has_new_steps:
                return 0.0
        return COSTS.get(type(message), 1.0)

    def sweep(self, now: float) -> None:
        """Close what is not used. The server calls it every few seconds with its clock's time."""
        limits = self._limits
        silent = now - self.last_heard
        if silent > (limits.idle_connection_seconds if self.welcomed else limits.hello_seconds):
            logger.info("event=connection_idle peer=%s seconds=%.0f", self.peer_id, silent)
            self.close()
            return
        for session in self.sessions:
            session.usage.fold(now)
            if not session.inflight and now - session.last_used > limits.idle_session_seconds:
                self.expire(
                    session, SessionEnd.IDLE, f"the session was idle for {limits.idle_session_seconds:.0f} s"
                )

    def expire(self, session: NodeSession, why: SessionEnd, reason: str) -> None:
        """Close a session that the client did not close, and tell it."""
        del self._sessions[session.id]
        self._all_sessions.close(session, why)
        self.post(
            ErrorMessage(
                session.id, None, ErrorCode.SESSION_EXPIRED, f"{reason} and was closed", True, REOPEN
            )
        )

    def close(self, reason: ErrorMessage | None = None, why: SessionEnd = SessionEnd.STREAM_ENDED) -> None:
        """End the stream. Its sessions are closed at once, and ``run`` then returns, even while it waits.
        ``why`` is counted, ``reason`` told."""
        if self._ending or self._closed:
            return
        self._ending = True
        if reason is not None:
            self.post(reason)
        self._close_sessions(why)
        self._try_flush()
        self._connection.close()
        # The reader itself finds the stream closed. Cancelled by itself, it would end as a task that failed.
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _on_bad_frame(self, why: str) -> None:
        """The frame that is coming may not go on."""
        logger.info("event=frame_given_up peer=%s reason=%r", self.peer_id, why)
        self._forget_fed(why)
        hint = "Send smaller steps, or over a faster line."
        self.close(ErrorMessage(None, None, ErrorCode.OVERLOADED, why, True, hint))

    def _close_sessions(self, why: SessionEnd) -> None:
        while self._sessions:
            self._all_sessions.close(self._sessions.popitem()[1], why)

    # Sessions of other streams that take their steps from this one.

    def stop_feeding(self, session: NodeSession) -> None:
        self._fed.discard(session)

    def _forget_fed(self, why: str) -> None:
        """Nothing more will come for them from here: tell their clients."""
        while self._fed:
            self._fed.pop().lose_feeder(self.peer_id, why)

    # Messages, in the order a client sends them. None of these awaits.

    def _dispatch(self, message: Message) -> None:
        if not self.welcomed and not isinstance(message, Hello):
            raise RemoteProtocolError(f"{type(message).__name__.upper()} came before HELLO")
        match message:
            case Step():
                self._on_step(message)
            case Steps():
                with self._all_sessions.submitting_together():
                    for step in message.members:
                        self._on_step(step)
            case Ping():
                self._post(self._all_sessions.pong(message.nonce, self._progress(message.about)))
            case Hello():
                self._on_hello(message)
            case Open():
                if (answer := self._try_open(message)) is not None:
                    self._post(answer)
            case Close():
                if (session := self._sessions.pop(message.session, None)) is not None:
                    self._all_sessions.close(session, SessionEnd.CLOSED, message.prefix)
            case Void():
                if (session := self._sessions.get(message.session)) is not None:
                    session.void(message.first, message.last)
            case Attach():
                self._on_attach(message)
            case Replay():
                self._on_replay(message)
            case _:
                raise RemoteProtocolError(f"a client does not send {type(message).__name__.upper()}")

    def _on_hello(self, hello: Hello) -> None:
        if self.welcomed:
            raise RemoteProtocolError("HELLO came twice")
        welcome = answer_hello(hello, self._all_sessions.terms, self.account.holder.group)
        self.max_step_tokens = welcome.max_step_tokens
        self._connection.peer_max_frame = self._outbox.max_frame = hello.max_frame
        self._outbox.members = hello.members
        self._connection.max_frame = self._all_sessions.terms.max_frame
        self.welcomed = True
        self._post(welcome)

    def _try_open(self, request: Open) -> Opened | Busy | Refused | ErrorMessage | None:
        """The answer; None if it comes later, once the next hop is connected."""
        if request.session in self._all_sessions:
            text = f"session {request.session.hex()} is open already"
            return ErrorMessage(request.session, None, ErrorCode.DUPLICATE_SESSION, text, False)
        parent = None if request.parent is None else self._sessions.get(request.parent)
        session = self._all_sessions.open(request, self.account, parent, self)
        if not isinstance(session, NodeSession):
            return session
        self._sessions[request.session] = session
        opened = Opened(request.session, session.hop.length, self.max_step_tokens)
        if request.downstream is None:
            return opened
        hops = self._all_sessions.next_hops
        self._all_sessions.watch(session.output.open(opened, request.downstream, hops))
        return None

    def _on_step(self, step: Step) -> None:
        session = self._all_sessions.get(step.session)
        if session is not None and session.takes_from(self, self.peer_id):
            if session.fed_by is not self and session.owner is not self:
                session.feed_from(self)
                self._fed.add(session)
            session.on_step(step, self._all_sessions.now(), self)
            return
        if session is None:
            if step.hold or not self._all_sessions.was_closed(step.session, self.peer_id):
                self._refuse(step.session, step.step, *NOT_OPEN)
        elif session.owner is self:
            text = f"takes its steps from peer {short_peer_id(session.upstream)}"
            self._refuse(
                step.session, step.step, text, "Send them there, or take the session back by ATTACH."
            )
        else:
            hint = "Its client can name you as its upstream."
            self._refuse(step.session, step.step, "takes no steps from you", hint)

    def _on_attach(self, request: Attach) -> None:
        session = self._own(request.session)
        if session is not None:
            session.attach(request)
            self._all_sessions.work.attached()
            self._post(Attached(session.id, session.sequence.length))

    def _on_replay(self, request: Replay) -> None:
        session = self._own(request.session)
        if session is not None:
            self._all_sessions.work.replayed()
            self._all_sessions.watch(session.replay(request, self._all_sessions.next_hops))

    def _own(self, session: bytes) -> NodeSession | None:
        """The session, if it was opened on this stream; else the client is told."""
        found = self._sessions.get(session)
        if found is None:
            self._refuse(session, None, *NOT_OPEN)
        return found

    def _refuse(self, session: bytes, step: int | None, why: str, hint: str) -> None:
        text = f"session {session.hex()} {why}"
        self._post(ErrorMessage(session, step, ErrorCode.UNKNOWN_SESSION, text, True, hint))

    def _progress(self, about: Sequence[bytes]) -> tuple[Progress, ...]:
        """The progress of those sessions that this peer may ask about: it opened them here, or may feed
        them."""
        found = (self._all_sessions.get(session) for session in about)
        return tuple(
            session.progress()
            for session in found
            if session is not None and (session.owner is self or session.upstream == self.peer_id)
        )

    # Writing.

    def _post(self, message: Message) -> None:
        """Write a message with the others of this turn of the event loop; the reader waits for room before it
        takes the next request."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._try_flush)
        self._outbox.add(message)
        self._undrained = True
        if isinstance(message, REFUSALS):
            self._all_sessions.work.refused(message)

    @property
    def takes_answers(self) -> bool:
        """Whether the peer reads what it is told, as far as is known. It is not waited for where other peers'
        streams bring what it is told about."""
        return self._unread <= self._limits.queued_bytes_per_peer

    async def drain(self) -> None:
        """Wait until the stream has taken what was posted. Raises StreamClosedError."""
        self._flush()
        await self._connection.stream.drain()
        self._unread = 0
        self._charge()

    def _charge(self) -> None:
        """Count what the peer does not read as queued for it, if it is much."""
        unread = self._unread if self._unread > UNREAD_BYTES and not self._closed else 0
        change, self._charged = unread - self._charged, unread
        if change > 0:
            self._all_sessions.ledger.queue(self.account, 0, change)
        elif change:
            self._all_sessions.ledger.unqueue(self.account, 0, -change)

    def _flush(self) -> None:
        outgoing = self._outbox.take()
        if outgoing:
            self._unread += self._connection.write(outgoing)
            if self._unread > UNREAD_BYTES:
                self._charge()
            if self._unread > FED_FACTOR * self._limits.queued_bytes_per_peer:
                logger.info("event=answers_unread peer=%s bytes=%d", self.peer_id, self._unread)
                self.close()
            elif self._drainer is None and (self._unread > UNREAD_BYTES or not self.takes_answers):
                self._drainer = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await self.drain()
        except NetworkError:
            pass  # the reader sees it too
        finally:
            self._drainer = None

    def _try_flush(self) -> None:
        """Write outside of the reader. An ended stream is ignored here, as the reader will see it too."""
        try:
            self._flush()
        except StreamClosedError:
            # The reader may be waiting for room and not know yet: nobody wants the steps that still wait.
            logger.debug("event=answer_without_stream peer=%s", self.peer_id)
            self.close()
        except LocalProtocolError:
            logger.exception("event=bad_answer peer=%s", self.peer_id)
            self._connection.close()

    def post(self, message: Message) -> None:
        """Write outside of the reader, where a message that cannot be sent must not raise."""
        if self._closed:
            return
        try:
            self._post(message)
        except LocalProtocolError:
            logger.exception("event=bad_answer peer=%s", self.peer_id)
            self._connection.close()

    async def _farewell(self, message: ErrorMessage) -> None:
        """Say why before the stream ends; a client that does not read it in time never will."""
        self.post(message)
        try:
            async with asyncio.timeout(self._limits.farewell_seconds):
                self._flush()
                await self._connection.stream.drain()
        except (TimeoutError, NetworkError):
            logger.debug("event=farewell_unread peer=%s", self.peer_id)
