"""Streams that this process dials itself, and a daemon for the peers that it cannot dial: it is started when
the first such peer is needed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ...errors import (
    NetworkError,
    NotSpokenError,
    PeerTimeoutError,
    PeerUnreachableError,
    StreamClosedError,
)
from ...runtime.tasks import cancel_all, look_at
from ...types import short_peer_id
from ..interface import DIAL_TIMEOUT, Stream, StreamHandler, Transport
from .addresses import by_others_alone

logger = logging.getLogger(__name__)

STARTING_P2PD = "Starting p2pd: "
"""How the line for people begins when a daemon is started; why follows."""

DaemonT = TypeVar("DaemonT", bound=Transport)


class LazyDaemonTransport(Generic[DaemonT]):
    """Implements Transport for a peer that listens nowhere. ``start`` starts the daemon; ``on_start`` is told
    why, in one line for people, before it does."""

    def __init__(
        self, direct: Transport, start: Callable[[], Awaitable[DaemonT]], on_start: Callable[[str], None]
    ) -> None:
        self._direct = direct
        self._start = start
        self._on_start = on_start
        self._starting: asyncio.Task[DaemonT] | None = None
        self._closed = False

    @property
    def peer_id(self) -> str:
        return self._direct.peer_id

    async def maddrs(self) -> tuple[str, ...]:
        return await self._direct.maddrs()

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        """Serves the peers that we have dialled ourselves."""
        await self._direct.serve(protocol_id, handler)

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = DIAL_TIMEOUT,
        *,
        lazy: bool = False,
    ) -> Stream:
        """As Transport's. Starting the daemon does not count in ``timeout``."""
        others = by_others_alone(peer_id, maddrs)
        if not others:
            return await self._direct.open_stream(peer_id, protocol_id, maddrs, timeout, lazy=lazy)
        dialled: NetworkError | None = None
        if len(others) < len(set(maddrs)):
            try:
                return await self._direct.open_stream(peer_id, protocol_id, maddrs, timeout / 2, lazy=lazy)
            except NotSpokenError:
                raise
            except (PeerUnreachableError, PeerTimeoutError) as error:
                dialled = error
        try:
            daemon = await self.daemon(f"peer {short_peer_id(peer_id)} cannot be dialled over plain TCP")
        except NetworkError as error:
            raise dialled or error from None
        return await daemon.open_stream(
            peer_id, protocol_id, maddrs, timeout if dialled is None else timeout / 2, lazy=lazy
        )

    async def daemon(self, why: str) -> DaemonT:
        """The daemon, which is started if it is not there. ``why``: what it is needed for. Raises
        NetworkError."""
        if self._closed:
            await self._direct.check()
        starting = self._starting
        if starting is None or (starting.done() and starting.exception() is not None):
            logger.info("event=daemon_started reason=%r", why)
            self._on_start(f"{STARTING_P2PD}{why}")
            starting = self._starting = asyncio.create_task(self._begin(), name="p2pd")
            starting.add_done_callback(look_at)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            if self._closed:
                raise StreamClosedError("the transport is closed") from None
            raise

    async def _begin(self) -> DaemonT:
        return await self._start()

    async def check(self, remote_maddr: str = "") -> None:
        await self._direct.check()
        if (daemon := self._running) is not None:
            await daemon.check()

    async def close(self) -> None:
        self._closed = True
        await self._direct.close()
        if (daemon := self._running) is not None:
            await daemon.close()
        elif self._starting is not None:
            await cancel_all([self._starting])

    @property
    def _running(self) -> DaemonT | None:
        task = self._starting
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()
