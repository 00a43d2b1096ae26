"""The beginning of connections by TLS: who never ends one holds it for a short time, beside few others.

asyncio's server waits a minute for each, and nobody counts them: those that hold open files and memory.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from ...swarm.fairness.owner_lru import OwnerLru
from ...swarm.fairness.shares import Holder
from ...swarm.runtime.open_files import RESERVED
from .connection import HttpConnection
from .endpoint import group_of_client

HANDSHAKE_S = 10.0
MOST_HANDSHAKES = RESERVED // 2
"""At once. One more ends the oldest of the address group that has most: those of honest clients take a few
round trips, and who opens many ends only its own."""


class Handshakes:
    """What makes protocols of a server's connections: of each comes one of ``http`` once it is encrypted."""

    def __init__(self, context: ssl.SSLContext, http: Callable[..., HttpConnection]) -> None:
        self._context = context
        self._http = http
        self._open: dict[_Handshake, asyncio.Transport] = {}
        self._kept: OwnerLru[_Handshake] = OwnerLru()  # the same

    def __len__(self) -> int:
        return len(self._open)

    def __call__(self, **options: Any) -> asyncio.Protocol:
        return _Handshake(self, self._http(**options))

    def end(self) -> None:
        """Of those that are under way, none goes on."""
        for raw in self._open.values():
            raw.abort()

    def begin(self, handshake: _Handshake, raw: asyncio.Transport) -> None:
        """Hundreds may be accepted at once: those that end here have cost no encryption yet."""
        self._open[handshake] = raw
        self._kept.add(Holder("", handshake.group), handshake, 1)
        if len(self) > MOST_HANDSHAKES:
            self._open.pop(self._kept.pop()).abort()

    async def shake(self, handshake: _Handshake, raw: asyncio.Transport) -> asyncio.Transport | None:
        """None where the other end left, was too slow, or speaks something else."""
        try:
            if raw.is_closing():
                return None
            return await asyncio.get_running_loop().start_tls(
                raw, handshake, self._context, server_side=True, ssl_handshake_timeout=HANDSHAKE_S
            )
        except OSError:
            return None
        finally:
            if self._open.pop(handshake, None) is not None:
                self._kept.remove(handshake)


class _Handshake(asyncio.Protocol):
    """Keeps what comes before ``http`` has the connection: a request may follow the handshake at once.
    ``group``: of the other end's address."""

    group = ""

    def __init__(self, handshakes: Handshakes, http: HttpConnection) -> None:
        self._handshakes = handshakes
        self._http = http
        self._early = bytearray()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.group = group_of_client(transport.get_extra_info("peername"))
        self._handshakes.begin(self, transport)
        self._task = asyncio.create_task(self._hand_over(transport), name="tls-handshake")

    def data_received(self, data: bytes) -> None:
        self._early += data

    async def _hand_over(self, raw: asyncio.Transport) -> None:
        transport = await self._handshakes.shake(self, raw)
        if transport is None or transport.is_closing():
            raw.abort()
            return
        transport.set_protocol(self._http)
        self._http.raw = raw
        self._http.connection_made(transport)
        if self._early:
            self._http.data_received(bytes(self._early))
