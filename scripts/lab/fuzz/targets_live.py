"""Whole parts at work, in one process over a network in memory: a node, a client and a gateway that are
attacked and must go on serving."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from swarm_node.client.async_model import AsyncSwarmModel
from swarm_node.client.dashboard.dashboard import Dashboard
from swarm_node.client.gateway.app import create_app
from swarm_node.client.gateway.gateway import Gateway, GatewayLimits
from swarm_node.client.gateway.models import Offers
from swarm_node.client.local_model import LocalModel, load_local_model
from swarm_node.client.network import ClientNetwork
from swarm_node.client.pages.pages import page_files
from swarm_node.dht.joining.network import GivenNetwork
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.config import NodeConfig
from swarm_node.node.engine.load import EngineLoad
from swarm_node.node.node import Node
from swarm_node.swarm.errors import NetworkError
from swarm_node.swarm.links.link import Patience
from swarm_node.swarm.protocol.messages import MESSAGES, Close, Hello, Open, Ping, Step, Steps, Void, Want
from swarm_node.swarm.protocol.wire import PROTOCOL_ID
from swarm_node.swarm.transport.interface import Stream
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span

from ..tiny_model import BLOCKS, write_tiny_hybrid, write_tiny_model
from .mutation import frames_of, json_tree
from .target import Prepared, Target
from .targets_wire import SESSION, stream_of

QUESTION = "What is it?"
ANSWER_TOKENS = 8
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
IMPATIENT = Patience(dial_s=0.2, ping_after_s=0.03, pong_within_s=0.05, step_s=0.5, own_loss_s=0.1)
HONEST_EVERY = 50
"""Inputs between two looks whether honest clients are served as before."""
ANSWERED_S = 20.0
"""Seconds of real time in which an honest answer must come, on a busy machine."""
T = TypeVar("T")


class Swarm:
    """One node that serves a tiny model, its directory, and a client, in an event loop of their own.
    ``write``: the model."""

    def __init__(self, write: Callable[[Path], Path] = write_tiny_model) -> None:
        self.loop = asyncio.new_event_loop()
        self.failures: list[str] = []
        self.loop.set_exception_handler(self._note)
        self.home = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.folder = self.home / "tiny"
        self.folder.mkdir()
        self.memory = MemoryNetwork()
        self.store = MemoryStore()
        self.exits = AsyncExitStack()
        self.inputs = 0
        self.node: Node
        self.client: AsyncSwarmModel
        self.local: LocalModel
        self.run(self._start(write))
        self.answer = self.ask()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def ask(self) -> str:
        """What an honest client gets."""

        async def ask() -> str:
            async with asyncio.timeout(ANSWERED_S):
                said = await self.client.generate(QUESTION, max_new_tokens=ANSWER_TOKENS)
                return str(said)

        return self.run(ask())

    def look(self) -> None:
        """Raises AssertionError if an honest client is not served as at first, or a task has failed."""
        if (answer := self.ask()) != self.answer:
            raise AssertionError(f"an honest client now gets {answer!r}, not {self.answer!r}")
        if self.failures:
            raise AssertionError(f"a task failed: {self.failures.pop()}")

    def counted(self) -> None:
        self.inputs += 1
        if self.inputs % HONEST_EVERY == 0 or self.failures:
            self.look()

    def close(self) -> None:
        self.run(self.exits.aclose())
        self.run(_cancel_the_rest())
        self.loop.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def network(self, peer: str) -> ClientNetwork:
        return ClientNetwork(GivenNetwork(self.memory.transport(peer), MemoryDirectory(self.store)))

    async def _start(self, write: Callable[[Path], Path]) -> None:
        write(self.folder)
        settings = self.folder / "tokenizer_config.json"
        settings.write_text(json.dumps({"eos_token": "</s>", "chat_template": TEMPLATE}))
        config = NodeConfig(
            model=str(self.folder),
            blocks=Span(0, BLOCKS),
            dtype="float32",
            quantize="none",
            threads=1,
            kv_cache_tokens=8192,
            max_step_tokens=64,
        )
        network = GivenNetwork(self.memory.transport("node"), MemoryDirectory(self.store))
        self.node = Node(config, lambda _: None, network=network)
        self.exits.push_async_callback(self.node.stop)
        await self.node.start()
        local = load_local_model(self.folder)
        self.exits.callback(local.close)
        self.local = replace(local, close=lambda: None)  # several clients use it
        self.client = await self.exits.enter_async_context(
            AsyncSwarmModel(self.local, self.network("client"), wire_codec="none")
        )

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.failures.append(f"{context.get('message')} {context.get('exception')!r}")


async def _cancel_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


def _node(name: str, write: Callable[[Path], Path]) -> Target:
    """A node is sent frames, spoilt, in any order and in any pieces."""

    def prepare() -> Prepared:
        swarm = Swarm(write)

        def run(data: bytes) -> str:
            outcome = swarm.run(_say(swarm, data))
            swarm.counted()
            return outcome

        def close() -> None:
            load = swarm.run(_at_rest(swarm))
            swarm.close()
            left = load.used_slots, load.reserved_slots, load.used_states, load.reserved_states
            if any(left):
                raise AssertionError(f"slots and states that nobody gave back: {left}")

        return Prepared(_conversations(), run, close)

    return Target(name, prepare, mutate=frames_of(), slow_s=5.0)


async def _at_rest(swarm: Swarm) -> EngineLoad:
    """The load once every session has ended."""
    for _ in range(500):
        if not (load := swarm.node.statistics().engine).sequences:
            break
        await asyncio.sleep(0.01)
    return load


async def _say(swarm: Swarm, data: bytes) -> str:
    rng = Random(hashlib.sha256(data).digest())
    peer = f"stranger-{swarm.inputs % 7}"
    stream = await swarm.memory.transport(peer).open_stream("node", PROTOCOL_ID)
    at, answered = 0, 0
    try:
        while at < len(data):
            size = rng.choice((7, 100, 4000, len(data)))
            with suppress(NetworkError):
                stream.write([data[at : at + size]])
            at += size
            await asyncio.sleep(0)
        with suppress(TimeoutError, NetworkError):
            async with asyncio.timeout(0.02):
                while said := await stream.read():
                    answered += len(said)
    finally:
        stream.close()
    for _ in range(5):
        await asyncio.sleep(0)
    return f"answered {min(answered, 999) // 100}"


def _conversations() -> list[bytes]:
    """What clients send to a node of the tiny model (64 float32 a row)."""
    row = 64 * 4
    hello = Hello((1,), "", ("none", "int8"), 1 << 20, "fuzz")
    opened = Open(SESSION, Span(0, BLOCKS), 64, "none", "none")
    chain = (bytes(32), bytes(range(32)))
    return [
        stream_of([hello, Ping(1)], MESSAGES),
        stream_of([hello, opened, _step(0, 3, row), _step(3, 1, row), Close(SESSION)], MESSAGES),
        stream_of([hello, Open(SESSION, Span(1, 3), 64, "int8", "int8", prefix=chain)], MESSAGES),
        stream_of(
            [  # over pages, back within one, to a border, and behind what is held
                hello,
                replace(opened, max_tokens=256, prefix=chain),
                *(_step(position, 60, row) for position in (0, 60, 120, 180)),
                *(replace(_step(position, 2, row), step=500 + position) for position in (207, 192, 32, 0)),
                Open(bytes(16), Span(0, BLOCKS), 256, "none", "none", parent=SESSION, parent_tokens=1),
                Close(SESSION, chain),
            ],
            MESSAGES,
        ),
        stream_of(
            [
                hello,
                opened,
                _step(0, 2, row),
                Open(bytes(16), Span(0, BLOCKS), 64, "none", "none", parent=SESSION, parent_tokens=1),
                _step(1, 1, row),
            ],
            MESSAGES,
        ),
        stream_of(
            [
                replace(hello, members=64),
                opened,
                replace(opened, session=bytes(16)),
                Steps((_step(0, 2, row), replace(_step(0, 1, row), session=bytes(16)))),
                Steps((_step(2, 1, row), replace(_step(1, 1, row), session=bytes(16)))),
            ],
            MESSAGES,
        ),
        stream_of(
            [  # of steps under way, the last ones are void, before and as they come
                hello,
                replace(opened, max_tokens=256),
                *(_step(position, 8, row) for position in (0, 8, 16, 24)),
                Void(SESSION, 9, 40),
                _step(32, 8, row),
                replace(_step(5, 8, row), step=41, void=9, guess=7),
                Void(SESSION, 41, 41),
                replace(_step(4, 1, row), step=43, void=41),
                Close(SESSION),
                Void(SESSION, 43, 50),
            ],
            MESSAGES,
        ),
        stream_of(
            [
                hello,
                opened,
                _step(0, 2, row),
                replace(_step(2, 7, row), branches=((0, 1), (2, 2), (3, 1))),
                replace(_step(3, 3, row), branches=((1, 2),)),
            ],
            MESSAGES,
        ),
    ]


def _step(position: int, tokens: int, row: int) -> Step:
    return Step(SESSION, position + 1, position, tokens, Want.ALL, payload=bytes(row * tokens))


def _client() -> Target:
    """A client with two nodes, of which one spoils what it answers: it must not cost the answer."""

    def prepare() -> Prepared:
        swarm = Swarm()
        faults: list[Callable[[bytes], bytes]] = []
        used: list[Stream] = []
        middle = "middle"

        async def forward(stream: Stream) -> None:
            used.append(stream)
            there = await swarm.memory.transport(middle).open_stream("node", PROTOCOL_ID)

            async def back() -> None:
                with suppress(NetworkError):
                    while said := await there.read():
                        stream.write([faults[-1](said)])
                stream.close()

            answering = asyncio.create_task(back())
            try:
                while said := await stream.read():
                    there.write([said])
            except NetworkError:
                pass
            finally:
                there.close()
                await asyncio.wait([answering], timeout=1)
                answering.cancel()

        swarm.run(swarm.memory.transport(middle).serve(PROTOCOL_ID, forward))

        def run(data: bytes) -> str:
            rng = Random(hashlib.sha256(data).digest())
            mutate = frames_of()
            faults.append(lambda said: mutate(rng, said) if rng.random() < 0.4 else said)
            used.clear()
            swarm.run(_ask_beside(swarm, middle))
            faults.pop()
            swarm.counted()
            return f"{len(used)} streams to the one that spoils"

        faults.append(lambda said: said)
        return Prepared([bytes([n]) for n in range(8)], run, swarm.close)

    return Target("client", prepare, slow_s=10.0, largest=16)


async def _ask_beside(swarm: Swarm, middle: str) -> None:
    """A new client, which knows of the honest node and of the other one, gets some answer."""
    (info,) = swarm.store.live()
    store = MemoryStore()
    store.put(replace(info, peer_id=middle, decode_ms_per_block=info.decode_ms_per_block / 2))
    store.put(info)
    network = ClientNetwork(GivenNetwork(swarm.memory.transport("victim"), MemoryDirectory(store)))
    model = AsyncSwarmModel(swarm.local, network, wire_codec="none", patience=IMPATIENT)
    try:
        async with asyncio.timeout(ANSWERED_S):
            await model.generate(QUESTION, max_new_tokens=ANSWER_TOKENS)
    finally:
        await model.close()


def _http() -> Target:
    """The gateway, over ASGI: whatever JSON a client sends is answered by JSON, and never by a 500."""

    def prepare() -> Prepared:
        swarm = Swarm()
        app = _gateway_of(swarm)

        def run(data: bytes) -> str:
            path, _, body = data.partition(b"\n")
            outcome = swarm.run(_asked(app, "POST", path.decode("latin-1"), body))
            swarm.counted()
            return outcome

        return Prepared(_requests(swarm.client.model.name), run, swarm.close)

    return Target("http", prepare, mutate=_mutate_request, slow_s=10.0, largest=64 * 1024)


def _paths() -> Target:
    """The same, asked by GET for whatever path with whatever headers: pages, the dashboard's state and
    events, figures."""

    def prepare() -> Prepared:
        swarm = Swarm()
        app = _gateway_of(swarm)

        def run(data: bytes) -> str:
            path, _, value = data.partition(b"\n")
            headers = [(name, value) for name in (b"if-none-match", b"authorization", b"accept")]
            outcome = swarm.run(_asked(app, "GET", path.decode("latin-1"), headers=headers))
            swarm.counted()
            return outcome

        values = ("", page_files()[_PAGE].etag, _SCRAPES)
        seeds = [f"{path}\n{value}".encode() for path in _PATHS for value in values]
        return Prepared(seeds, run, swarm.close)

    return Target("paths", prepare, largest=4096)


_PAGE = "swarm/index.html"
_SCRAPES = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8,text/plain;version=1.0.0;q=0.5"
_PATHS = (
    "/",
    "/swarm",
    "/swarm/state",
    "/swarm/events",
    "/metrics",
    f"/pages/{_PAGE}",
    "/pages/../pages.py",
    "/v1/models/x",
    "/v1/responses/resp_x",
    "/api/tags",
    "/api/ps",
    "/api/blobs/sha256:x",
)


def _gateway_of(swarm: Swarm) -> Any:
    """An ASGI application."""
    directory = swarm.network("client").directory
    gateway = Gateway(Offers([swarm.client], directory), GatewayLimits(default_max_tokens=4))
    return create_app(gateway, Dashboard(directory, gateway.figures, complete=str), local_only=True)


def _requests(model: str) -> list[bytes]:
    chat = {
        "model": model,
        "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}],
        "max_tokens": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "stop": ["\n\n"],
        "logprobs": True,
        "top_logprobs": 2,
        "seed": 1,
        "n": 2,
    }
    streamed = {
        **chat,
        "stream": True,
        "stream_options": {"include_usage": True, "swarm_events": True},
        "truncation": "auto",
    }
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    guided = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    plain = {"model": model, "prompt": "hello", "max_tokens": 3, "logit_bias": {"5": 1.5}, "echo": True}
    others = [
        *(("/v1/messages", body) for body in _messages(model, schema)),
        ("/v1/messages/count_tokens", _messages(model, schema)[1]),
        *(("/v1/responses", body) for body in _responses(model, schema)),
        ("/v1/responses/input_tokens", _responses(model, schema)[1]),
        *(("/api/chat", body) for body in _ollama_chats(model, schema)),
        ("/api/generate", {"model": model, "prompt": "hi", "system": "x", "options": {"num_predict": 3}}),
        ("/api/generate", {"model": model, "prompt": "hi", "raw": True, "options": {"num_predict": 3}}),
        ("/api/show", {"model": model}),
        ("/api/pull", {"model": model, "stream": False}),
    ]
    return [
        *(f"{path}\n{json.dumps(body)}".encode() for path, body in others),
        b"/v1/chat/completions\n" + json.dumps(chat).encode(),
        b"/v1/chat/completions\n" + json.dumps(streamed).encode(),
        b"/v1/chat/completions\n" + json.dumps({**chat, "response_format": guided}).encode(),
        b"/v1/chat/completions\n" + json.dumps({**chat, "tools": tools, "tool_choice": "auto"}).encode(),
        b"/v1/completions\n" + json.dumps(plain).encode(),
        b"/v1/completions\n" + json.dumps({**plain, "prompt": [[1, 2, 3], [4]], "echo": False}).encode(),
    ]


def _messages(model: str, schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Of Anthropic's API."""
    said: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    used = {"type": "tool_use", "id": "a", "name": "f", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "1", "is_error": True}
    chat = {
        "model": model,
        "max_tokens": 3,
        "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
        "messages": [said],
        "stop_sequences": ["\n\n"],
        "temperature": 0.7,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "metadata": {"user_id": "x"},
        "stream": True,
    }
    called = {
        **chat,
        "stream": False,
        "messages": [
            said,
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "?", "signature": ""}, used]},
            {"role": "user", "content": [result, said["content"][0]]},
        ],
        "tools": [{"name": "f", "description": "x", "input_schema": schema}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    }
    form = {"type": "json_schema", "schema": schema}
    return [chat, called, {**chat, "output_config": {"effort": "low", "format": form}}]


