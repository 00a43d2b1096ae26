"""HTTP itself: heads, bodies, names, and answers that their readers really get, however they send."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import logging
import random
import re
import socket

import pytest

from swarm_node.client.http import call, connection
from swarm_node.client.http.admission import is_local
from tests.client.gateway.gateway_case import Serve, Served
from tests.doubles.fake_swarm import until

BODY = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
TOO_MUCH = 8 * 2**20


async def _exchange(served: Served, data: bytes) -> bytes:
    """All that comes back for ``data``, as a client sees it that reads only once it has sent all."""

    def exchange() -> bytes:
        with socket.create_connection(served.address, timeout=20) as raw:
            raw.sendall(data)
            received = b""
            while part := raw.recv(65536):
                received += part
            return received

    return await asyncio.to_thread(exchange)


def _statuses(received: bytes) -> list[int]:
    return [int(line.split()[1]) for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


LOCAL = (
    "localhost",
    "LOCALHOST:1",
    "localhost.:80",
    "localhost:",
    "127.0.0.1:5",
    "127.9.8.7",
    "[::1]",
    "[::1]:80",
)
FOREIGN = (
    *("", "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost:80@evil", "a@localhost"),
    *(
        "localhost:80:80",
        "localhost:x",
        "localhost:99999",
        "localhost..",
        "[::1",
        "::1",
        "[::1]x",
        "[127.0.0.1]",
    ),
    *("0.0.0.0", "[::]", "localhost,evil", "localhost evil", "localhost/..", "local host", "2130706433"),
)


def test_names_of_this_computer() -> None:
    assert [host for host in LOCAL if not is_local(host)] == []
    assert [host for host in FOREIGN if is_local(host)] == []


async def test_requests_are_told_apart_by_the_name_they_call(serve: Serve) -> None:
    served = await serve()
    for host in FOREIGN:
        assert (await served.http.get("/health", headers={"host": host})).status_code == 403, host
    for host in LOCAL:
        assert (await served.http.get("/health", headers={"host": host})).status_code == 200, host
    close = b"Connection: close\r\n\r\n"
    assert _statuses(await _exchange(served, b"GET /health HTTP/1.0\r\n\r\n")) == [200]
    assert _statuses(await _exchange(served, b"GET /health HTTP/1.0\r\nHost: evil\r\n\r\n")) == [403]
    assert _statuses(await _exchange(served, b"GET /health HTTP/1.1\r\n" + close)) == [400]
    two = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n" + close
    assert _statuses(await _exchange(served, two)) == [400]


@pytest.mark.parametrize("fill", [b"X: %s\r\n", b"X-%s: 1\r\n"])
async def test_heads_have_a_limit_whole_or_not(serve: Serve, fill: bytes) -> None:
    served = await serve()
    begin = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    large = begin + fill % (b"x" * 70_000)
    many = begin + b"".join(b"X%d: y\r\n" % number for number in range(10_000))
    body = POST + fill % (b"x" * 70_000) + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    for data in (large, large + b"\r\n", many, many + b"\r\n", body):
        received = await _exchange(served, data)
        assert _statuses(received) == [431]
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["message"].startswith(
            "the request's head"
        )
    url = b"GET /health?" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert _statuses(await _exchange(served, url)) == [431]
    fine = begin + fill % (b"x" * 60_000) + b"Connection: close\r\n\r\n"
    assert _statuses(await _exchange(served, fine)) == [200]


async def test_what_follows_a_body_has_a_limit_too(serve: Serve) -> None:
    served = await serve()
    chunked = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n%x\r\n%b\r\n" % (
        len(BODY),
        BODY,
    )
    trailer = b"X-After: 1\r\nContent-Type: text/plain\r\n\r\n"
    assert _statuses(await _exchange(served, chunked + b"0\r\n\r\n")) == [200]
    assert _statuses(await _exchange(served, chunked + b"0\r\n" + trailer)) == [200]
    with socket.create_connection(served.address) as raw:
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(raw, chunked + b"0\r\n")
        endless = (b"X: " + b"y" * 4096 + b"\r\n") * 10_000
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await loop.sock_sendall(raw, endless)


async def test_a_body_that_is_too_large_is_told_so(serve: Serve) -> None:
    served = await serve()
    large = b'{"a": "' + b"x" * TOO_MUCH + b'"}'
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large)
    for data in (
        POST + b"Content-Length: %d\r\n\r\n" % len(large) + large,
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk,
        POST.replace(b"1.1", b"1.0") + b"Content-Length: %d\r\n\r\n" % len(large) + large,
    ):
        received = await _exchange(served, data)
        assert _statuses(received) == [413]
        assert b"larger than 2097152 bytes" in received


async def test_a_body_without_an_end_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "LEFT_BYTES", 2**20)
    served = await serve()
    head = POST + b"Content-Length: %d\r\n\r\n" % 10**15
    with socket.create_connection(served.address) as raw:
        raw.setblocking(False)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await asyncio.get_running_loop().sock_sendall(raw, head + b"x" * 64 * 2**20)


async def test_who_asks_before_sending_a_body_need_not_send_it(serve: Serve) -> None:
    served = await serve()
    ask = POST + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: "
    large = await _exchange(served, ask + b"%d\r\n\r\n" % TOO_MUCH)
    assert _statuses(large) == [413]
    received = await _exchange(served, ask + b"%d\r\n\r\n" % len(BODY) + BODY)
    assert _statuses(received) == [100, 200]


async def test_an_early_answer_leaves_the_connection_usable(serve: Serve) -> None:
    served = await serve(keys=["sk-first-key"])

    def ask() -> list[int]:
        asking = http.client.HTTPConnection(*served.address, timeout=20)
        statuses = []
        for key in ("wrong", "sk-first-key"):
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
            body = b" " * 2**20 + BODY
            asking.request("POST", "/v1/chat/completions", body, headers)
            response = asking.getresponse()
            response.read()
            statuses.append(response.status)
        asking.close()
        return statuses

    assert await asyncio.to_thread(ask) == [401, 200]
    assert served.server.connections <= 1


async def test_bodies_that_are_packed_are_refused(serve: Serve) -> None:
    served = await serve()
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = await served.http.post("/v1/chat/completions", content=b"\x1f\x8b", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_encoding")
    headers["content-encoding"] = "identity"
    assert (await served.http.post("/v1/chat/completions", content=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize("cut", [0, 30, 400])
async def test_an_offer_of_another_protocol_is_not_taken_up(serve: Serve, cut: int) -> None:
    """As Java's client makes it with every request."""
    served = await serve()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    ask = POST + offer + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
    last = b"GET /health HTTP/1.0\r\nupgrade: websocket\r\nConnection: upgrade\r\n\r\n"

    def exchange() -> bytes:
        with socket.create_connection(served.address, timeout=20) as raw:
            raw.sendall(ask[:cut])
            raw.sendall(ask[cut:])
            received = raw.recv(65536)
            raw.sendall(last)
            while part := raw.recv(65536):
                received += part
            return received

    assert re.findall(rb"HTTP/1\.1 (\d+) ", await asyncio.to_thread(exchange)) == [b"200", b"200"]


