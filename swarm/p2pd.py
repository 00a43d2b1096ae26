"""p2pd transport (skeleton)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import NetworkError
from .transport import DIAL_TIMEOUT, Stream, StreamHandler

if TYPE_CHECKING:
    from .identity import Identity


def listen_maddr(host: str, port: int) -> str:
    """``("127.0.0.1", 0)`` -> ``/ip4/127.0.0.1/tcp/0``. Raises UsageError."""
    raise NotImplementedError


class P2pdTransport:
    p2p: Any  # hivemind.P2P
    peer_id: str

    @classmethod
    async def create(
        cls,
        identity: Identity | None = None,
        *,
        host_maddrs: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
        initial_peers: Sequence[str] = (),
        announce_maddrs: Sequence[str] = (),
        client_mode: bool = False,
    ) -> P2pdTransport:
        """Raises UsageError, ListenError, PeerUnreachableError, NetworkError."""
        raise NotImplementedError

    async def maddrs(self) -> tuple[str, ...]:
        raise NotImplementedError

    async def serve(self, protocol_id: str, handler: StreamHandler) -> None:
        raise NotImplementedError

    async def connect(self, peer_id: str, maddrs: Sequence[str] = (), timeout: float = DIAL_TIMEOUT) -> None:
        raise NotImplementedError

    async def open_stream(
        self, peer_id: str, protocol_id: str, maddrs: Sequence[str] = (), timeout: float = DIAL_TIMEOUT
    ) -> Stream:
        raise NotImplementedError

    async def died(self) -> NetworkError:
        """Wait until the daemon ends by itself; returns the error to show. Cancel it when not needed."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError
