"""An HTTP server: uvicorn, with what strangers may cost bounded before any request is read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self, cast

import uvicorn
from starlette.types import ASGIApp

from ...swarm.runtime.open_files import allowed_connections
from .connection import KEEP_ALIVE_S, LINGER_S, HttpConnection
from .handshakes import Handshakes
from .listening import Listener, is_local, open_host
from .tls import Tls

BACKLOG = 2048
TICK_S = 0.1
"""Seconds between two ticks, as uvicorn has them."""
REFRESH_TICKS = 600
"""A certificate's files are looked at after so many ticks, which is once a minute."""
LOOK_S = 0.005
"""At the end, seconds between two looks at whether all connections are closed."""


class _Server(uvicorn.Server):
    def __init__(self, app: ASGIApp, max_connections: int, tls: Tls | None) -> None:
        protocol = type("_Connection", (HttpConnection,), {"max_connections": max_connections})
        self._protocol = cast("type[HttpConnection]", protocol)
        self._handshakes = None if tls is None else Handshakes(tls.context, self._protocol)
        http = self._protocol if self._handshakes is None else self._handshakes
        super().__init__(_config(app, cast("type[asyncio.Protocol]", http)))
        self._tls = tls
        self._ending = asyncio.Event()
        self.ready = asyncio.Event()
        """It listens, or cannot."""

    def end(self) -> None:
        self.should_exit = True
        self._ending.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.ready.set()

    async def on_tick(self, counter: int) -> bool:
        if self._tls is not None and counter % REFRESH_TICKS == 0:
            self._tls.refresh()
        return await super().on_tick(counter)

    async def main_loop(self) -> None:
        """uvicorn's, but it notices at once that it is to end."""
        counter = 0
        while not await self.on_tick(counter):
            counter += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, without its pauses: it is over when the last answer is. What was accepted a moment ago
        is not served any more."""
        self._protocol.ending = True
        if self._handshakes is not None:
            self._handshakes.end()
        for listening in (*self.servers, *(sockets or ())):
            listening.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()

        while state.connections or state.tasks or self._handshakes:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        for server in self.servers:
            await server.wait_closed()

    def cut_off(self) -> None:
        """End every connection, whatever it still has to get."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are whose program this is."""
        yield


def _config(app: ASGIApp, http: type[asyncio.Protocol]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
    )


class HttpServer:
    """``async with`` serves ``app`` at ``listener``, which it takes over; ``url``, which a browser here can
    open, is where. ``stop`` ends it once what is being answered is complete."""

    def __init__(
        self, app: ASGIApp, listener: Listener, *, max_connections: int = 4096, tls: Tls | None = None
    ) -> None:
        self.max_connections = allowed_connections(max_connections)
        self._socket = listener
        self.is_local = is_local(listener)
        host, port = listener.getsockname()[:2]
        known = "" if tls is None else tls.name
        self.url = f"{'http' if tls is None else 'https'}://{known or open_host(host)}:{port}"
        self._server = _Server(app, self.max_connections, tls)
        self._serving: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)

    async def __aenter__(self) -> Self:
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http-server")
        await self._server.ready.wait()
        if not self._server.started:
            await self._serving  # raises why
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(drain_s=0.0)

    async def stop(self, *, drain_s: float) -> None:
        """Accept nothing new, give running requests ``drain_s`` seconds, end the rest.

        A second call may shorten the time.
        """
        self._server.end()
        dropping = asyncio.get_running_loop().call_later(drain_s, self.drop_all)
        try:
            if self._serving is not None:
                await asyncio.shield(self._serving)
        finally:
            dropping.cancel()

    def drop_all(self) -> None:
        """End what is being answered, which here ends by itself; and after LINGER_S the connection of who
        takes nothing of what was still to be sent."""
        asyncio.get_running_loop().call_later(LINGER_S, self._server.cut_off)
