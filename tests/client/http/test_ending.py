"""The end of an HTTP server, with connections whose other end does nothing more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swarm_node.client.http import connection, server
from swarm_node.client.http.call import HttpCall
from swarm_node.client.http.endpoint import Endpoint
from swarm_node.client.http.listening import listen
from swarm_node.client.http.server import HttpServer
from swarm_node.client.http.tls import Tls

from .test_tls import hello, write_certificate

MUCH = "x" * 6_000_000
"""More than the buffers of a connection take."""
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.05)
    monkeypatch.setattr(server, "LINGER_S", 0.05)


@contextlib.asynccontextmanager
async def unread() -> AsyncIterator[HttpServer]:
    """A server that has given all of an answer, and whose client takes nothing of it."""
    given = asyncio.Event()

    async def much(call: HttpCall) -> None:
        await call.reply(MUCH)
        given.set()

    listener = listen("127.0.0.1", 0)
    async with HttpServer(Endpoint("GET", much, 60.0, False), listener) as served:
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2], limit=1024)
        assert isinstance(writer.transport, asyncio.ReadTransport)
        writer.transport.pause_reading()
        writer.write(REQUEST)
        try:
            await given.wait()
            yield served
        finally:
            writer.transport.abort()


async def test_who_takes_nothing_of_a_complete_answer_does_not_hold_the_end_up() -> None:
    """The server waited for as long as the connection was open."""
    async with unread() as served:
        async with asyncio.timeout(10):
            await served.stop(drain_s=0.05)
        assert not served.connections


async def test_a_second_stop_cuts_off_who_the_first_would_wait_for() -> None:
    async with unread() as served:
        first = asyncio.create_task(served.stop(drain_s=600))
        await asyncio.sleep(0.2)
        assert not first.done(), "who reads slowly has this time"
        async with asyncio.timeout(10):
            await served.stop(drain_s=0)
            await first


async def test_an_encrypted_connection_that_nobody_looks_at_is_not_waited_for(tmp_path: Path) -> None:
    """Programs keep connections for later, and do not read from them until then: over TLS each end waits for
    the other's goodbye, which asyncio does for half a minute."""
    certificate, key = write_certificate(tmp_path, "localhost")
    context = ssl.create_default_context(cafile=str(certificate))
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]

    def ask() -> ssl.SSLSocket:
        kept = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
        kept.sendall(REQUEST)
        assert kept.recv(4096)
        return kept

    endpoint = Endpoint("GET", hello, 5.0, False)
    async with HttpServer(endpoint, listener, tls=Tls(certificate, key)) as served:
        kept = await asyncio.to_thread(ask)
        try:
            async with asyncio.timeout(10):
                await served.stop(drain_s=600)
        finally:
            kept.close()


async def test_a_handshake_that_has_begun_does_not_go_on_behind_the_end(tmp_path: Path) -> None:
    """It was not counted among the connections: who ended it later was answered by a server that was gone."""
    certificate, key = write_certificate(tmp_path, "localhost")
    context = ssl.create_default_context(cafile=str(certificate))
    listener = listen("127.0.0.1", 0)
    endpoint = Endpoint("GET", hello, 5.0, False)
    async with HttpServer(endpoint, listener, tls=Tls(certificate, key)) as served:
        _, writer = await asyncio.open_connection(*listener.getsockname())
        await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            await served.stop(drain_s=600)
            with pytest.raises(OSError):
                await writer.start_tls(context, server_hostname="localhost")


@pytest.mark.parametrize("turns", range(4))
async def test_who_was_accepted_at_the_last_moment_is_not_served(turns: int) -> None:
    """Such a connection was not among those that were told of the end. ``turns`` of the event loop after it
    has come, it may be accepted, and have a protocol, or not."""
    listener = listen("127.0.0.1", 0)
    async with HttpServer(Endpoint("GET", hello, 5.0, False), listener) as served:
        with socket.create_connection(listener.getsockname()[:2]) as late:
            late.sendall(REQUEST)
            for _ in range(turns):
                await asyncio.sleep(0)
            await served.stop(drain_s=600)
            assert not served.connections
            late.setblocking(False)
            await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionResetError, BlockingIOError):
                assert not late.recv(4096)
