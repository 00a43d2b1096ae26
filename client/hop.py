"""The client's side of one hop: a session on one node, over the client's link to it.

Steps may be sent ahead of their results, which come back in order.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from ..swarm.codecs import payload_bytes
from ..swarm.errors import (
    ErrorCode,
    NetworkError,
    RemoteProtocolError,
    StreamClosedError,
    SwarmError,
)
from ..swarm.link import LinkPool, NodeLink, Reply, span_problem
from ..swarm.messages import (
    MAX_RETRY_MS,
    PAGE_TOKENS,
    Busy,
    Close,
    ErrorMessage,
    Open,
    Opened,
    Refused,
    Result,
    Step,
    Want,
    Welcome,
)
from ..swarm.replies import error_of
from ..swarm.types import Hop
from ..swarm.wire import DEFAULT_MAX_FRAME, FIXED_HEADER, MAX_HEADER, Payload
from .prefix import PageChain
from .trace import HopTrace, Phase

FRAME_OVERHEAD = FIXED_HEADER.size + MAX_HEADER
IN_FLIGHT_BYTES = 1024 * 1024
"""Payload that one session has under way to a node: what a prefill may put before other sessions' decode
steps on a link, and enough to fill a line of 100 Mbit/s with a round trip of 80 ms."""
STEPS_IN_FLIGHT = 2
"""So many steps may be under way whatever their size: one that computes and one that waits."""


class HopFailedError(NetworkError):
    """A hop cannot go on (or begin); another route may. ``cause`` is what happened."""

    def __init__(self, peer_id: str, cause: SwarmError) -> None:
        super().__init__(cause.message, hint=cause.hint)
        self.peer_id = peer_id
        self.cause = cause


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What all hops of a session share. ``max_tokens``: KV cache to reserve, in tokens."""

    hidden_size: int
    max_tokens: int


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
    """An open session on one node. Made by ``open``; ends with ``close``.

    ``length``: tokens that its KV cache held already when it opened.
    """

    def __init__(
        self, hop: Hop, link: NodeLink, settings: SessionSettings, codec: str, chain: PageChain | None
    ) -> None:
        self.hop = hop
        self.codec = codec
        self.trace = HopTrace(hop.peer_id, hop.span, codec)
        self.max_step_tokens = 0
        self.length = 0
        self.round_trip_s = 0.0  # of the opening
        self._link = link
        self._settings = settings
        self._chain = chain
        self._session = secrets.token_bytes(16)
        self._steps = 0
        self._deadline_ms = 0
        self._sent: deque[_Sent] = deque()
        self._in_flight = 0  # bytes of payload
        self._opening_since: float | None = None
        self._inbox: deque[Reply] = deque()
        self._failure: SwarmError | None = None
        self._waiter: asyncio.Future[None] | None = None  # of who receives
        self._room: asyncio.Future[None] | None = None  # of who waits to send
        self._closed = False

    @classmethod
    async def open(
        cls,
        links: LinkPool,
        hop: Hop,
        settings: SessionSettings,
        codec: str,
        place: tuple[int, int],
        chain: PageChain | None = None,
        ids: Sequence[int] = (),
    ) -> HopClient:
        """Open a session on the node, dialling it if need be; ``place`` is (hop number, number of hops).

        ``chain`` names the pages of ``ids`` that the node may hold already. Raises NetworkError's subclasses,
        BusyError, ModelMismatchError, PeerError and RemoteProtocolError.
        """
        link = await links.get(hop.peer_id, hop.maddrs)
        client = cls(hop, link, settings, codec, chain)
        client._deadline_ms = max(1, min(MAX_RETRY_MS, int(links.patience.step_s * 1000)))
        try:
            await client._open(place, chain.hashes(ids) if chain is not None else ())
        except BaseException:
            client.close()
            raise
        return client

    @property
    def peer_id(self) -> str:
        return self.hop.peer_id

    def post(
        self, payload: Payload, tokens: int, position: int, want: Want, phase: Phase | None = None
    ) -> None:
        """Send a step of ``tokens`` encoded tokens. Never waits; whoever sends many awaits ``room`` before.

        Raises what the link failed of.
        """
        if self._failure is not None:
            raise self._failure
        self._steps += 1
        self._link.post(
            Step(self._session, self._steps, position, tokens, want, self._deadline_ms, payload=payload)
        )
        phase = phase or self.trace.decode
        self._sent.append(_Sent(self._steps, position, tokens, want, payload, perf_counter(), phase))
        self._in_flight += len(payload)
        self._link.watch()

    async def room(self, size: int) -> None:
        """Wait until a step of ``size`` bytes may be sent. One task at a time. Raises as ``receive``."""
        while len(self._sent) >= STEPS_IN_FLIGHT and self._in_flight + size > IN_FLIGHT_BYTES:
            if self._failure is not None:
                raise self._failure
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def receive(self) -> Result:
        """The result of the oldest step that has none yet; its payload's size is checked, its values are not.

        Raises StreamClosedError, PeerTimeoutError, PeerError and RemoteProtocolError; the session is then
        over.
        """
        message = await self._next()
        now = perf_counter()
        if not isinstance(message, Result):
            raise self._unexpected(message)
        if not self._sent:
            raise RemoteProtocolError(f"{self._link.name}: RESULT of step {message.step}, which was not sent")
        sent = self._sent.popleft()
        self._in_flight -= len(sent.payload)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._check(message, sent)
        phase = sent.phase
        node_us = message.queue_us + message.compute_us + message.codec_us
        phase.steps += 1
        phase.tokens += sent.tokens
        phase.queue_s += message.queue_us * 1e-6
        phase.compute_s += message.compute_us * 1e-6
        phase.codec_s += message.codec_us * 1e-6
        phase.wire_s += max(0.0, now - sent.at - node_us * 1e-6)
        phase.bytes_sent += len(sent.payload)
        phase.bytes_received += len(message.payload)
        return message

    @property
    def awaited_payload(self) -> tuple[Payload, int] | None:
        """The payload and token count of the oldest step without a result: what an error is about."""
        return (self._sent[0].payload, self._sent[0].tokens) if self._sent else None

    def close(self, ids: Sequence[int] = ()) -> None:
        """Free the session's KV cache on the node. Never waits; may be called again.

        ``ids``: all that was fed, so that the node can keep its whole pages for a session that begins with
        them.
        """
        if self._closed:
            return
        self._closed = True
        if self._link.failure is None:
            self._link.post(Close(self._session, self._chain.hashes(ids) if self._chain else ()))
        self._link.leave(self._session)
        self.fail(StreamClosedError("the session was closed on this side"))

    # What the link tells.

    @property
    def waiting_since(self) -> float | None:
        return self._sent[0].at if self._sent else self._opening_since

    def deliver(self, reply: Reply) -> None:
        if len(self._inbox) > len(self._sent) + 1:
            self.fail(RemoteProtocolError(f"{self._link.name} answers what was not asked"))
            return
        self._inbox.append(reply)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: SwarmError) -> None:
        if self._failure is None:
            self._failure = error
        for future in (self._waiter, self._room):
            if future is not None and not future.done():
                future.set_result(None)

    # Opening.

    async def _open(self, place: tuple[int, int], prefix: tuple[bytes, ...]) -> None:
        settings, hop, link = self._settings, self.hop, self._link
        fresh = not link.welcome.done()
        began = self._opening_since = perf_counter()
        link.join(self._session, self)
        link.post(
            Open(
                session=self._session,
                span=hop.span,
                max_tokens=settings.max_tokens,
                codec=self.codec,
                reply_codec=self.codec,
                hop=place[0],
                hops=place[1],
                prefix=prefix,
            )
        )
        link.watch()
        # Shielded: one session's end must not take the answer from the others.
        welcome = await asyncio.shield(link.welcome)
        if (problem := span_problem(welcome, hop, self.codec, link.name)) is not None:
            raise problem
        opened = await self._next()
        self.round_trip_s = link.round_trip_s if fresh else perf_counter() - began
        self._opening_since = None
        if not isinstance(opened, Opened):
            raise self._unexpected(opened)
        row = payload_bytes(self.codec, 1, settings.hidden_size)
        fits = (min(welcome.max_frame, DEFAULT_MAX_FRAME) - FRAME_OVERHEAD) // row
        self.max_step_tokens = min(opened.max_step_tokens, fits)
        if self.max_step_tokens < 1:
            raise RemoteProtocolError(f"{link.name}: frames of {welcome.max_frame} bytes hold no token")
        self.length = self._checked_length(opened.length, welcome, len(prefix))

    def _checked_length(self, length: int, welcome: Welcome, pages: int) -> int:
        offered = pages * PAGE_TOKENS if welcome.page_tokens == PAGE_TOKENS else 0
        if length > offered or length % PAGE_TOKENS:
            raise RemoteProtocolError(
                f"{self._link.name}: a new session holds {length} tokens already, "
                f"not whole pages of the {offered} that it may know"
            )
        return length

    # Receiving.

    async def _next(self) -> Reply:
        while not self._inbox:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._inbox.popleft()

    def _check(self, result: Result, sent: _Sent) -> None:
        rows = {Want.NOTHING: 0, Want.LAST: 1, Want.ALL: sent.tokens}[sent.want]
        name = self._link.name
        if result.step != sent.step or result.tokens != rows:
            raise RemoteProtocolError(
                f"{name}: RESULT of step {result.step} with {result.tokens} rows, "
                f"not of step {sent.step} with {rows}"
            )
        if rows and result.position != sent.position + sent.tokens - rows:
            raise RemoteProtocolError(f"{name}: RESULT of another position, {result.position}")
        size = payload_bytes(self.codec, rows, self._settings.hidden_size)
        if len(result.payload) != size:
            raise RemoteProtocolError(
                f"{name}: RESULT of {len(result.payload)} bytes; {rows} rows take {size}",
                code=ErrorCode.BAD_TENSOR,
            )

    def _unexpected(self, message: Reply) -> SwarmError:
        if isinstance(message, ErrorMessage | Refused | Busy):
            return error_of(message, self.peer_id)
        name = type(message).__name__.upper()
        return RemoteProtocolError(f"{self._link.name}: {name} is no answer here")
