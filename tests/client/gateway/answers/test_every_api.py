"""What every API that answers keeps to, each in its own form: bounds of bodies, crowds, those who hang up,
and those who do not read."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import ollama
import pytest
from anthropic import AsyncAnthropic

from tests.client.gateway.gateway_case import Serve, Served
from tests.doubles.fake_swarm import until
from tests.doubles.toy_model import ScriptedHead

OLLAMA_PULSE = '{"message":{"role":"assistant","content":""},"response":"","done":false}'
SAID: Any = {"role": "user", "content": "hi"}
LONG = 400
"""Tokens of an answer that is not over soon."""
SHORT = 40
"""Of one whose end is looked at."""


@dataclass(frozen=True)
class Api:
    """``asked``: a body without the bound of an answer's tokens, which ``bound`` names. ``wide``: fields that
    make its events long, where there are some. ``told``: the keys under which an error's body has its kind;
    ``kinds``: those of 400, 429 and 503. ``last``: of a whole stream."""

    path: str
    asked: dict[str, Any]
    bound: str
    last: str
    told: tuple[str, ...] = ("error", "type")
    kinds: tuple[str, str, str] = ("invalid_request_error", "rate_limit_error", "server_error")
    wide: dict[str, Any] = field(default_factory=dict)

    def body(self, tokens: int = LONG) -> dict[str, Any]:
        """Of an answer that is so long."""
        bound = {self.bound: tokens}
        return {**self.asked, **({"options": bound} if self.bound == "num_predict" else bound)}

    def kind(self, response: httpx2.Response) -> str:
        found = response.json()
        for key in self.told:
            found = found[key]
        return str(found)


LOGPROBS = {"logprobs": True, "top_logprobs": 5}
OLLAMA: dict[str, Any] = {
    "bound": "num_predict",
    "last": '"done":true',
    "told": ("error",),
    "kinds": ("the body: ", "2 requests are being answered", "the gateway is shutting down"),
    "wide": LOGPROBS,
}
ANTHROPIC = ("invalid_request_error", "rate_limit_error", "overloaded_error")
APIS = (
    Api("/v1/chat/completions", {"messages": [SAID]}, "max_tokens", "[DONE]", wide=LOGPROBS),
    Api(
        "/v1/responses",
        {"input": "hi"},
        "max_output_tokens",
        "event: response.incomplete",
        wide={"top_logprobs": 5},
    ),
    Api("/v1/messages", {"messages": [SAID]}, "max_tokens", "event: message_stop", kinds=ANTHROPIC),
    Api("/api/chat", {"messages": [SAID]}, **OLLAMA),
    Api("/api/generate", {"prompt": "hi"}, **OLLAMA),
)
EVERY = pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
BOTH = pytest.mark.parametrize("stream", [True, False])


def _ask(served: Served, api: Api, **more: Any) -> asyncio.Task[httpx2.Response]:
    body = {"model": "toy", **api.body(), **more}
    return asyncio.create_task(served.http.post(api.path, json=body))


async def _serve(serve: Serve, *, step_s: float = 0.0, **options: Any) -> Served:
    """One node, with a model that talks on and on."""
    served = await serve(head=ScriptedHead([ord("a")] * 10 * LONG), a="0-5", **options)
    served.swarm.nodes["a"].behaviour.step_delay_s = step_s
    return served


@EVERY
async def test_a_stream_comes_to_its_end(serve: Serve, api: Api) -> None:
    served = await _serve(serve)
    response = await _ask(served, api, stream=True, **api.body(SHORT))
    assert (response.status_code, response.text.count(api.last)) == (200, 1)


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a route looks for it twenty times as often as users have it."""
    monkeypatch.setattr("swarm_node.client.routing.route_wait.POLL_S", 0.025)


@EVERY
@pytest.mark.usefixtures("looks_often")
async def test_a_stream_that_waits_says_so_in_its_form(serve: Serve, api: Api) -> None:
    served = await _serve(serve, limits={"beat_s": 0.01}, wait=30.0)
    served.swarm.store.remove("a")
    body = {"model": "toy", **api.body(SHORT), "stream": True}
    async with served.http.stream("POST", api.path, json=body) as response:
        lines = response.aiter_lines()
        assert (await anext(lines)) in (": waiting", "event: ping", OLLAMA_PULSE)
        served.swarm.announce("a")
        assert "\n".join([line async for line in lines]).count(api.last) == 1