def _responses(model: str, schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Of OpenAI's responses API."""
    ask = {
        "model": model,
        "input": "hi",
        "instructions": "x",
        "max_output_tokens": 3,
        "temperature": 0.7,
        "reasoning": {"effort": "low"},
        "include": ["message.output_text.logprobs"],
        "stream": True,
    }
    called = {
        **ask,
        "stream": False,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {
                "type": "reasoning",
                "id": "r",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "?"}],
            },
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"a": 1}'},
            {"type": "function_call_output", "call_id": "a", "output": "1"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": schema, "strict": True}],
        "tool_choice": "auto",
    }
    form = {"type": "json_schema", "name": "x", "schema": schema}
    return [ask, called, {**ask, "text": {"format": form}, "truncation": "auto", "store": False}]


def _ollama_chats(model: str, schema: dict[str, Any]) -> list[dict[str, Any]]:
    said = {"role": "user", "content": "hi"}
    options = {"num_predict": 3, "temperature": 0.7, "top_k": 5, "stop": ["x"], "num_ctx": 64, "seed": 1}
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    return [
        {"model": model, "messages": [said], "options": options, "think": False, "keep_alive": "5m"},
        {
            "model": model,
            "messages": [said, called, {"role": "tool", "tool_name": "f", "content": "1"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
            "options": options,
            "stream": False,
        },
        {"model": model, "messages": [said], "options": options, "format": schema, "logprobs": True},
        {"model": model, "messages": [], "keep_alive": 0},
    ]


def _mutate_request(rng: Random, data: bytes) -> bytes:
    path, _, body = data.partition(b"\n")
    return path + b"\n" + json_tree(rng, body)


async def _asked(
    app: Any, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[bytes, bytes]] = ()
) -> str:
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("latin-1"),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"localhost"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
        "http_version": "1.1",
    }
    told: list[dict[str, Any]] = []
    given = iter([{"type": "http.request", "body": body, "more_body": False}])
    over = asyncio.Event()

    async def receive() -> dict[str, Any]:
        for message in given:
            return message
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        told.append(message)
        # A client that has heard enough goes: what a guide may take, nobody waits for, and the dashboard's
        # events never end.
        if sum(len(each.get("body", b"")) for each in told) > (0 if method == "GET" else 1_000_000):
            over.set()

    call: Awaitable[None] = app(scope, receive, send)
    try:
        async with asyncio.timeout(ANSWERED_S):
            await call
    except TimeoutError:
        over.set()
        raise AssertionError(f"{path} was not answered within {ANSWERED_S:g} s") from None
    status = next(message["status"] for message in told if message["type"] == "http.response.start")
    if status in (500, 502):
        raise AssertionError(f"{path} is answered by {status}: {told[1]['body'][:300]!r}")
    body = b"".join(message.get("body", b"") for message in told)
    return f"{status} {_said(body)}"


def _said(body: bytes) -> str:
    """What kind of answer it is: the error's code and field."""
    try:
        error = json.loads(body).get("error") or {}
    except ValueError:
        return "events"
    if isinstance(error, str):  # Ollama's
        return error.partition(":")[0][:20]
    error = {**error, **error.get("details", {})}  # Anthropic's
    return f"{error.get('code')} {str(error.get('param'))[:20]}"


TARGETS = [
    _node("node", write_tiny_model),
    _node("node-states", write_tiny_hybrid),
    _client(),
    _http(),
    _paths(),
]
