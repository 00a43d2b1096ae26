"""A node's place in the network: one p2pd with the directory over it, opened and closed together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from ..dht.directory import Directory
from ..swarm.identity import Identity
from ..swarm.transport import Transport


class Network(Protocol):
    @property
    def transport(self) -> Transport: ...

    @property
    def directory(self) -> Directory: ...

    async def failed(self) -> None:
        """Waits until the network is lost, then raises the NetworkError to show."""

    async def close(self) -> None:
        """May be called again."""


class GivenNetwork:
    """A transport and a directory that exist already, such as the in-memory ones of tests."""

    def __init__(self, transport: Transport, directory: Directory) -> None:
        self._transport = transport
        self._directory = directory

    @property
    def transport(self) -> Transport:
        return self._transport

    @property
    def directory(self) -> Directory:
        return self._directory

    async def failed(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        await self._directory.close()
        await self._transport.close()


async def open_network(
    identity: Identity,
    *,
    host: str,
    port: int,
    announce_maddrs: Sequence[str] = (),
    initial_peers: Sequence[str] = (),
    client_mode: bool = False,
) -> Network:
    """Start a p2pd that listens on TCP ``host:port`` and join the DHT through ``initial_peers``.

    ``client_mode``: do not listen, and hold no records for others; for those who only read.

    Raises ListenError (port in use), PeerUnreachableError, UsageError and other NetworkErrors.
    """
    # hivemind costs a second and 280 MB at import: not for those who bring a network of their own.
    from ..dht.hivemind_directory import HivemindDirectory
    from ..swarm.addresses import listen_maddr
    from ..swarm.p2pd import P2pdTransport

    class P2pdNetwork(GivenNetwork):
        async def failed(self) -> None:
            raise await transport.died()

    transport = await P2pdTransport.create(
        identity,
        host_maddrs=(listen_maddr(host, port),),
        initial_peers=initial_peers,
        announce_maddrs=announce_maddrs,
        client_mode=client_mode,
    )
    try:
        directory = await HivemindDirectory.create(
            transport, identity, initial_peers, client_mode=client_mode
        )
    except BaseException:
        await transport.close()
        raise
    return P2pdNetwork(transport, directory)
