"""A client's place in the network: a p2pd that does not listen, and the directory over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..dht.directory import Directory
from ..swarm.errors import UsageError
from ..swarm.lazy_scipy import make_lazy
from ..swarm.transport import Transport


@dataclass(frozen=True, slots=True)
class ClientNetwork:
    """Where to find nodes and how to reach them; the in-memory ones of tests, too."""

    transport: Transport
    directory: Directory

    async def close(self) -> None:
        await self.directory.close()
        await self.transport.close()


async def open_network(initial_peers: Sequence[str]) -> ClientNetwork:
    """Join the swarm that ``initial_peers`` belong to, under an identity of this session only.

    Raises UsageError, PeerUnreachableError and other NetworkErrors.
    """
    if isinstance(initial_peers, str):
        initial_peers = [initial_peers]
    if not initial_peers:
        raise UsageError(
            "there are no initial peers to ask for the swarm",
            hint="Give the addresses that swarm-node bootstrap or serve prints.",
        )
    # hivemind and torch cost a second and 240 MB at import: only those who dial a swarm pay that.
    make_lazy()
    from ..dht.hivemind_directory import HivemindDirectory
    from ..swarm.identity import Identity
    from ..swarm.p2pd import P2pdTransport

    identity = Identity.generate()
    transport = await P2pdTransport.create(identity, initial_peers=initial_peers, client_mode=True)
    try:
        directory = await HivemindDirectory.create(transport, identity, initial_peers, client_mode=True)
    except BaseException:
        await transport.close()
        raise
    return ClientNetwork(transport, directory)
