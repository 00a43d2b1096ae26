"""What the rest of the project needs from a network: peers by id, streams of bytes between them.

Implementations map every foreign error to ``errors``: NetworkError's subclasses are all a caller sees.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

Buffer = bytes | bytearray | memoryview

READ_SIZE = 256 * 1024
"""One read asks for this many bytes."""

DIAL_TIMEOUT = 10.0
"""Seconds to connect to a peer and open a stream, by default."""


@dataclass(frozen=True, slots=True)
class NetworkLost:
    """Our own network is gone, with every stream; it is being restored. ``message`` says why."""

    message: str


@dataclass(frozen=True, slots=True)
class NetworkRestored:
    """It is back after ``seconds``, under the same peer id, and serves the same protocols."""

    seconds: float


NetworkChange = NetworkLost | NetworkRestored
NetworkWatcher = Callable[[NetworkChange], Awaitable[None]]


class Stream(Protocol):
    """A reliable, ordered, two-way stream of bytes to one authenticated peer. There is no half-close."""

    @property
    def peer_id(self) -> str:
        """The other side's libp2p id (base58), proven by the transport's handshake."""

    @property
    def remote_maddr(self) -> str:
        """Where its connection comes from or goes to, such as ``/ip4/192.0.2.1/tcp/4001``; "" if unknown."""

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        """The next 1..max_bytes bytes; b"" once the peer has closed.

        Raises StreamClosedError if it was closed here, LocalNetworkError if our own network was lost.
        """

    def write(self, buffers: Iterable[Buffer]) -> None:
        """Queue the buffers, in order and together. Never blocks; ``drain`` is where to wait.

        The stream may keep a buffer until it is sent: do not change it afterwards.
        Raises StreamClosedError if it was closed here, and may where the peer ended it; else ``drain`` and
        ``read`` say so.
        """

    async def drain(self) -> None:
        """Wait until the queue is short. Raises as ``read``, or StreamClosedError if the peer closed."""

    def close(self) -> None:
        """End the stream for both sides. Idempotent."""


StreamHandler = Callable[[Stream], Awaitable[None]]
"""Serves one inbound stream, which is closed when the handler returns or raises."""


class Transport(Protocol):
    @property
    def peer_id(self) -> str:
        """Our own id (base58)."""

    async def maddrs(self) -> tuple[str, ...]:
        """Multiaddresses, each ending in /p2p/<peer_id>, under which others can dial us."""

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        """Call ``handler`` for each stream that a peer opens for this protocol; returns at once."""

    async def open_stream(
        self,
        peer_id: str,
        protocol_id: str,
        maddrs: Sequence[str] = (),
        timeout: float = DIAL_TIMEOUT,
        *,
        lazy: bool = False,
    ) -> Stream:
        """Dial a peer. ``maddrs`` may be empty when it is connected already or the network can find it.

        ``lazy``: it may return before the peer has agreed to the protocol, so that what is written next
        needs no further round trip; then ``read`` raises what this would have.
        While our own network is lost it waits for it, as long as ``timeout`` allows.
        Raises PeerUnreachableError, PeerTimeoutError, LocalNetworkError, or StreamClosedError when this
        transport is closed.
        """

    async def check(self, remote_maddr: str = "") -> None:
        """Raises LocalNetworkError if our own end does not answer. Call it before a silent peer is blamed,
        with the ``remote_maddr`` of the stream on which it is silent; "": there is none."""

    async def close(self) -> None:
        """Close every stream, stop the handlers, free the port. Idempotent."""
