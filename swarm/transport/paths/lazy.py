"""A transport that is started when it is first needed, such as a daemon for the peers that only it
reaches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ...errors import LocalNetworkError, PeerTimeoutError, StreamClosedError
from ...runtime.tasks import cancel_all, look_at
from ..interface import DIAL_TIMEOUT, Stream, StreamHandler, Transport


class LazyTransport:
    """``start`` makes the transport of the peer ``peer_id``. Implements Transport. A start that failed is
    tried again by the next stream."""

    def __init__(self, peer_id: str, start: Callable[[], Awaitable[Transport]]) -> None:
        self.peer_id = peer_id
        self._start = start
        self._starting: asyncio.Task[Transport] | None = None
        self._handlers: dict[str, StreamHandler] = {}
        self._closed = False

    @property
    def started(self) -> Transport | None:
        task = self._starting
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    async def maddrs(self) -> tuple[str, ...]:
        """None before it has started."""
        return () if self.started is None else await self.started.maddrs()

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        self._handlers[protocol_id] = handler
        if self.started is not None:
            await self.started.serve(protocol_id, handler)

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = DIAL_TIMEOUT,
        *,
        lazy: bool = False,
    ) -> Stream:
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout):
                transport = await asyncio.shield(self._started())
        except TimeoutError:
            raise PeerTimeoutError(f"peer {peer_id} did not answer within {timeout:g} s") from None
        except asyncio.CancelledError:
            if self._closed:
                raise StreamClosedError("the transport is closed") from None
            raise
        left = timeout - (asyncio.get_running_loop().time() - began)
        return await transport.open_stream(peer_id, protocol_id, maddrs, left, lazy=lazy)

    async def check(self, remote_maddr: str = "") -> None:
        if self._starting is not None and self.started is None:
            raise LocalNetworkError("what leads to some peers is being started")
        if self.started is not None:
            await self.started.check(remote_maddr)

    async def close(self) -> None:
        self._closed = True
        started = self.started
        if started is not None:
            await started.close()
        elif self._starting is not None:
            await cancel_all([self._starting])

    def _started(self) -> asyncio.Task[Transport]:
        if self._closed:
            raise StreamClosedError("the transport is closed")
        if self._starting is None or (self._starting.done() and self.started is None):
            self._starting = asyncio.create_task(self._make())
            self._starting.add_done_callback(look_at)
        return self._starting

    async def _make(self) -> Transport:
        transport = await self._start()
        try:
            for protocol_id, handler in self._handlers.items():
                await transport.serve(protocol_id, handler)
        except BaseException:
            await transport.close()
            raise
        return transport
