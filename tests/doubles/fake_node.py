"""A node inside the test: the node's own sessions around the toy model, over the in-memory network.

What it does wrong, and when, its ``Behaviour`` says: in its streams, where messages are recorded, dropped,
changed and made up, and around its engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np

from swarm_node.node.engine.batch_runner import BatchReport
from swarm_node.node.engine.jobs import StepDone, StepFailed, StepJob
from swarm_node.node.limits.quotas import Limits
from swarm_node.node.sessions.server import NodeServer
from swarm_node.node.sessions.session import NodeSession
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.errors import NetworkError, RemoteProtocolError, StreamClosedError
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS, Progress
from swarm_node.swarm.protocol.messages import (
    Attach,
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
    Replay,
    Replayed,
    Result,
    Step,
    Void,
    Welcome,
    decode,
    encode,
    singles,
)
from swarm_node.swarm.protocol.wire import FrameParser, encode_frame
from swarm_node.swarm.transport.interface import READ_SIZE, Buffer, Stream
from swarm_node.swarm.transport.memory import MemoryNetwork, MemoryTransport
from swarm_node.swarm.types import Span
from tests.doubles.toy_engine import CONFIG, HYBRID, ToyEngine, ToySpan
from tests.doubles.toy_model import CONTEXT, MODEL

GARBAGE = b"no frame at all, but many bytes of something else"
PLENTY = 10**6
"""Of what a node counts and tests do not."""


class Claims(Enum):
    """What a node tells of its sessions when it is asked: the truth, nothing, or a lie."""

    TRUTH = "truth"
    NOTHING = "nothing"
    NEVER_CAME = "never came"
    ANSWERED = "answered"
    WORKS = "works"


@dataclass
class Behaviour:
    """What a fake node does wrong, and when; step numbers are a session's, from 1."""

    max_step_tokens: int = 64
    codecs: tuple[str, ...] = KINDS
    scales: bytes = b""  # the table that it wants
    digest: str = MODEL.digest
    busy_times: int = 0
    retry_after_ms: int = 20
    refuse: Refused | None = None  # its session is filled in
    die_at_step: int | None = None  # once: end every stream instead of answering, and forget all sessions
    mute_at_step: int | None = None  # once: nothing more on any stream there is, like a frozen process
    error_at_step: tuple[int, ErrorMessage] | None = None  # once; session and step are filled in
    error_from_step: tuple[int, ErrorMessage] | None = None  # and ever after, but for held steps
    nan_at_step: int | None = None  # once
    nan_from_step: int | None = None  # and ever after
    lie: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    """From step ``lie_from_step`` on: the rows it sends, of its input and its true rows."""
    lie_from_step: int = 1
    made_up: Callable[[Step], Step] | None = None
    """Once, after step ``made_up_at_step``: a step that nobody asked for, to the next hop."""
    made_up_at_step: int = 1
    wrong_rows_at_step: int | None = None  # once
    more_rows_from_step: int | None = None  # and ever after: a row more, and said to be so
    garbage_at_step: int | None = None  # once: bytes that are no frame, to whom the result is for
    die_at_open: bool = False  # once
    die_at_replay: bool = False  # once: when it is asked for one
    die_at_hold: int | None = None  # once: at the so-manieth held step
    swallows: frozenset[type] = frozenset()  # messages that it takes and does nothing about, ever
    claims: Claims = Claims.TRUTH
    step_delay_s: float = 0.0
    told_us: int = 200  # what it says that computing took
    page_tokens: int = PAGE_TOKENS  # 0: no prefix cache
    opened_length: int | None = None  # what it says to hold, whatever it holds
    journal: bool = True
    keeps_states: bool = False  # half of its blocks do
    features: tuple[str, ...] | None = None  # what it says to understand; None: all that it does
    chains: bool = True  # False: says that it cannot reach the next hop

    def once(self, name: str, step: int) -> bool:
        """Whether it is now: at the step that ``name`` says, or the first after it where that was void. A
        step that nobody wants rows of is not void."""
        at = getattr(self, name)
        if at is None or step < at:
            return False
        setattr(self, name, None)
        return True


