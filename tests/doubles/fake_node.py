"""A node inside the test that speaks the real messages, chains included, around the toy model.

Simple where a node is fast: one lock around all computing, links to next hops without limits. What it does
wrong, and when, its ``Behaviour`` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from torch import Tensor

from swarm_node.swarm.codecs import activations
from swarm_node.swarm.errors import ErrorCode, NetworkError, RemoteProtocolError, SwarmError
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.protocol.error_frames import error_message
from swarm_node.swarm.protocol.field_types import PAGE_TOKENS, Downstream, Progress
from swarm_node.swarm.protocol.hop_session import HopSession
from swarm_node.swarm.protocol.messages import (
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
    Pong,
    Refused,
    Replay,
    Replayed,
    Result,
    Step,
    Want,
    Welcome,
)
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import NodeState, Span
from tests.doubles.toy_model import HIDDEN, MODEL, N_BLOCKS, run_block

REPLAY_TOKENS = 16
"""Of one replayed step."""


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
    codecs: tuple[str, ...] = activations.CODECS
    digest: str = MODEL.digest
    busy_times: int = 0
    retry_after_ms: int = 20
    refuse: Refused | None = None  # its session is filled in
    die_at_step: int | None = None  # once: end every stream instead of answering, and forget all sessions
    mute_at_step: int | None = None  # once: nothing more on any stream there is, like a frozen process
    error_at_step: tuple[int, ErrorMessage] | None = None  # once; session and step are filled in
    nan_at_step: int | None = None  # once
    nan_from_step: int | None = None  # and ever after
    lie: Callable[[Tensor, Tensor], Tensor] | None = None
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
    chains: bool = True  # False: says that it cannot reach the next hop

    def once(self, name: str, step: int) -> bool:
        if getattr(self, name) != step:
            return False
        setattr(self, name, None)
        return True


@dataclass
class _Page:
    """``sums``: by block, of its inputs up to each token. ``rows``: of the journal, if it has them."""

    sums: dict[int, list[Tensor]]
    rows: bytes


class _Session:
    """``journal``: its rows as sent, the first of position ``journal_from``. ``down``: who gets results;
    None: the owner. ``lost``: nobody does."""

    def __init__(self, opened: Open, owner: Connection) -> None:
        self.opened = opened
        self.names = opened.prefix  # of whole pages that it is going to hold
        self.owner = owner
        self.upstream = opened.upstream
        self.fed_by: Connection | None = None
        self.down: Downstream | None = None
        self.lost = False
        self.opening = True
        self.received = self.done = 0
        self.machine = HopSession(opened.max_tokens)
        self.journal = bytearray()
        self.journal_from = 0
        self.grown = asyncio.Event()
        self.replay: asyncio.Task[None] | None = None
        self.least_step = 0  # older answers are sent to nobody
        self.waiting: list[tuple[Step, bytes, tuple[tuple[int, int, int, int], ...]]] = []
        self.histories: dict[int, list[Tensor]] = {
            block: [] for block in range(opened.span.start, opened.span.end)
        }

    @property
    def length(self) -> int:
        return len(self.histories[self.opened.span.start])

    @property
    def row(self) -> int:
        return activations.payload_bytes(self.opened.reply_codec, 1, HIDDEN)

    def take(self, pages: dict[bytes, _Page]) -> None:
        """Begin with the pages that are there already."""
        for name in self.opened.prefix:
            if name not in pages or self.length >= self.opened.max_tokens:
                break
            for block, history in self.histories.items():
                history.extend(pages[name].sums[block])
            self.journal += pages[name].rows
        self.journal_from = self.length - len(self.journal) // self.row
        self.machine = HopSession(self.opened.max_tokens, length=self.length)

    def fork(self, parent: _Session) -> None:
        """Begin with what another session has."""
        tokens = self.opened.parent_tokens
        for block, history in self.histories.items():
            history.extend(parent.histories[block][:tokens])
        self.journal_from = min(parent.journal_from, tokens)
        self.journal += parent.read(self.journal_from, tokens)
        self.machine = HopSession(self.opened.max_tokens, length=tokens)

    def leave(self, names: Sequence[bytes], pages: dict[bytes, _Page]) -> None:
        """Keep the whole pages that have a name."""
        for number, name in enumerate(names[: self.length // PAGE_TOKENS]):
            start = number * PAGE_TOKENS
            end = start + PAGE_TOKENS
            sums = {block: history[start:end] for block, history in self.histories.items()}
            rows = self.read(start, end) if self.journal_from <= start else b""
            pages[name] = _Page(sums, rows)

    def keep(self, pages: dict[bytes, _Page]) -> None:
        """Keep the pages that are complete and were named when the session opened, once each."""
        whole = self.length // PAGE_TOKENS
        if any(name not in pages for name in self.names[:whole]):
            self.leave(self.names, pages)

    def write(self, position: int, rows: bytes) -> None:
        if position < self.journal_from:
            self.journal_from, self.journal = position, bytearray()
        del self.journal[(position - self.journal_from) * self.row :]
        self.journal += rows
        self.grown.set()
        self.grown = asyncio.Event()

    def read(self, start: int, end: int) -> bytes:
        row = self.row
        return bytes(self.journal[(start - self.journal_from) * row : (end - self.journal_from) * row])

    @property
    def journal_until(self) -> int:
        return self.journal_from + len(self.journal) // self.row


class _NextHop:
    """This node's own stream to another."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.answered: dict[tuple[bytes, int], asyncio.Future[Message]] = {}


