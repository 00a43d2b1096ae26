"""One client's stream to this node: HELLO, then sessions and their steps, until either side ends it.

The reader awaits nothing but bytes and room: a step goes to the engine by one call and its answer is written
from the engine's callback, so a decode step starts no task and sets no timer.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter_ns
from typing import TYPE_CHECKING

from ..swarm import codecs
from ..swarm.connection import Connection
from ..swarm.errors import (
    ErrorCode,
    LocalProtocolError,
    NetworkError,
    PeerError,
    RemoteProtocolError,
    StreamClosedError,
)
from ..swarm.messages import (
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
    Result,
    Step,
    Welcome,
    encode,
)
from ..swarm.replies import error_message
from ..swarm.session import Duplicate, HopSession
from ..swarm.wire import FIXED_HEADER, MAX_HEADER, encode_frame
from .jobs import StepDone, StepDropped, StepJob, StepOutcome
from .node_session import NodeSession

if TYPE_CHECKING:
    from .server import NodeServer

log = logging.getLogger(__name__)

PROTOCOL_VERSION = 1
FRAME_OVERHEAD = FIXED_HEADER.size + MAX_HEADER
"""Bytes that a frame may need beside its payload."""
RETRY_AFTER_MS = 1000
"""What BUSY advises: sessions of other clients end within seconds, and a second try costs one round trip."""


class PeerConnection:
    """Serves one stream in the task that calls ``run``."""

    def __init__(self, server: NodeServer, connection: Connection) -> None:
        self._server = server
        self._connection = connection
        self._sessions: dict[bytes, NodeSession] = {}
        self._max_step_tokens = 0
        self._pending_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._undrained = False
        self._ending = False
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self.welcomed = False
        self.last_heard = server.now()

    @property
    def peer_id(self) -> str:
        return self._connection.peer_id

    async def run(self) -> None:
        """Serve until the stream ends; every session of it is freed by then."""
        self._task = asyncio.current_task()
        try:
            await self._read()
        except asyncio.CancelledError:
            if not self._ending or self._task is None or self._task.uncancel():
                raise
        except (RemoteProtocolError, PeerError) as error:
            log.info("event=peer_refused peer=%s code=%s message=%r", self.peer_id, error.code, error.message)
            await self._farewell(error_message(error, retriable=False))
        except NetworkError as error:
            log.debug("event=stream_ended peer=%s reason=%r", self.peer_id, error.message)
        except Exception as error:
            log.exception("event=connection_failed peer=%s", self.peer_id)
            await self._farewell(error_message(error))
        finally:
            self._closed = True
            for session in list(self._sessions.values()):
                self._close_session(session)
            self._connection.close()

    async def _read(self) -> None:
        while True:
            try:
                message = await self._connection.receive()
            except RemoteProtocolError as error:
                if error.code is not ErrorCode.UNKNOWN_KIND or not self.welcomed:
                    raise
                self._post(error_message(error))  # the stream is still in step
            else:
                self.last_heard = self._server.now()
                self._dispatch(message)
            if self._undrained:
                # A client that does not read its answers is not read either.
                self._undrained = False
                await self._connection.stream.drain()
            if not self._room.is_set():
                await self._room.wait()

    def sweep(self, now: float) -> None:
        """Close what nobody uses: called by the server every few seconds with its clock's time."""
        limits = self._server.limits
        silent = now - self.last_heard
        if silent > (limits.idle_connection_seconds if self.welcomed else limits.hello_seconds):
            log.info("event=connection_idle peer=%s seconds=%.0f", self.peer_id, silent)
            self.close()
            return
        for session in list(self._sessions.values()):
            if not session.inflight and now - session.last_used > limits.idle_session_seconds:
                self._close_session(session)
                self._try_post(
                    ErrorMessage(
                        session.session,
                        None,
                        ErrorCode.UNKNOWN_SESSION,
                        f"the session was idle for {limits.idle_session_seconds:.0f} s and was closed",
                        True,
                    )
                )

    def close(self, reason: ErrorMessage | None = None) -> None:
        """End the stream; ``run`` then frees the sessions and returns, whatever it waits for."""
        if self._ending or self._closed:
            return
        self._ending = True
        if reason is not None:
            self._try_post(reason)
        self._connection.close()
        if self._task is not None:
            self._task.cancel()

    # Messages, in the order a client sends them. None of these awaits.

    def _dispatch(self, message: Message) -> None:
        match message:
            case Step():
                self._on_step(message)
            case Ping():
                self._on_ping(message)
            case Hello():
                self._on_hello(message)
            case Open():
                self._on_open(message)
            case Close():
                self._require_hello("CLOSE")
                if (session := self._sessions.get(message.session)) is not None:
                    self._close_session(session)
            case Replay():
                self._require_hello("REPLAY")
                self._post(
                    ErrorMessage(
                        message.session,
                        None,
                        ErrorCode.UNSUPPORTED,
                        "this node keeps no journal to replay",
                        False,
                    )
                )
            case _:
                raise RemoteProtocolError(f"a client does not send {type(message).__name__.upper()}")

    def _on_hello(self, hello: Hello) -> None:
        server = self._server
        if self.welcomed:
            raise RemoteProtocolError("HELLO came twice")
        if PROTOCOL_VERSION not in hello.versions:
            raise RemoteProtocolError(
                f"this node speaks version {PROTOCOL_VERSION}, "
                f"the client {', '.join(map(str, hello.versions))}",
                hint="Use the same major version of swarm-node on both sides.",
                code=ErrorCode.UNSUPPORTED_VERSION,
            )
        if hello.digest and hello.digest != server.model.digest:
            raise PeerError(
                f"this node serves {server.model.name} with digest {server.model.digest[:12]}, "
                f"the client asks for {hello.digest[:12]}",
                code=ErrorCode.MODEL_MISMATCH,
                retriable=False,
                hint="Client and nodes need the same model files: same weights, same quantization source.",
            )
        shared = tuple(codec for codec in server.codecs if codec in hello.codecs)
        if not shared:
            raise PeerError(
                f"no common codec: this node speaks {', '.join(server.codecs)}",
                code=ErrorCode.UNSUPPORTED_CODEC,
                retriable=False,
            )
        frame = min(server.max_frame, hello.max_frame)
        row = max(codecs.payload_bytes(codec, 1, server.hidden_size) for codec in server.codecs)
        self._max_step_tokens = min(server.limits.max_step_tokens, (frame - FRAME_OVERHEAD) // row)
        if self._max_step_tokens < 1:
            raise PeerError(
                f"a frame of {frame} bytes cannot hold one token of {server.hidden_size} values",
                code=ErrorCode.UNSUPPORTED,
                retriable=False,
            )
        self._connection.peer_max_frame = hello.max_frame
        self.welcomed = True
        self._post(
            Welcome(
                version=PROTOCOL_VERSION,
                digest=server.model.digest,
                span=server.span,
                codecs=shared,
                max_frame=server.max_frame,
                agent=server.agent,
                max_step_tokens=self._max_step_tokens,
                n_blocks=server.model.n_blocks,
            )
        )

    def _on_ping(self, ping: Ping) -> None:
        self._require_hello("PING")
        self._post(self._server.pong(ping.nonce))

    def _on_open(self, request: Open) -> None:
        self._require_hello("OPEN")
        self._post(self._try_open(request))

    def _try_open(self, request: Open) -> Opened | Busy | Refused | ErrorMessage:
        server, session = self._server, request.session
        if session in self._sessions:
            text = f"session {session.hex()} is open already"
            return ErrorMessage(session, None, ErrorCode.DUPLICATE_SESSION, text, False)
        if (refusal := server.refusal(request)) is not None:
            return refusal
        key = server.reserve(self.peer_id, request)
        if isinstance(key, Busy):
            return key
        try:
            lane = server.engine.open_lane(
                request.span, request.max_tokens, request.codec, request.reply_codec
            )
        except MemoryError as error:
            log.warning("event=kv_allocation_failed tokens=%d error=%r", request.max_tokens, str(error)[:200])
            server.release(self.peer_id, key)
            return Busy(session, RETRY_AFTER_MS, "the node's memory is full")
        hop = HopSession(request.max_tokens, max_step_tokens=self._max_step_tokens)
        self._sessions[session] = NodeSession(session, key, hop, lane, server.now())
        return Opened(session, 0, self._max_step_tokens)

    def _on_step(self, step: Step) -> None:
        arrived = perf_counter_ns()
        self._require_hello("STEP")
        session = self._sessions.get(step.session)
        if session is None:
            self._post(
                ErrorMessage(
                    step.session,
                    step.step,
                    ErrorCode.UNKNOWN_SESSION,
                    f"session {step.session.hex()} is not open on this stream",
                    True,
                    "Open the session again and send its tokens from the start.",
                )
            )
            return
        try:
            verdict = session.hop.on_step(step.step, step.position, step.tokens)
        except RemoteProtocolError as error:
            self._post(error_message(error, step.session, step.step, retriable=False))
            return
        session.last_used = self._server.now()
        if isinstance(verdict, Duplicate):
            self._repeat(session, step)
            return
        session.last_answer = None
        session.inflight += 1
        self._pending_bytes += len(step.payload)
        if self._pending_bytes > self._server.limits.pending_bytes:
            self._room.clear()
        size = len(step.payload)

        def done(job: StepJob, outcome: StepOutcome) -> None:
            self._on_outcome(session, job, outcome, size)

        self._server.engine.submit(
            StepJob(
                lane=session.lane,
                step=step.step,
                position=step.position,
                tokens=step.tokens,
                want=step.want,
                payload=step.payload,
                arrived_ns=arrived,
                done=done,
                deadline_ns=arrived + step.deadline_ms * 1_000_000 if step.deadline_ms else 0,
            )
        )

    def _repeat(self, session: NodeSession, step: Step) -> None:
        if session.last_answer is not None:
            self._post(session.last_answer)
        elif not session.inflight:
            self._post(
                ErrorMessage(
                    step.session,
                    step.step,
                    ErrorCode.BAD_STEP,
                    f"the answer to step {step.step} is no longer kept",
                    True,
                    "Send the tokens again under a new step number.",
                )
            )
        # Else the first copy is still being computed, and its answer will do for both.

    def _on_outcome(self, session: NodeSession, job: StepJob, outcome: StepOutcome, size: int) -> None:
        session.inflight -= 1
        self._pending_bytes -= size
        if self._pending_bytes <= self._server.limits.pending_bytes:
            self._room.set()
        if session.lane.closed:
            if not session.inflight:
                self._server.release(self.peer_id, session.key)
            return
        match outcome:
            case StepDone():
                answer: Result | ErrorMessage = Result(
                    session=session.session,
                    step=job.step,
                    position=outcome.position,
                    tokens=outcome.rows,
                    payload=outcome.payload,
                    queue_us=outcome.queue_us,
                    compute_us=outcome.compute_us,
                    codec_us=outcome.codec_us,
                    batch=outcome.batch,
                )
            case StepDropped():
                return
            case failed:
                answer = ErrorMessage(
                    session.session, job.step, failed.code, failed.message, failed.retriable, failed.hint
                )
        if job.step == session.hop.last_step:
            session.keep(answer)
        self._try_post(answer)

    def _close_session(self, session: NodeSession) -> None:
        """Free its KV cache: now, or as soon as the step being computed lets go of it."""
        del self._sessions[session.session]
        session.lane.closed = True
        if not session.inflight:
            self._server.release(self.peer_id, session.key)

    # Writing.

    def _require_hello(self, kind: str) -> None:
        if not self.welcomed:
            raise RemoteProtocolError(f"{kind} came before HELLO")

    def _post(self, message: Message) -> None:
        """Write a message at once; the reader waits for room before it takes the next request."""
        buffers = encode_frame(encode(message))
        self._connection.stream.write(buffers)
        self._connection.bytes_sent += sum(len(buffer) for buffer in buffers)
        self._undrained = True

    def _try_post(self, message: Message) -> None:
        """Write outside of the reader, where an ended stream concerns nobody: the reader will see it too."""
        if self._closed:
            return
        try:
            self._post(message)
        except StreamClosedError:
            log.debug("event=answer_without_stream peer=%s", self.peer_id)
        except LocalProtocolError:
            log.exception("event=bad_answer peer=%s", self.peer_id)
            self._connection.close()

    async def _farewell(self, message: ErrorMessage) -> None:
        """Say why before the stream ends; a client that does not read it in time never will."""
        self._try_post(message)
        try:
            async with asyncio.timeout(self._server.limits.farewell_seconds):
                await self._connection.stream.drain()
        except (TimeoutError, NetworkError):
            log.debug("event=farewell_unread peer=%s", self.peer_id)