class _Stream:
    """A ``transport.Stream`` of a fake node: ``came`` says what of each message the node gets, ``goes`` what
    the peer gets of what the node says. Frames that no message is in go through as they are."""

    def __init__(
        self,
        stream: Stream,
        came: Callable[[_Stream, Message], Message | None],
        goes: Callable[[Message], Sequence[Message | bytes]],
    ) -> None:
        self.inner = stream
        self.muted = False
        self._came, self._goes = came, goes
        self._incoming, self._outgoing = FrameParser(), FrameParser()
        self._arrived = bytearray()

    @property
    def peer_id(self) -> str:
        return self.inner.peer_id

    @property
    def remote_maddr(self) -> str:
        return self.inner.remote_maddr

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        while not self._arrived:
            data = await self.inner.read(max_bytes)
            if self.muted:
                await _forever()
            if not data:
                return b""
            for message in _messages(self._incoming, data):
                if not isinstance(message, bytes):
                    message = self._came(self, message)
                if message is not None:
                    self._arrived += _bytes(message)
            await asyncio.sleep(0)  # for what the node does about one read to have begun before the next
        data = bytes(self._arrived[:max_bytes])
        del self._arrived[:max_bytes]
        return data

    def write(self, buffers: Iterable[Buffer]) -> None:
        if self.muted:
            return
        out = []
        for message in _messages(self._outgoing, b"".join(buffers)):
            out += [message] if isinstance(message, bytes) else self._goes(message)
        if out:
            self.inner.write([_bytes(each) for each in out])

    def say(self, message: Message) -> None:
        """What the node does not know of."""
        if not self.muted:
            try:
                self.inner.write([_bytes(message)])
            except StreamClosedError:
                pass

    async def drain(self) -> None:
        await self.inner.drain()

    def close(self) -> None:
        self.inner.close()


def _messages(parser: FrameParser, data: bytes) -> Iterable[Message | bytes]:
    """The messages in ``data``, those of a group one by one; all of it, as it is, where it holds others."""
    parser.receive(data)
    try:
        while (frame := parser.next_frame()) is not None:
            yield from singles(decode(frame))
    except RemoteProtocolError:
        yield data


def _bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else b"".join(encode_frame(encode(message)))


class _Transport:
    """The node's own, to next hops: where it may dial, and through which streams."""

    def __init__(self, node: FakeNode, transport: MemoryTransport) -> None:
        self._node = node
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = 10.0,
        *,
        lazy: bool = False,
    ) -> Stream:
        if peer_id in self._node.cannot_reach or not self._node.behaviour.chains:
            raise NetworkError(f"{peer_id} cannot be reached from {self._node.peer_id}")
        stream = await self._transport.open_stream(peer_id, protocol_id, maddrs, timeout, lazy=lazy)
        return self._node.to_next_hop(stream)


