"""A swarm inside the test: nodes that speak the real messages over the in-memory network, around a toy model.

The toy model is exact: a block adds to each token a fixed function of the mean of all tokens so far, row by
row in float32, so every way of cutting a sequence into steps gives the same numbers. ``expected`` computes
greedy tokens without any network.
"""

from __future__ import annotations

import asyncio
import codecs as text_codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.local_model import LocalModel
from swarm_node.client.network import ClientNetwork
from swarm_node.client.router import Router
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.swarm import codecs
from swarm_node.swarm.connection import Connection
from swarm_node.swarm.errors import ErrorCode, NetworkError, RemoteProtocolError
from swarm_node.swarm.link import Patience
from swarm_node.swarm.memory import MemoryNetwork
from swarm_node.swarm.messages import (
    PAGE_TOKENS,
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
)
from swarm_node.swarm.replies import error_message
from swarm_node.swarm.session import HopSession
from swarm_node.swarm.transport import Stream
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span
from swarm_node.swarm.wire import PROTOCOL_ID

HIDDEN = 24
N_BLOCKS = 6
VOCAB = 258
BOS, EOS = 256, 257
CONTEXT = 512
MODEL = ModelRef("toy", "ab" * 32, N_BLOCKS)
FAST = Patience(dial_s=0.5, ping_after_s=0.03, pong_within_s=0.05, step_s=5.0)

_generator = torch.Generator().manual_seed(5)
_EMBEDDING = torch.randn(VOCAB, HIDDEN, generator=_generator)
_MIXES = torch.randn(N_BLOCKS, HIDDEN, HIDDEN, generator=_generator) / HIDDEN**0.5


def run_block(block: int, x: Tensor, history: list[Tensor]) -> Tensor:
    """x (tokens, hidden); ``history`` holds the sums of the block's inputs up to each token, like a KV
    cache."""
    rows = []
    for row in x:
        history.append(history[-1] + row if history else row)
        mean = history[-1] / len(history)
        rows.append(row + torch.tanh(_MIXES[block] @ mean))
    return torch.stack(rows)


class ToyHead:
    def embed(self, ids: Sequence[int]) -> Tensor:
        return _EMBEDDING[torch.as_tensor(ids)]

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden) @ _EMBEDDING.T * 0.3


class ScriptedHead(ToyHead):
    """Says the same whatever it is asked: the given tokens, one a call, then end-of-text."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        token = self._tokens.pop(0) if self._tokens else EOS
        return torch.nn.functional.one_hot(torch.tensor([token]), VOCAB).float()


class ToyDetokenizer:
    def __init__(self) -> None:
        self._decoder = text_codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class ToyTokenizer:
    """Bytes; a chat template that writes ``<role>content`` for each message."""

    eos_ids = frozenset({EOS})
    has_chat_template = True

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        return [BOS] * add_special + list(text.encode())

    def stream(self) -> ToyDetokenizer:
        return ToyDetokenizer()

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> list[int]:
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return [BOS, *(text + "<assistant>" * add_generation_prompt).encode()]


def expected(prompt: Sequence[int], n: int) -> list[int]:
    """Greedy tokens of the toy model, computed in one place."""
    histories: list[list[Tensor]] = [[] for _ in range(N_BLOCKS)]
    head = ToyHead()
    tokens: list[int] = []
    fed = list(prompt)
    while len(tokens) < n:
        x = head.embed(fed)
        for block in range(N_BLOCKS):
            x = run_block(block, x, histories[block])
        tokens.append(int(head.logits(x[-1:])[0].argmax()))
        fed = tokens[-1:]
    return tokens


@dataclass
class Behaviour:
    """What a fake node does wrong, and when; step numbers are a session's, from 1."""

    max_step_tokens: int = 64
    codecs: tuple[str, ...] = codecs.CODECS
    digest: str = MODEL.digest
    busy_times: int = 0
    retry_after_ms: int = 20
    refuse: Refused | None = None  # its session is filled in
    die_at_step: int | None = None  # once: end the stream instead of answering
    mute_at_step: int | None = None  # once: read and answer nothing more on the stream, like a frozen process
    error_at_step: tuple[int, ErrorMessage] | None = None  # once; session and step are filled in
    nan_at_step: int | None = None  # once
    wrong_rows_at_step: int | None = None  # once
    step_delay_s: float = 0.0
    page_tokens: int = PAGE_TOKENS  # 0: no prefix cache
    opened_length: int | None = None  # what it says to hold, whatever it holds

    def once(self, name: str, step: int) -> bool:
        if getattr(self, name) != step:
            return False
        setattr(self, name, None)
        return True


