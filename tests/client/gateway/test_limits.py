"""What strangers may cost: keys, rates, crowds, those who hang up, and those who do not read."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import ExitStack, suppress

import openai
import pytest

from swarm_node.client.http import connection
from swarm_node.client.http.admission import ApiKeys, GatewayAdmission, RequestRate
from swarm_node.client.http.errors import ApiError
from swarm_node.swarm.errors import UsageError
from tests.client.gateway.gateway_case import Serve, Served
from tests.doubles.fake_swarm import until

LONG = {"max_tokens": 400, "ignore_eos": True, "temperature": 0}
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def _request(**fields: object) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, **fields})
    return f"{HEAD}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def test_keys_are_asked_for(serve: Serve) -> None:
    served = await serve(keys=["sk-first-key", "sk-second-key"])
    assert (await served.openai.models.list()).data
    for headers in ({}, {"authorization": "Bearer wrong-key"}, {"authorization": "Basic sk-first-key"}):
        response = await served.http.get("/v1/models", headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert (await served.http.post("/v1/chat/completions", headers=headers, json={})).status_code == 401
    assert (await served.http.get("/health")).status_code == 200
    # With keys the name that a caller uses for this computer does not matter.
    named = {"authorization": "Bearer sk-second-key", "host": "api.example.org"}
    assert (await served.http.get("/v1/models", headers=named)).status_code == 200


def test_key_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "keys"
    path.write_text("# ours\nsk-0123456789  # of Ann\n\n")
    keys = ApiKeys.read(path)
    assert keys.needed
    assert keys.check([(b"authorization", b"bearer sk-0123456789")])
    for text, words in (
        ("", "holds 0 API keys"),
        ("short\n", "that is not possible"),
        ("ä" * 9, "not possible"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            ApiKeys.read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        ApiKeys.read(tmp_path / "missing")


async def test_cross_origin_pages_need_leave(serve: Serve) -> None:
    asked = {
        "origin": "https://page.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type, authorization",
    }
    closed = await serve()
    assert (await closed.http.options("/v1/chat/completions", headers=asked)).status_code == 405
    open_ = await serve(cors_origins=["https://page.example"])
    preflight = await open_.http.options("/v1/chat/completions", headers=asked)
    assert preflight.headers["access-control-allow-origin"] == "https://page.example"
    answer = await open_.http.post(
        "/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers={"origin": "https://page.example"}
    )
    assert "x-swarm-route" in answer.headers["access-control-expose-headers"].lower()
    other = await open_.http.get("/v1/models", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_rate_is_a_bucket_for_each_caller() -> None:
    now = [0.0]
    rate = RequestRate(6, clock=lambda: now[0])
    for _ in range(6):
        rate.take("ann")
    with pytest.raises(ApiError) as caught:
        rate.take("ann")
    assert caught.value.status == 429
    assert caught.value.headers == {"Retry-After": "10"}
    rate.take("bob")
    now[0] = 10.0
    rate.take("ann")
    with pytest.raises(ApiError):
        rate.take("ann")


async def test_too_many_requests_a_minute(serve: Serve) -> None:
    served = await serve(limits={"requests_per_minute": 2})
    assert (await served.chat(max_tokens=1)).status_code == 200
    await served.openai.models.list()
    with pytest.raises(openai.RateLimitError, match="2 requests a minute") as caught:
        await served.openai.models.list()
    assert int(caught.value.response.headers["retry-after"]) > 0


async def test_turns_are_taken_in_order_and_survive_those_who_leave() -> None:
    admission = GatewayAdmission(1, 10)
    order: list[int] = []
    go = asyncio.Event()

    async def generation(number: int) -> None:
        async with admission.generation():
            order.append(number)
            await go.wait()

    tasks = [asyncio.create_task(generation(number)) for number in range(4)]
    await asyncio.sleep(0)
    assert order == [0]
    tasks[1].cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]
    assert admission.running == 0


async def test_a_turn_handed_to_somebody_who_just_left_goes_on() -> None:
    admission = GatewayAdmission(1, 10)
    entered = asyncio.Event()

    async def generation() -> None:
        async with admission.generation():
            entered.set()

    async with admission.generation():
        leaving, staying = asyncio.create_task(generation()), asyncio.create_task(generation())
        await asyncio.sleep(0)
    leaving.cancel()  # its turn has come, it has not heard of it
    await asyncio.gather(leaving, staying, return_exceptions=True)
    assert entered.is_set()
    assert admission.running == 0


async def test_callers_take_turns_and_nobody_locks_the_others_out() -> None:
    admission = GatewayAdmission(1, 4)
    order: list[str] = []

    async def generation(caller: str, number: int) -> None:
        async with admission.generation(caller):
            order.append(f"{caller}{number}")
            await asyncio.sleep(0)

    many = [asyncio.create_task(generation("many", number)) for number in range(3)]
    await asyncio.sleep(0)
    one = asyncio.create_task(generation("one", 0))
    await asyncio.gather(*many, one)
    assert order == ["many0", "many1", "one0", "many2"]
    with ExitStack() as house:
        for _ in range(4):
            house.enter_context(admission.request("many"))
        with pytest.raises(ApiError):
            house.enter_context(admission.request("many"))
        house.enter_context(admission.request("one"))
        house.enter_context(admission.request("one"))
        with pytest.raises(ApiError):
            house.enter_context(admission.request("many"))
    assert admission.requests == 0


async def test_a_full_house_refuses(serve: Serve) -> None:
    served = await serve(limits={"max_running": 1, "max_requests": 2}, a="0-5")
    served.swarm.nodes["a"].behaviour.step_delay_s = 0.01
    running = [asyncio.create_task(served.chat(**LONG)) for _ in range(2)]
    await until(lambda: served.gateway.answering == 2 and bool(served.swarm.nodes["a"].open_sessions))
    refused = await served.chat(**LONG)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert len(served.swarm.nodes["a"].open_sessions) == 1  # the other waits for its turn
    served.gateway.drop_all()
    assert {response.status_code for response in await asyncio.gather(*running)} == {503}
    assert served.gateway.admission.running == served.gateway.admission.requests == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_frees_the_hops_at_once(serve: Serve, stream: bool) -> None:
    served = await serve(a="0-2", b="3-5")
    served.swarm.nodes["b"].behaviour.step_delay_s = 0.01
    request = asyncio.create_task(served.chat(stream=stream, **LONG))
    await until(lambda: served.swarm.open_sessions == 2 and len(served.swarm.nodes["b"].steps) > 3)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await until(lambda: served.swarm.open_sessions == 0)
    await until(lambda: served.gateway.answering == served.gateway.admission.requests == 0)


async def test_hanging_up_while_waiting_for_a_turn(serve: Serve) -> None:
    served = await serve(limits={"max_running": 1}, a="0-5")
    served.swarm.nodes["a"].behaviour.step_delay_s = 0.01
    running = asyncio.create_task(served.chat(**LONG))
    await until(lambda: served.gateway.admission.running == 1)
    waiting = asyncio.create_task(served.chat(**LONG))
    await until(lambda: served.gateway.answering == 2)
    waiting.cancel()
    await until(lambda: served.gateway.answering == 1)
    served.gateway.drop_all()
    await asyncio.gather(running, waiting, return_exceptions=True)
    assert served.gateway.admission.running == 0


async def _connect(served: Served, *, buffer: int | None = None) -> socket.socket:
    """A connection whose bytes nobody reads for us."""
    raw = socket.socket()
    raw.setblocking(False)
    if buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    await asyncio.get_running_loop().sock_connect(raw, served.address)
    return raw


async def _read_all(raw: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionResetError):
        while part := await asyncio.get_running_loop().sock_recv(raw, 65536):
            data += part
    return data


async def test_who_does_not_read_is_given_up_and_disturbs_nobody(serve: Serve) -> None:
    # Small buffers, so that an answer of the toy's context fills them.
    served = await serve(limits={"stall_s": 0.3}, send_buffer=4096, a="0-5")
    with await _connect(served, buffer=4096) as raw:
        request = _request(stream=True, max_tokens=400, logprobs=True, top_logprobs=5)
        await asyncio.get_running_loop().sock_sendall(raw, request)
        await until(lambda: served.gateway.answering == 1)
        assert (await served.chat(max_tokens=5)).status_code == 200
        await until(lambda: served.gateway.answering == 0)
        await until(lambda: served.swarm.open_sessions == 0)
        received = await _read_all(raw)
    assert b"data: " in received
    assert b"[DONE]" not in received
    await until(lambda: served.server.connections == 1)  # the one that asked beside it


@pytest.mark.slow
async def test_a_thousand_connections(serve: Serve) -> None:
    """Some ask, some only sit there: every request is answered or refused, one beside them is served."""
    served = await serve(limits={"max_running": 8, "max_requests": 40}, a="0-5")
    idle = [await _connect(served) for _ in range(500)]
    request = _request(max_tokens=2)

    async def ask() -> bytes:
        with await _connect(served) as raw:
            await asyncio.get_running_loop().sock_sendall(raw, request)
            return await _read_all(raw)

    replies = await asyncio.gather(*(ask() for _ in range(500)))
    statuses = [reply.split(b" ", 2)[1] for reply in replies]
    assert set(statuses) == {b"200", b"429"}
    assert statuses.count(b"200") >= 40
    assert served.server.connections >= 500
    assert (await served.chat(max_tokens=1)).status_code == 200
    for raw in idle:
        raw.close()
    await until(lambda: served.server.connections <= 1)
    assert served.gateway.admission.requests == 0


async def test_more_connections_than_allowed_are_told_so(serve: Serve) -> None:
    served = await serve(max_connections=5)
    held = [await _connect(served) for _ in range(5)]
    await until(lambda: served.server.connections == 5)
    with await _connect(served) as one_more:
        reply = await asyncio.get_running_loop().sock_recv(one_more, 65536)
    assert reply.startswith(b"HTTP/1.1 503 ")
    assert b"too many connections" in reply
    for raw in held:
        raw.close()
    await until(lambda: served.server.connections == 0)
    assert (await served.http.get("/health")).status_code == 200


async def test_heads_that_never_end_and_heads_that_are_too_large(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_S", 0.1)
    served = await serve()
    loop = asyncio.get_running_loop()
    for begin in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"\r\n"):
        with await _connect(served) as raw:
            await loop.sock_sendall(raw, begin)
            assert await _read_all(raw) == b""
    with await _connect(served) as raw:
        await loop.sock_sendall(raw, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000)
        assert (await loop.sock_recv(raw, 1024)).startswith(b"HTTP/1.1 431 ")
    assert (await served.http.get("/health")).status_code == 200
