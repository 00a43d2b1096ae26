"""A libp2p stream as our daemon hands it over: a local socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from ...errors import StreamClosedError
from ..interface import READ_SIZE, Buffer
from .maddrs import maddr_text
from .process import P2pdProcess

CLOSE_GRACE = 5.0
"""Seconds that a closed stream may take to send what is queued, if the peer has stopped reading."""
JOIN_LIMIT = 64 * 1024
"""Up to this many bytes, copying a frame's buffers into one is cheaper than a second system call."""


class P2pdStream:
    """A ``transport.Stream`` over the daemon's socket of one libp2p stream."""

    __slots__ = ("__weakref__", "_closed", "_process", "_reader", "_remote", "_writer", "peer_id")

    def __init__(
        self,
        process: P2pdProcess,
        peer_id: str,
        remote: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self.peer_id = peer_id
        self._remote = remote  # a multiaddress in binary
        self._reader = reader
        self._writer = writer
        self._closed = False

    @property
    def remote_maddr(self) -> str:
        return maddr_text(self._remote)

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        try:
            data = await self._reader.read(max_bytes)
        except OSError as error:
            raise await self._broken() from error
        if not data:
            if self._closed:
                raise self._closed_here()
            if (fault := await self._process.fault()) is not None:
                raise fault
        return data

    def write(self, buffers: Iterable[Buffer]) -> None:
        writer = self._writer
        if self._closed:
            raise self._closed_here()
        if writer.transport.is_closing():
            return  # it takes a moment to find out which side ended it: read and drain do
        buffers = list(buffers)
        if len(buffers) > 1 and sum(map(len, buffers)) <= JOIN_LIMIT:
            writer.write(b"".join(buffers))
        else:
            for buffer in buffers:
                writer.write(buffer)

    async def drain(self) -> None:
        try:
            await self._writer.drain()
        except OSError as error:
            raise await self._broken() from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        transport = self._writer.transport
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(CLOSE_GRACE, _abort, transport)
        self._writer.close()

    async def _broken(self) -> StreamClosedError:
        if self._closed:
            return self._closed_here()
        fault = await self._process.fault()
        return fault or StreamClosedError(f"peer {self.peer_id} closed the stream")

    def _closed_here(self) -> StreamClosedError:
        return StreamClosedError(f"the stream to peer {self.peer_id} was closed on this side")


def _abort(transport: asyncio.WriteTransport) -> None:
    if transport.get_write_buffer_size():  # else it is closed by now
        transport.abort()