@dataclass
class FakeNode:
    """One node. ``hellos``, ``opens``, ``steps``, ``closes`` and ``pings`` record what it was asked;
    ``open_sessions`` what it holds, ``pages`` the sums of its blocks' inputs up to the end of each page that
    a CLOSE named."""

    peer_id: str
    span: Span
    behaviour: Behaviour = field(default_factory=Behaviour)
    opens: list[Open] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    closes: list[Close] = field(default_factory=list)
    pages: dict[bytes, dict[int, list[Tensor]]] = field(default_factory=dict)
    hellos: int = 0
    pings: int = 0
    open_sessions: set[bytes] = field(default_factory=set)

    async def handle(self, stream: Stream) -> None:
        connection = Connection(stream)
        state: dict[bytes, _Session] = {}
        answering: set[asyncio.Task[None]] = set()
        last: asyncio.Task[None] | None = None
        try:
            while True:
                message = await connection.receive()
                if isinstance(message, Step):
                    # Beside the reader, so that PINGs are answered while a step takes long.
                    last = asyncio.create_task(self._run_step(connection, message, state, last))
                    answering.add(last)
                else:
                    for answer in self._answer(message, state):
                        await connection.send(answer)
        except RemoteProtocolError as error:
            await connection.send(error_message(error))
        except NetworkError:
            pass
        finally:
            for task in answering:
                task.cancel()
            self.open_sessions.difference_update(state)
            connection.close()

    def _answer(self, message: Message, state: dict[bytes, _Session]) -> list[Message]:
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
            case Open():
                self.opens.append(message)
                if how.busy_times:
                    how.busy_times -= 1
                    return [Busy(message.session, how.retry_after_ms, "no room")]
                if how.refuse is not None:
                    return [replace(how.refuse, session=message.session)]
                session = state[message.session] = _Session(message)
                self.open_sessions.add(message.session)
                if how.page_tokens:
                    session.take(self.pages)
                length = session.machine.length if how.opened_length is None else how.opened_length
                return [Opened(message.session, length, how.max_step_tokens)]
            case Ping():
                self.pings += 1
                return [Pong(message.nonce, len(state), 0, 1000, NodeState.ONLINE)]
            case Close():
                self.closes.append(message)
                if (closed := state.pop(message.session, None)) is not None and how.page_tokens:
                    closed.leave(message.prefix, self.pages)
                self.open_sessions.discard(message.session)
                return []
        raise RemoteProtocolError("unexpected")

    async def _run_step(
        self,
        connection: Connection,
        step: Step,
        state: dict[bytes, _Session],
        before: asyncio.Task[None] | None,
    ) -> None:
        self.steps.append(step)
        how = self.behaviour
        if before is not None:
            await before
        if how.once("die_at_step", step.step):
            connection.close()
            return
        if how.once("mute_at_step", step.step):
            connection.send = connection.receive = _forever  # type: ignore[assignment, method-assign]
            await _forever()
        if how.step_delay_s:
            await asyncio.sleep(how.step_delay_s)
        if step.session in state:
            await connection.send(self._step(step, state[step.session]))

    def _step(self, step: Step, session: _Session) -> Message:
        how = self.behaviour
        if how.error_at_step is not None and how.error_at_step[0] == step.step:
            (_, error), how.error_at_step = how.error_at_step, None
            return replace(error, session=step.session, step=step.step)
        if step.tokens > how.max_step_tokens:
            raise RemoteProtocolError(f"{step.tokens} tokens in a step")
        try:
            session.machine.on_step(step.step, step.position, step.tokens)
            x = codecs.decode(session.opened.codec, step.payload, step.tokens, HIDDEN)
        except RemoteProtocolError as error:
            return error_message(error, step.session, step.step)
        for block, history in session.histories.items():
            del history[step.position :]
            x = run_block(block, x, history)
        rows = {Want.NOTHING: 0, Want.LAST: 1, Want.ALL: step.tokens}[step.want]
        payload = bytearray(codecs.encode(session.opened.reply_codec, x[len(x) - rows :]))
        if how.once("nan_at_step", step.step):
            payload[:4] = b"\x00\x00\xc0\x7f"
        position = step.position + step.tokens - rows
        if how.once("wrong_rows_at_step", step.step):
            rows += 1
        return Result(step.session, step.step, position, rows, bytes(payload), 100, 200, 50)


