"""A node's place in the network: one p2pd with the directory over it, opened and closed together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from ..dht.directory import Directory
from ..swarm.identity import Identity
from ..swarm.lazy_scipy import make_lazy
from ..swarm.transport import NetworkChange, NetworkLost, NetworkRestored, NetworkWatcher, Transport


class Network(Protocol):
    @property
    def transport(self) -> Transport: ...

    @property
    def directory(self) -> Directory: ...

    def watch(self, watcher: NetworkWatcher) -> None:
        """Tell ``watcher`` when the network is lost for a time, and when it is back, the directory too."""

    async def failed(self) -> None:
        """Waits until the network is lost for good, then raises the NetworkError to show."""

    async def close(self) -> None:
        """May be called again."""


def network_event(change: NetworkChange) -> tuple[str, dict[str, object]]:
    """Name and details of the NodeEvent for it."""
    match change:
        case NetworkLost(message):
            return "network_lost", {"message": message}
        case NetworkRestored(seconds):
            return "network_restored", {"seconds": round(seconds, 3)}


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

    def watch(self, watcher: NetworkWatcher) -> None:
        """Nothing here comes and goes."""

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
    relays: Sequence[str] = (),
    is_relay: bool = False,
) -> Network:
    """Start a p2pd that listens on TCP ``host:port`` and join the DHT through ``initial_peers``.

    ``client_mode``: do not listen, and hold no records for others; for those who only read. ``relays``: peers
    through which others reach us, whom they cannot dial; ``is_relay``: be one for others. Both are tried
    before this returns.

    Raises ListenError (port in use), PeerUnreachableError, UsageError and other NetworkErrors.
    """
    # hivemind and torch cost a second and 240 MB at import: not for those who bring a network of their own.
    make_lazy()
    from ..dht.hivemind_directory import HivemindDirectory
    from ..swarm.addresses import listen_maddr
    from ..swarm.p2pd import P2pdTransport
    from ..swarm.p2pd_relay_check import check_reachable, check_relaying, make_relay

    class P2pdNetwork(GivenNetwork):
        def watch(self, watcher: NetworkWatcher) -> None:
            transport.watch(watcher)

        async def failed(self) -> None:
            raise await transport.died()

    transport = await P2pdTransport.create(
        identity,
        host_maddrs=(listen_maddr(host, port),),
        initial_peers=initial_peers,
        announce_maddrs=announce_maddrs,
        client_mode=client_mode,
        relays=relays,
        is_relay=is_relay,
    )
    try:
        if relays:
            await check_relaying(relays)
            await check_reachable(transport.peer_id, relays)
        if is_relay:
            await make_relay(transport)
        directory = await HivemindDirectory.create(
            transport, identity, initial_peers, client_mode=client_mode
        )
    except BaseException:
        await transport.close()
        raise
    return P2pdNetwork(transport, directory)