async def test_what_is_no_http_is_told_so(serve: Serve) -> None:
    served = await serve()
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 300,
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
    ):
        received = await _exchange(served, data)
        assert _statuses(received) == [400]
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


async def test_alive_and_ready_are_two_things(serve: Serve) -> None:
    served = await serve(a="0-2")
    assert (await served.http.get("/health")).status_code == 200
    unready = await served.http.get("/ready")
    assert (unready.status_code, unready.json()["models_ready"]) == (503, 0)
    assert (await served.chat()).status_code == 503
    whole = await serve(a="0-5")
    ready = await whole.http.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "models_ready": 1, "models": 1})
    assert (await whole.http.head("/ready")).status_code == 200
    whole.gateway.draining = True
    assert (await whole.http.get("/ready")).status_code == 503


async def test_a_path_is_one_line_of_the_log(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = await serve()
    with caplog.at_level(logging.INFO, "swarm_node.client.http"):
        assert (await served.http.get("/x%0aINFO%20all%20is%20well%1b[0m")).status_code == 404
    (message,) = [record.getMessage() for record in caplog.records if "status=" in record.getMessage()]
    assert message.isprintable()


async def test_a_refused_connection_is_not_kept(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.05)
    served = await serve(max_connections=1)
    with (
        socket.create_connection(served.address) as first,
        socket.create_connection(served.address) as second,
    ):
        second.setblocking(False)
        loop = asyncio.get_running_loop()
        received = b""
        while part := await loop.sock_recv(second, 65536):
            received += part
        assert _statuses(received) == [503]
        await until(lambda: served.server.connections == 1)
        assert first.fileno() >= 0


@pytest.mark.parametrize("seed", range(6))
async def test_requests_in_a_row_are_answered_in_order_however_they_are_cut(serve: Serve, seed: int) -> None:
    served = await serve()
    chance = random.Random(seed)
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"z" * 30_000 + b"\r\n\r\n"
    body = json.dumps({"messages": [{"role": "user", "content": "a" * 90_000}]}).encode()  # over the context
    sized = POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    parts = [body[at : at + 977] for at in range(0, len(body), 977)] + [b""]
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    chunked += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    sent = chance.choices([(get, 200), (sized, 400), (chunked, 400)], k=6)
    data = b"".join(request for request, _ in sent) + b"GET /health HTTP/1.0\r\n\r\n"
    cuts = [0, *sorted(chance.sample(range(len(data)), 20)), len(data)]

    def exchange() -> bytes:
        with socket.create_connection(served.address, timeout=20) as raw:
            for begin, end in itertools.pairwise(cuts):
                raw.sendall(data[begin:end])
            received = b""
            while part := raw.recv(65536):
                received += part
            return received

    received = await asyncio.to_thread(exchange)
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]
    assert statuses == [*(status for _, status in sent), 200]
