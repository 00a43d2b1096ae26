"""Connections that begin by TLS and never end their handshake."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from swarm_node.client.http import handshakes
from swarm_node.client.http.endpoint import Endpoint
from swarm_node.client.http.listening import listen
from swarm_node.client.http.server import HttpServer
from swarm_node.client.http.tls import Tls

from .test_tls import hello, write_certificate

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def test_the_oldest_unfinished_handshake_ends_and_who_shakes_hands_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshakes, "MOST_HANDSHAKES", 4)
    certificate, key = write_certificate(tmp_path, "localhost")
    context = ssl.create_default_context(cafile=str(certificate))
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with HttpServer(Endpoint("GET", hello, 5.0, False), listener, tls=Tls(certificate, key)):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
        for reader, _ in silent[:2]:
            assert await reader.read() == b"", "it is closed"
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        writer.write(REQUEST)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        for _, each in (*silent, (reader, writer)):
            each.close()


async def test_who_opens_many_ends_only_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "MOST_HANDSHAKES", 4)
    monkeypatch.setattr(handshakes, "group_of_client", lambda client: client[0])
    certificate, key = write_certificate(tmp_path, "localhost")
    context = ssl.create_default_context(cafile=str(certificate))
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    async with HttpServer(Endpoint("GET", hello, 5.0, False), listener, tls=Tls(certificate, key)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.9", 0))
        many = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
        for other, _ in many[:9]:
            assert await other.read() == b"", "it is closed"
        await writer.start_tls(context, server_hostname="localhost")
        writer.write(REQUEST)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        for _, each in (*many, (reader, writer)):
            each.close()


async def test_a_handshake_has_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "HANDSHAKE_S", 0.05)
    listener = listen("127.0.0.1", 0)
    tls = Tls(*write_certificate(tmp_path, "localhost"))
    async with HttpServer(Endpoint("GET", hello, 5.0, False), listener, tls=tls):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        assert await reader.read() == b"", "it is closed"
        writer.close()


async def test_a_request_may_follow_the_handshake_at_once(tmp_path: Path) -> None:
    """In the same packet: what ends the handshake and what is asked."""
    certificate, key = write_certificate(tmp_path, "localhost")
    context = ssl.create_default_context(cafile=str(certificate))
    listener = listen("127.0.0.1", 0)
    async with HttpServer(Endpoint("GET", hello, 5.0, False), listener, tls=Tls(certificate, key)):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(received, sent, server_hostname="localhost")
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(sent.read())
                received.write(await reader.read(65536))
        client.write(REQUEST)
        writer.write(sent.read())
        answer = b""
        while not answer:
            received.write(await reader.read(65536))
            try:
                answer = client.read(65536)
            except ssl.SSLWantReadError:
                pass
        assert answer.startswith(b"HTTP/1.1 200 OK")
        writer.close()