@pytest.mark.usefixtures("looks_often")
async def test_the_real_clients_wait_with_it(serve: Serve) -> None:
    async def announce(_: object) -> None:
        served.swarm.announce("a")  # the stream has begun, without a token

    served = await _serve(serve, limits={"beat_s": 0.01}, wait=30.0)
    served.http.event_hooks["response"] = [announce]
    said: list[str] = []
    served.swarm.store.remove("a")
    async with served.openai.responses.stream(model="toy", input="hi", max_output_tokens=5) as events:
        said += [event.delta async for event in events if event.type == "response.output_text.delta"]
    served.swarm.store.remove("a")
    anthropic = AsyncAnthropic(base_url=served.server.url, api_key="none", http_client=served.http)
    async with anthropic.messages.stream(model="toy", max_tokens=5, messages=[SAID]) as stream:
        said += [text async for text in stream.text_stream]
    hooks = {"response": [announce]}
    async with ollama.AsyncClient(served.server.url, verify=False, event_hooks=hooks) as client:
        for path, asked in (("chat", {"messages": [SAID]}), ("generate", {"prompt": "hi"})):
            served.swarm.store.remove("a")
            ask = getattr(client, path)
            parts = await ask("toy", **asked, options={"num_predict": 5}, stream=True)
            said += [part.message.content if path == "chat" else part.response async for part in parts]
    assert [text for text in said if text] == ["a"] * 20


@EVERY
@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b'{"model": "toy", "model": "toy"}']
)
async def test_bodies_that_are_none(serve: Serve, api: Api, data: bytes) -> None:
    served = await _serve(serve)
    response = await served.http.post(api.path, content=data, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert api.kind(response).startswith(api.kinds[0])


@EVERY
async def test_bodies_that_are_too_large(serve: Serve, api: Api) -> None:
    served = await _serve(serve, limits={"max_body_bytes": 1000})
    response = await _ask(served, api, metadata="x" * 1000)
    assert response.status_code == 413
    assert api.kind(response)


@EVERY
@BOTH
async def test_a_crowd_is_told_to_wait_and_all_end_together(serve: Serve, api: Api, stream: bool) -> None:
    served = await _serve(serve, step_s=0.01, limits={"max_running": 1, "max_requests": 2})
    running = [_ask(served, api, stream=stream) for _ in range(2)]
    await until(lambda: served.gateway.answering == 2 and bool(served.swarm.open_sessions))
    refused = await _ask(served, api, stream=stream)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert api.kind(refused).startswith(api.kinds[1])
    served.gateway.drop_all()
    for response in await asyncio.gather(*running):
        if response.status_code == 503:
            assert api.kind(response) == api.kinds[2]
        else:  # it had begun
            assert "the gateway is shutting down" in response.text
            assert response.text.count('"error"') >= 1
    assert served.gateway.admission.running == served.gateway.admission.requests == 0


@EVERY
@BOTH
async def test_hanging_up_frees_the_hops_at_once(serve: Serve, api: Api, stream: bool) -> None:
    served = await _serve(serve, step_s=0.01)
    request = _ask(served, api, stream=stream)
    await until(lambda: served.swarm.open_sessions == 1 and len(served.swarm.nodes["a"].steps) > 3)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await until(lambda: served.swarm.open_sessions == 0)
    await until(lambda: served.gateway.answering == served.gateway.admission.requests == 0)


@pytest.mark.parametrize("api", [api for api in APIS if api.wide], ids=lambda api: api.path)
async def test_who_does_not_read_is_given_up(serve: Serve, api: Api) -> None:
    """Of the other, all events together fit into the buffers."""
    # Small buffers, so that an answer of the toy's context fills them.
    served = await _serve(serve, limits={"stall_s": 0.3}, send_buffer=4096)
    body = json.dumps({"model": "toy", **api.body(), **api.wide, "stream": True})
    head = f"POST {api.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    with socket.socket() as raw:
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(raw, served.address)
        await loop.sock_sendall(raw, (head + body).encode())
        await until(lambda: served.gateway.answering == 1)
        await until(lambda: served.gateway.answering == 0)
        await until(lambda: served.swarm.open_sessions == 0)
        received = b""
        with suppress(ConnectionResetError):
            while part := await loop.sock_recv(raw, 65536):
                received += part
    assert received.startswith(b"HTTP/1.1 200 ")
    assert api.last.encode() not in received