class _Session:
    def __init__(self, opened: Open) -> None:
        self.opened = opened
        self.machine = HopSession(opened.max_tokens)
        self.histories: dict[int, list[Tensor]] = {
            block: [] for block in range(opened.span.start, opened.span.end)
        }

    def take(self, pages: dict[bytes, dict[int, list[Tensor]]]) -> None:
        """Begin with the pages that are there already."""
        for name in self.opened.prefix:
            if name not in pages or len(self.histories[self.opened.span.start]) >= self.opened.max_tokens:
                break
            for block, history in self.histories.items():
                history.extend(pages[name][block])
        held = len(self.histories[self.opened.span.start])
        self.machine = HopSession(self.opened.max_tokens, length=held)

    def leave(self, names: Sequence[bytes], pages: dict[bytes, dict[int, list[Tensor]]]) -> None:
        """Keep the whole pages that have a name."""
        held = len(self.histories[self.opened.span.start])
        for number, name in enumerate(names[: held // PAGE_TOKENS]):
            start = number * PAGE_TOKENS
            pages[name] = {
                block: history[start : start + PAGE_TOKENS] for block, history in self.histories.items()
            }


async def _forever(*_: object) -> Any:
    await asyncio.Event().wait()


class FakeSwarm:
    """Nodes of given spans, their directory, and clients for it."""

    def __init__(self, latency: float = 0.0, **spans: str) -> None:
        self.network = MemoryNetwork(latency)
        self.store = MemoryStore()
        self.nodes = {peer_id: FakeNode(peer_id, Span.parse(text)) for peer_id, text in spans.items()}

    async def start(self) -> FakeSwarm:
        for node in self.nodes.values():
            await self.network.transport(node.peer_id).serve(PROTOCOL_ID, node.handle)
            self.announce(node.peer_id)
        return self

    def announce(self, peer_id: str, **changes: Any) -> None:
        node = self.nodes[peer_id]
        info = NodeInfo(
            peer_id=peer_id,
            maddrs=(),
            model=MODEL,
            span=node.span,
            state=NodeState.ONLINE,
            decode_ms_per_block=1.0,
            prefill_tokens_per_s=1000.0,
            free_kv_tokens=4096,
            total_kv_tokens=4096,
            codecs=node.behaviour.codecs,
        )
        self.store.put(replace(info, **changes))

    def local(self, head: ToyHead | None = None, **changes: Any) -> LocalModel:
        local = LocalModel(MODEL, HIDDEN, VOCAB, CONTEXT, head or ToyHead(), ToyTokenizer())
        return replace(local, **changes)

    def client_network(self) -> ClientNetwork:
        return ClientNetwork(self.network.transport("client"), MemoryDirectory(self.store))

    def router(self, **options: Any) -> Router:
        directory = MemoryDirectory(self.store)
        return Router(directory, MODEL, bytes_per_token=HIDDEN * 4, **{"salt": "", **options})

    def client(
        self,
        head: ToyHead | None = None,
        *,
        wire_codec: str = "none",
        local: LocalModel | None = None,
        **options: Any,
    ) -> AsyncSwarmModel:
        return AsyncSwarmModel(
            local or self.local(head),
            self.client_network(),
            wire_codec=wire_codec,
            **{"patience": FAST, "router": self.router(), **options},
        )

    @property
    def open_sessions(self) -> int:
        return sum(len(node.open_sessions) for node in self.nodes.values())


async def settle() -> None:
    """Let what was written to the in-memory network be read."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens very soon."""
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen within seconds")
