"""The client's side of one hop: a session on one node, over a stream of its own.

HELLO and OPEN go out together, so that opening costs one round trip after the dial. Steps may be sent ahead
of their results, which come back in order. Whoever waits longer than a second sends a PING, so that a peer
that froze or vanished is told from one that computes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from dataclasses import dataclass
from time import perf_counter

from ..swarm.codecs import CODECS, payload_bytes
from ..swarm.connection import Connection
from ..swarm.errors import (
    ErrorCode,
    ModelMismatchError,
    NetworkError,
    PeerError,
    PeerTimeoutError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
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
    Pong,
    Refused,
    Result,
    Step,
    Want,
    Welcome,
    encode,
)
from ..swarm.replies import error_of
from ..swarm.transport import Transport
from ..swarm.types import Hop, ModelRef
from ..swarm.wire import DEFAULT_MAX_FRAME, FIXED_HEADER, MAX_HEADER, PROTOCOL_ID, Payload, encode_frame
from .trace import HopTrace, Phase

PROTOCOL_VERSION = 1
FRAME_OVERHEAD = FIXED_HEADER.size + MAX_HEADER


class HopFailedError(NetworkError):
    """A hop cannot go on (or begin); another route may. ``cause`` is what happened."""

    def __init__(self, peer_id: str, cause: SwarmError) -> None:
        super().__init__(cause.message, hint=cause.hint)
        self.peer_id = peer_id
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds to wait for a peer. ``ping_after_s``: of silence before a PING; ``pong_within_s``: more of it
    before the peer counts as gone. ``step_s``: for a step's result while PINGs are answered."""

    dial_s: float = 6.0
    ping_after_s: float = 1.0
    pong_within_s: float = 1.0
    step_s: float = 300.0


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What all hops of a session share. ``max_tokens``: KV cache to reserve, in tokens."""

    model: ModelRef
    hidden_size: int
    max_tokens: int
    agent: str = "swarm-node"
    patience: Patience = Patience()


@dataclass(slots=True)
class _Sent:
    """A step whose result is still to come. ``payload`` is kept to find out who is to blame for a bad one."""

    step: int
    position: int
    tokens: int
    want: Want
    payload: Payload
    at: float
    phase: Phase


class HopClient:
    """An open session on one node. Made by ``open``; ends with ``close``."""

    def __init__(self, hop: Hop, connection: Connection, settings: SessionSettings, codec: str) -> None:
        self.hop = hop
        self.codec = codec
        self.trace = HopTrace(hop.peer_id, hop.span, codec)
        self.max_step_tokens = 0
        self.round_trip_s = 0.0  # of HELLO
        self._connection = connection
        self._settings = settings
        self._session = secrets.token_bytes(16)
        self._steps = 0
        self._pings = 0
        self._sent: deque[_Sent] = deque()
        self._closed = False

    @classmethod
    async def open(
        cls, transport: Transport, hop: Hop, settings: SessionSettings, codec: str, place: tuple[int, int]
    ) -> HopClient:
        """Dial the node and open a session on it; ``place`` is (hop number, number of hops).

        Raises NetworkError's subclasses, BusyError, ModelMismatchError, PeerError and RemoteProtocolError.
        """
        stream = await transport.open_stream(
            hop.peer_id, PROTOCOL_ID, hop.maddrs, timeout=settings.patience.dial_s
        )
        client = cls(hop, Connection(stream, DEFAULT_MAX_FRAME), settings, codec)
        try:
            await client._open(place)
        except BaseException:
            client.close()
            raise
        return client

    @property
    def peer_id(self) -> str:
        return self.hop.peer_id

    async def send(
        self, payload: Payload, tokens: int, position: int, want: Want, phase: Phase | None = None
    ) -> None:
        """Send a step of ``tokens`` encoded tokens, without waiting for its result."""
        self._steps += 1
        step = Step(self._session, self._steps, position, tokens, want, payload=payload)
        phase = phase or self.trace.decode
        self._sent.append(_Sent(self._steps, position, tokens, want, payload, perf_counter(), phase))
        await self._connection.send(step)

    async def receive(self) -> Result:
        """The result of the oldest step that has none yet; its payload's size is checked, its values are not.

        Raises StreamClosedError, PeerTimeoutError, PeerError and RemoteProtocolError; the session is then
        over.
        """
        message = await self._next()
        if not isinstance(message, Result):
            raise self._unexpected(message)
        now = perf_counter()
        if not self._sent:
            raise RemoteProtocolError(f"{self._name}: RESULT of step {message.step}, which was not sent")
        sent = self._sent.popleft()
        self._check(message, sent)
        phase = sent.phase
        node_s = (message.queue_us + message.compute_us + message.codec_us) * 1e-6
        phase.steps += 1
        phase.tokens += sent.tokens
        phase.queue_s += message.queue_us * 1e-6
        phase.compute_s += message.compute_us * 1e-6
        phase.codec_s += message.codec_us * 1e-6
        phase.wire_s += max(0.0, now - sent.at - node_s)
        phase.bytes_sent += len(sent.payload)
        phase.bytes_received += len(message.payload)
        return message

    @property
    def awaited_payload(self) -> tuple[Payload, int] | None:
        """The payload and token count of the oldest step without a result: what an error is about."""
        return (self._sent[0].payload, self._sent[0].tokens) if self._sent else None

    def close(self) -> None:
        """Free the session's KV cache on the node and end the stream. Never waits; may be called again."""
        if self._closed:
            return
        self._closed = True
        try:
            # CLOSE arrives at once; that the stream ended, the node's daemon may notice much later.
            self._connection.stream.write(encode_frame(encode(Close(self._session))))
        except StreamClosedError:
            pass  # then the node has freed it
        self._connection.close()

    # Opening.

    async def _open(self, place: tuple[int, int]) -> None:
        settings, hop = self._settings, self.hop
        began = perf_counter()
        await self._connection.send(
            Hello((PROTOCOL_VERSION,), settings.model.digest, CODECS, DEFAULT_MAX_FRAME, settings.agent)
        )
        await self._connection.send(
            Open(
                session=self._session,
                span=hop.span,
                max_tokens=settings.max_tokens,
                codec=self.codec,
                reply_codec=self.codec,
                hop=place[0],
                hops=place[1],
            )
        )
        welcome = await self._next()
        self.round_trip_s = perf_counter() - began
        if not isinstance(welcome, Welcome):
            raise self._unexpected(welcome)
        self._check_welcome(welcome)
        opened = await self._next()
        if not isinstance(opened, Opened) or opened.session != self._session:
            raise self._unexpected(opened)
        if opened.length:
            raise RemoteProtocolError(f"{self._name}: a new session holds {opened.length} tokens already")
        row = payload_bytes(self.codec, 1, settings.hidden_size)
        fits = (min(welcome.max_frame, DEFAULT_MAX_FRAME) - FRAME_OVERHEAD) // row
        self.max_step_tokens = min(opened.max_step_tokens, fits)
        if self.max_step_tokens < 1:
            raise RemoteProtocolError(f"{self._name}: frames of {welcome.max_frame} bytes hold no token")
        self._connection.peer_max_frame = welcome.max_frame

    def _check_welcome(self, welcome: Welcome) -> None:
        model = self._settings.model
        if welcome.version != PROTOCOL_VERSION:
            raise RemoteProtocolError(f"{self._name}: chose protocol version {welcome.version}, not offered")
        if welcome.digest != model.digest or welcome.n_blocks != model.n_blocks:
            raise ModelMismatchError(
                f"{self._name} serves a model with digest {welcome.digest[:12]}, "
                f"ours has {model.digest[:12]}",
                hint="Client and nodes need the same model files: same weights, same quantization.",
            )
        if not welcome.span.covers(self.hop.span):
            raise PeerError(
                f"{self._name} serves blocks {welcome.span}, not {self.hop.span} as announced",
                code=ErrorCode.SPAN_NOT_SERVED,
                retriable=False,
            )
        if self.codec not in welcome.codecs:
            raise PeerError(
                f"{self._name} does not speak the codec {self.codec}, as announced",
                code=ErrorCode.UNSUPPORTED_CODEC,
                retriable=False,
            )

    # Receiving.

    async def _next(self) -> Message:
        """The next message that is no PONG, with a PING whenever the peer has been silent for long."""
        patience, connection = self._settings.patience, self._connection
        pinged = False
        while True:
            heard = connection.bytes_received
            try:
                async with asyncio.timeout(patience.pong_within_s if pinged else patience.ping_after_s):
                    message = await connection.receive()
            except TimeoutError:
                if connection.bytes_received != heard:
                    pinged = False
                elif pinged:
                    silent = patience.ping_after_s + patience.pong_within_s
                    raise PeerTimeoutError(f"{self._name} is silent for {silent:g} s") from None
                else:
                    self._ping()
                    pinged = True
            else:
                if not isinstance(message, Pong):
                    return message
                pinged = False
            if self._sent and perf_counter() - self._sent[0].at > patience.step_s:
                raise PeerTimeoutError(f"{self._name} answered no step for {patience.step_s:g} s")

    def _ping(self) -> None:
        """Not awaited: a peer that reads nothing any more must not keep us from noticing."""
        self._pings += 1
        self._connection.stream.write(encode_frame(encode(Ping(self._pings))))

    def _check(self, result: Result, sent: _Sent) -> None:
        rows = {Want.NOTHING: 0, Want.LAST: 1, Want.ALL: sent.tokens}[sent.want]
        expected = (self._session, sent.step, rows)
        if (result.session, result.step, result.tokens) != expected:
            raise RemoteProtocolError(
                f"{self._name}: RESULT of step {result.step} with {result.tokens} rows, "
                f"not of step {sent.step} with {rows}"
            )
        if rows and result.position != sent.position + sent.tokens - rows:
            raise RemoteProtocolError(f"{self._name}: RESULT of another position, {result.position}")
        size = payload_bytes(self.codec, rows, self._settings.hidden_size)
        if len(result.payload) != size:
            raise RemoteProtocolError(
                f"{self._name}: RESULT of {len(result.payload)} bytes; {rows} rows take {size}",
                code=ErrorCode.BAD_TENSOR,
            )

    def _unexpected(self, message: Message) -> SwarmError:
        if isinstance(message, ErrorMessage | Refused | Busy):
            return error_of(message, self.peer_id)
        return RemoteProtocolError(f"{self._name}: {type(message).__name__.upper()} is no answer here")

    @property
    def _name(self) -> str:
        return f"peer {self.peer_id[-8:]}"