@dataclass
class FakeNode:
    """One node. ``hellos``, ``opens``, ``steps``, ``attaches``, ``closes``, ``replays`` and ``pings`` record
    what it was asked; ``sessions`` what it holds, ``pages`` what each page was that has a name.
    ``cannot_reach``: peers that it cannot dial."""

    peer_id: str
    span: Span
    network: MemoryNetwork
    behaviour: Behaviour = field(default_factory=Behaviour)
    opens: list[Open] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    attaches: list[Attach] = field(default_factory=list)
    closes: list[Close] = field(default_factory=list)
    replays: list[Replay] = field(default_factory=list)
    pages: dict[bytes, _Page] = field(default_factory=dict)
    cannot_reach: set[str] = field(default_factory=set)
    hellos: int = 0
    pings: int = 0
    holds: int = 0
    sessions: dict[bytes, _Session] = field(default_factory=dict)
    _inbound: set[Connection] = field(default_factory=set)
    _next: dict[str, _NextHop] = field(default_factory=dict)
    _dials: dict[str, asyncio.Lock] = field(default_factory=dict)
    _computing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def open_sessions(self) -> set[bytes]:
        return set(self.sessions)

    async def handle(self, stream: Stream) -> None:
        connection = Connection(stream)
        self._inbound.add(connection)
        try:
            while True:
                message = await connection.receive()
                if isinstance(message, Ping):
                    await asyncio.sleep(0)  # for what came before to have begun
                if isinstance(message, Step) and (session := self.sessions.get(message.session)):
                    session.received = message.step
                if type(message) in self.behaviour.swallows:
                    continue
                match message:
                    case Step():
                        # Beside the reader, so that PINGs are answered while a step takes long.
                        self._spawn(self._run_step(connection, message))
                    case Open():
                        self._spawn(self._open(connection, message))
                    case Replay():
                        self._start_replay(connection, message)
                    case _:
                        for answer in self._answer(message, connection):
                            await connection.send(answer)
        except RemoteProtocolError as error:
            await self._say(connection, error_message(error))
        except NetworkError:
            pass
        finally:
            self._inbound.discard(connection)
            connection.close()
            self._stream_ended(connection)

    def die(self) -> None:
        """As a process that ends and starts anew: no stream, no session."""
        for session in list(self.sessions):
            self._forget(session)
        for connection in [*self._inbound, *(hop.connection for hop in self._next.values())]:
            connection.close()

    def mute(self) -> None:
        for connection in [*self._inbound, *(hop.connection for hop in self._next.values())]:
            connection.send = connection.receive = _forever  # type: ignore[assignment, method-assign]

    def drop_link(self, peer_id: str) -> None:
        if (hop := self._next.get(peer_id)) is not None:
            hop.connection.close()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _say(self, connection: Connection, message: Message) -> None:
        try:
            await connection.send(message)
        except SwarmError:
            pass  # gone

    def _stream_ended(self, connection: Connection) -> None:
        for name, session in list(self.sessions.items()):
            if session.owner is connection:
                self._forget(name)
            elif session.fed_by is connection and session.upstream:
                session.fed_by = None
                text = f"the stream of {session.upstream} has ended"
                error = ErrorMessage(name, None, ErrorCode.UPSTREAM_LOST, text, True)
                self._spawn(self._say(session.owner, error))

    def _forget(self, name: bytes) -> _Session | None:
        session = self.sessions.pop(name, None)
        if session is not None and session.replay is not None:
            session.replay.cancel()
        return session

    def _answer(self, message: Message, connection: Connection) -> list[Message]:
        how = self.behaviour
        match message:
            case Hello():
                if message.digest != how.digest:
                    text = "this node serves another model"
                    return [ErrorMessage(None, None, ErrorCode.MODEL_MISMATCH, text, False, "Same files!")]
                self.hellos += 1
                limit, pages = how.max_step_tokens, how.page_tokens
                return [
                    Welcome(1, how.digest, self.span, how.codecs, 1 << 20, "fake", limit, N_BLOCKS, pages)
                ]
            case Ping():
                self.pings += 1
                tells = self._tell(message.about, connection)
                return [Pong(message.nonce, len(self.sessions), 0, 1000, NodeState.ONLINE, tells=tells)]
            case Attach():
                self.attaches.append(message)
                session = self.sessions.get(message.session)
                if session is None or session.owner is not connection:
                    return [_unknown(message.session)]
                session.upstream, session.fed_by = message.upstream, None
                if message.unnamed:
                    session.names = session.names[: session.length // PAGE_TOKENS]
                return [Attached(message.session, session.length)]
            case Close():
                self.closes.append(message)
                closed = self._forget(message.session)
                if closed is not None and how.page_tokens:
                    closed.leave(message.prefix, self.pages)
                return []
        raise RemoteProtocolError("unexpected")

    def _tell(self, about: Sequence[bytes], connection: Connection) -> tuple[Progress, ...]:
        """Where the requests of sessions are, or what ``behaviour.claims``."""
        told = []
        for name in about:
            session, claims = self.sessions.get(name), self.behaviour.claims
            if session is None or connection.peer_id not in (session.owner.peer_id, session.upstream):
                continue
            replays = session.replay is not None and not session.replay.done()
            busy = session.opening or replays or claims is Claims.WORKS
            received, done = session.received, session.done
            if claims is Claims.NEVER_CAME:
                received = done = 0
            elif claims is Claims.ANSWERED:
                done = received
            told.append(Progress(name, received, done, session.length, busy))
        return () if self.behaviour.claims is Claims.NOTHING else tuple(told)

    async def _open(self, connection: Connection, message: Open) -> None:
        self.opens.append(message)
        how = self.behaviour
        if how.die_at_open:
            how.die_at_open = False
            self.die()
            return
        if how.busy_times:
            how.busy_times -= 1
            await self._say(connection, Busy(message.session, how.retry_after_ms, "no room"))
            return
        if how.refuse is not None:
            await self._say(connection, replace(how.refuse, session=message.session))
            return
        parent = self.sessions.get(message.parent) if message.parent is not None else None
        if message.parent is not None and (
            parent is None or parent.owner is not connection or parent.length < message.parent_tokens
        ):
            code, text = ErrorCode.UNKNOWN_SESSION, "cannot fork it"
            await self._say(connection, Refused(message.session, code, text))
            return
        session = self.sessions[message.session] = _Session(message, connection)
        if parent is not None:
            session.fork(parent)
        elif how.page_tokens:
            session.take(self.pages)
        length = session.machine.length if how.opened_length is None else how.opened_length
        reason = ""
        if message.downstream is not None:
            try:
                if not how.chains:
                    raise NetworkError("not from here")
                await self._reach(message.downstream.peer_id)
                session.down = message.downstream
            except SwarmError as error:
                reason = error.message
        chained = session.down is not None
        session.opening = False
        await self._say(
            connection,
            Opened(message.session, length, how.max_step_tokens, chained, 100 * chained, reason),
        )

    # Steps.

    async def _run_step(self, connection: Connection, step: Step) -> None:
        self.steps.append(step)
        how = self.behaviour
        session = self.sessions.get(step.session)
        by_owner = session is not None and connection is session.owner and not session.upstream
        by_hop = session is not None and session.upstream == connection.peer_id != ""
        if session is None or not (by_owner or by_hop):
            await self._say(connection, _unknown(step.session))
            return
        session.fed_by = connection
        async with self._computing:
            if how.once("die_at_step", step.step):
                self.die()
                return
            if step.hold:
                self.holds += 1
                if how.once("die_at_hold", self.holds):
                    self.die()
                    return
            if how.once("mute_at_step", step.step):
                self.mute()
                await _forever()
            if how.step_delay_s:
                await asyncio.sleep(how.step_delay_s)
            if self.sessions.get(step.session) is not session:
                return
            try:
                answer = self._compute(step, session)
            except RemoteProtocolError:
                connection.close()
                return
        session.done = step.step
        if how.page_tokens:
            session.keep(self.pages)
        if isinstance(answer, ErrorMessage):
            await self._say(session.owner, answer)
            if step.hold and connection is not session.owner:
                await self._say(connection, answer)
        elif step.hold:
            await self._say(
                connection,
                Result(step.session, step.step, step.position, 0, b"", 100, self.behaviour.told_us, 50),
            )
        else:
            await self._pass_on(session, step, answer)

    def _compute(self, step: Step, session: _Session) -> ErrorMessage | bytes:
        """The rows of all tokens, in the codec that they leave in."""
        how = self.behaviour
        if how.error_at_step is not None and how.error_at_step[0] == step.step:
            (_, error), how.error_at_step = how.error_at_step, None
            return replace(error, session=step.session, step=step.step)
        if step.tokens > how.max_step_tokens:
            raise RemoteProtocolError(f"{step.tokens} tokens in a step")
        try:
            session.machine.on_step(step.step, step.position, step.tokens)
            x = activations.decode(session.opened.codec, step.payload, step.tokens, HIDDEN)
        except RemoteProtocolError as error:
            return error_message(error, step.session, step.step)
        came = x
        for block, history in session.histories.items():
            del history[step.position :]
            x = run_block(block, x, history)
        if how.lie is not None and step.step >= how.lie_from_step:
            x = how.lie(came, x)
        rows = bytearray(activations.encode(session.opened.reply_codec, x))
        if how.once("nan_at_step", step.step) or (how.nan_from_step or 1 << 60) <= step.step:
            rows[-session.row :][:4] = b""
            rows[-session.row : len(rows) - session.row + 4] = b"\x00\x00\xc0\x7f"
        if session.opened.journal and how.journal:
            session.write(step.position, bytes(rows))
        return bytes(rows)

    async def _pass_on(self, session: _Session, step: Step, rows: bytes) -> None:
        own = (100, self.behaviour.told_us, 50, 1)
        if step.step < session.least_step or session.lost:
            return
        if session.replay is not None and not session.replay.done():
            session.waiting.append((step, rows, (*step.spent, own)))
        elif session.down is None:
            await self._result(session, step, rows)
        else:
            await self._forward(session, session.down, step, rows, (*step.spent, own))

    async def _result(self, session: _Session, step: Step, rows: bytes) -> None:
        tokens = {Want.NOTHING: 0, Want.LAST: 1, Want.ALL: step.tokens}[step.want]
        payload = rows[len(rows) - tokens * session.row :]
        position = step.position + step.tokens - tokens
        if self.behaviour.once("garbage_at_step", step.step):
            session.owner.stream.write([b"no frame at all, but many bytes of something else"])
            return
        if self.behaviour.once("wrong_rows_at_step", step.step):
            tokens += 1
        if self._adds_rows(step):
            payload, tokens = payload + payload[: session.row], tokens + 1
        result = Result(
            step.session, step.step, position, tokens, payload, 100, self.behaviour.told_us, 50, 1, step.spent
        )
        await self._say(session.owner, result)

    def _adds_rows(self, step: Step) -> bool:
        return step.step >= (self.behaviour.more_rows_from_step or 1 << 60)

    async def _forward(
        self,
        session: _Session,
        down: Downstream,
        step: Step,
        rows: bytes,
        spent: tuple[tuple[int, int, int, int], ...],
    ) -> None:
        hop = self._next.get(down.peer_id)
        if hop is None:
            return  # its end is told already
        if self.behaviour.once("garbage_at_step", step.step):
            hop.connection.stream.write([b"no frame at all, but many bytes of something else"])
            return
        if self.behaviour.once("wrong_rows_at_step", step.step):
            rows += rows[: session.row]
        if self._adds_rows(step):
            rows += rows[: session.row]
            step = replace(step, tokens=step.tokens + 1)
        message = replace(step, session=down.session, spent=spent, payload=rows)
        await self._say(hop.connection, message)
        if self.behaviour.made_up is not None and step.step >= self.behaviour.made_up_at_step:
            made_up, self.behaviour.made_up = self.behaviour.made_up, None
            await self._say(hop.connection, made_up(message))

    # Next hops.

    async def _reach(self, peer_id: str) -> _NextHop:
        async with self._dials.setdefault(peer_id, asyncio.Lock()):
            if (known := self._next.get(peer_id)) is not None:
                return known
            if peer_id in self.cannot_reach:
                raise NetworkError(f"{peer_id} cannot be reached from {self.peer_id}")
            stream = await self.network.transport(self.peer_id).open_stream(peer_id, PROTOCOL_ID, timeout=0.3)
            hop = _NextHop(Connection(stream))
            await hop.connection.send(Hello((1,), MODEL.digest, activations.CODECS, 1 << 20, "fake"))
            await hop.connection.receive()
            self._next[peer_id] = hop
            self._spawn(self._read_next(peer_id, hop))
            return hop

    async def _read_next(self, peer_id: str, hop: _NextHop) -> None:
        try:
            while True:
                message = await hop.connection.receive()
                if isinstance(message, Result | ErrorMessage) and message.step is not None:
                    waiting = hop.answered.get((message.session or b"", message.step))
                    if waiting is not None and not waiting.done():
                        waiting.set_result(message)
        except SwarmError:
            pass
        finally:
            hop.connection.close()
            if self._next.get(peer_id) is hop:
                del self._next[peer_id]
            for waiting in hop.answered.values():
                if not waiting.done():
                    waiting.set_exception(NetworkError(f"{peer_id} has ended the stream"))
            for name, session in list(self.sessions.items()):
                if session.down is not None and session.down.peer_id == peer_id and not session.lost:
                    replaying = session.replay is not None and not session.replay.done()
                    session.lost = True
                    if not replaying:
                        text = f"{peer_id} has ended the stream"
                        error = ErrorMessage(name, None, ErrorCode.DOWNSTREAM_LOST, text, True)
                        self._spawn(self._say(session.owner, error))

    # Replays.

    def _start_replay(self, connection: Connection, message: Replay) -> None:
        self.replays.append(message)
        if self.behaviour.die_at_replay:
            self.behaviour.die_at_replay = False
            self.die()
            return
        session = self.sessions.get(message.session)
        if session is None or session.owner is not connection:
            self._spawn(self._say(connection, _unknown(message.session)))
            return
        if session.replay is not None:
            session.replay.cancel()
        session.down, session.lost = message.to, False
        session.least_step, session.waiting = message.step, []
        session.replay = self._spawn(self._replay(session, message))

    async def _replay(self, session: _Session, message: Replay) -> None:
        try:
            sent = await self._send_journal(session, message)
        except SwarmError as error:
            session.lost = True
            lost = isinstance(error, RemoteProtocolError)
            code = ErrorCode.JOURNAL_LOST if lost else ErrorCode.DOWNSTREAM_LOST
            session.replay = None
            await self._say(
                session.owner, ErrorMessage(message.session, message.step, code, error.message, True)
            )
            return
        while session.waiting:
            step, rows, spent = session.waiting.pop(0)
            if session.down is None:
                await self._result(session, step, rows)
            else:
                await self._forward(session, session.down, step, rows, spent)
        session.replay = None
        tokens = message.until - message.from_position
        await self._say(session.owner, Replayed(message.session, tokens, sent, 10, 100))

    async def _send_journal(self, session: _Session, message: Replay) -> int:
        """Bytes sent."""
        if message.from_position < message.until and (
            not (session.opened.journal and self.behaviour.journal)
            or message.from_position < session.journal_from
        ):
            raise RemoteProtocolError("the journal does not reach back so far")
        hop = await self._reach(message.to.peer_id) if message.to is not None else None
        sent = 0
        for number, start in enumerate(range(message.from_position, message.until, REPLAY_TOKENS)):
            end = min(message.until, start + REPLAY_TOKENS)
            while session.journal_until < end:
                await session.grown.wait()
            rows, step = session.read(start, end), message.step + number
            sent += len(rows)
            if hop is None or message.to is None:
                await self._say(session.owner, Result(message.session, step, start, end - start, rows))
                continue
            name = message.to.session
            answer = hop.answered[name, step] = asyncio.get_running_loop().create_future()
            held = Step(name, step, start, end - start, Want.NOTHING, hold=True, payload=rows)
            await hop.connection.send(held)
            if isinstance(reply := await answer, ErrorMessage):
                raise NetworkError(reply.message)
        return sent


def _unknown(session: bytes) -> ErrorMessage:
    return ErrorMessage(session, None, ErrorCode.UNKNOWN_SESSION, "no such session here", True)


async def _forever(*_: object) -> Any:
    await asyncio.Event().wait()