@dataclass
class FakeNode:
    """One node. ``hellos``, ``opens``, ``steps``, ``attaches``, ``closes``, ``replays``, ``voids`` and
    ``pings`` record what it was asked. ``cannot_reach``: peers that it cannot dial."""

    peer_id: str
    span: Span
    network: MemoryNetwork
    behaviour: Behaviour = field(default_factory=Behaviour)
    opens: list[Open] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    attaches: list[Attach] = field(default_factory=list)
    closes: list[Close] = field(default_factory=list)
    replays: list[Replay] = field(default_factory=list)
    voids: list[Void] = field(default_factory=list)
    cannot_reach: set[str] = field(default_factory=set)
    hellos: int = 0
    pings: int = 0
    holds: int = 0
    _server: NodeServer | None = None
    _inbound: set[_Stream] = field(default_factory=set)
    _to_next: dict[str, _Stream] = field(default_factory=dict)
    _held: set[tuple[bytes, int]] = field(default_factory=set)  # steps that ask for no rows, by session
    _swallowed: dict[bytes, int] = field(default_factory=dict)  # the last step that was, by session

    @property
    def server(self) -> NodeServer:
        """Made when it is first needed, for what ``behaviour`` is then."""
        if self._server is None:
            how, loop = self.behaviour, asyncio.get_running_loop()
            engine = ToyEngine(
                ToySpan(self.span, self._spoil, config=HYBRID if how.keeps_states else CONFIG),
                prefix_cache=how.page_tokens > 0,
                step_delay=lambda: self.behaviour.step_delay_s,
                before=self._before,
                after=self._after,
            )
            limits = Limits(
                max_sessions_per_peer=256,
                max_step_tokens=how.max_step_tokens,
                work_per_second=PLENTY,
                work_at_once=PLENTY,
                dials_per_peer=32,
                dials_per_minute_per_peer=PLENTY,
                dials_per_minute_per_group=PLENTY,
                link_seconds=0.3,
            )
            self._server = NodeServer(
                engine,
                replace(MODEL, digest=how.digest),
                context_tokens=CONTEXT,
                agent="fake",
                limits=limits,
                transport=_Transport(self, self.network.transport(self.peer_id)),  # type: ignore[arg-type]
                clock=loop.time,
            )
        return self._server

    @property
    def engine(self) -> ToyEngine:
        engine = self.server.engine
        assert isinstance(engine, ToyEngine)
        return engine

    @property
    def sessions(self) -> list[NodeSession]:
        return list(self.server.sessions._sessions.values())

    @property
    def open_sessions(self) -> set[bytes]:
        return {session.id for session in self.sessions}

    def lose_journals(self) -> None:
        for session in self.sessions:
            if session.journal is not None:
                session.journal.close()

    async def handle(self, stream: Stream) -> None:
        faulty = _Stream(stream, self._asked, self._answers)
        self._inbound.add(faulty)
        try:
            await self.server.handle(faulty)
        finally:
            self._inbound.discard(faulty)

    def to_next_hop(self, stream: Stream) -> _Stream:
        faulty = self._to_next[stream.peer_id] = _Stream(stream, lambda _, message: message, self._forwards)
        return faulty

    def die(self) -> None:
        """As a process that ends and starts anew: no stream, no session."""
        for connection in list(self.server._connections):
            connection.close()
        for stream in [*self._inbound, *self._to_next.values()]:
            stream.close()

    def mute(self) -> None:
        for stream in [*self._inbound, *self._to_next.values()]:
            stream.muted = True

    def drop_link(self, peer_id: str) -> None:
        if (stream := self._to_next.get(peer_id)) is not None:
            stream.close()

    # What it is asked.

    def _asked(self, stream: _Stream, message: Message) -> Message | None:
        how = self.behaviour
        match message:
            case Hello():
                self.hellos += 1
            case Ping():
                self.pings += 1
            case Step():
                self.steps.append(message)
                self.holds += message.hold
                if message.hold:
                    self._held.add((message.session, message.step))
                if message.hold and how.once("die_at_hold", self.holds):
                    self.die()
                    return None
                if Step in how.swallows:
                    self._swallowed[message.session] = message.step
            case Attach():
                self.attaches.append(message)
            case Close():
                self.closes.append(message)
            case Void():
                self.voids.append(message)
            case Replay():
                self.replays.append(message)
                if how.die_at_replay:
                    how.die_at_replay = False
                    self.die()
                    return None
            case Open():
                return self._opens(stream, message)
        deaf = type(message) in how.swallows or Hello in how.swallows
        return None if deaf else message

    def _opens(self, stream: _Stream, message: Open) -> Open | None:
        how = self.behaviour
        if Open in how.swallows:
            return None
        self.opens.append(message)
        if Hello in how.swallows:
            return None
        if how.die_at_open:
            how.die_at_open = False
            self.die()
        elif how.busy_times:
            how.busy_times -= 1
            stream.say(Busy(message.session, how.retry_after_ms, "no room"))
        elif how.refuse is not None:
            stream.say(replace(how.refuse, session=message.session))
        else:
            return message if how.journal else replace(message, journal=False)
        return None

    # What it answers.

    def _answers(self, message: Message) -> Sequence[Message | bytes]:
        how = self.behaviour
        match message:
            case Welcome():
                limit = min(how.max_step_tokens, message.max_step_tokens)
                pages = min(how.page_tokens, message.page_tokens)
                message = replace(message, codecs=how.codecs, max_step_tokens=limit, page_tokens=pages)
                features = message.features if how.features is None else how.features
                message = replace(message, scales=how.scales, features=features)
            case Opened():
                length = message.length if how.opened_length is None else how.opened_length
                link_us = 100 * message.chained
                message = replace(message, length=length, link_us=link_us)
            case Pong():
                message = self._told(message)
            case Replayed():
                message = replace(message, took_us=10, link_us=100)
            case Result():
                return self._result(message)
        return [message]

    def _told(self, pong: Pong) -> Pong:
        """Where the requests of sessions are, or what ``behaviour.claims``."""
        claims, told = self.behaviour.claims, []
        for each in () if claims is Claims.NOTHING else pong.tells:
            received, done = max(each.received, self._swallowed.get(each.session, 0)), each.done
            if claims is Claims.NEVER_CAME:
                received = done = 0
            elif claims is Claims.ANSWERED:
                done = received
            busy = each.busy or claims is Claims.WORKS
            told.append(Progress(each.session, received, done, each.work, busy))
        return replace(
            pong,
            queued=0,
            free_kv_tokens=1000,
            running=0,
            batch=0,
            tokens_per_s=0,
            queue_us=0,
            tells=tuple(told),
        )

    def _result(self, result: Result) -> Sequence[Message | bytes]:
        how = self.behaviour
        told = replace(result, queue_us=100, compute_us=how.told_us, codec_us=50, batch=1)
        if (result.session, result.step) in self._held:
            return [told]
        if how.once("garbage_at_step", result.step):
            return [GARBAGE]
        tokens, payload = result.tokens, bytes(result.payload)
        row = len(payload) // max(1, tokens)
        if how.once("wrong_rows_at_step", result.step):
            tokens += 1
        if self._adds_rows(result.step):
            payload, tokens = payload + payload[:row], tokens + 1
        return [replace(told, tokens=tokens, payload=payload)]

    def _adds_rows(self, step: int) -> bool:
        return step >= (self.behaviour.more_rows_from_step or 1 << 60)

    def _forwards(self, message: Message) -> Sequence[Message | bytes]:
        how = self.behaviour
        if not isinstance(message, Step) or message.hold:
            return [message]
        if how.once("garbage_at_step", message.step):
            return [GARBAGE]
        rows = bytes(message.payload)
        row = len(rows) // message.tokens
        if how.once("wrong_rows_at_step", message.step):
            rows += rows[:row]
        if self._adds_rows(message.step):
            rows += rows[:row]
            message = replace(message, tokens=message.tokens + 1)
        spent = (*message.spent[:-1], (100, how.told_us, 50, 1))
        message = replace(message, payload=rows, spent=spent)
        if how.made_up is None or message.step < how.made_up_at_step:
            return [message]
        made_up, how.made_up = how.made_up, None
        return [message, made_up(message)]

    # What it computes.

    def _before(self, job: StepJob) -> None:
        how = self.behaviour
        if how.once("die_at_step", job.step):
            self.die()
        if how.once("mute_at_step", job.step):
            self.mute()
        if how.error_at_step is not None and how.error_at_step[0] <= job.step:
            (_, error), how.error_at_step = how.error_at_step, None
            job.refusal = _failure(error)
        elif how.error_from_step is not None and how.error_from_step[0] <= job.step and self._is_wanted(job):
            job.refusal = _failure(how.error_from_step[1])

    def _is_wanted(self, job: StepJob) -> bool:
        """It is not held."""
        return not any(step.step == job.step and step.hold for step in self.steps)

    def _spoil(self, step: int, came: np.ndarray, rows: np.ndarray) -> np.ndarray:
        how = self.behaviour
        return rows if how.lie is None or step < how.lie_from_step else how.lie(came, rows)

    def _after(self, report: BatchReport) -> None:
        how = self.behaviour
        for job, outcome in report.finished:
            if not isinstance(outcome, StepDone):
                continue
            spoils = how.once("nan_at_step", job.step) or (how.nan_from_step or 1 << 60) <= job.step
            if spoils and outcome.rows:
                rows = bytearray(outcome.payload)
                last = len(rows) - len(rows) // outcome.rows
                rows[last : last + 4] = b"\x00\x00\xc0\x7f"
                outcome.payload = bytes(rows)


def _failure(error: ErrorMessage) -> StepFailed:
    return StepFailed(error.code, error.message, error.hint, error.retriable, error.holds)


async def _forever() -> None:
    await asyncio.get_running_loop().create_future()
