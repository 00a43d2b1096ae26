"""A client's place in the network, and what it tells the swarm that it misses."""

from __future__ import annotations

from typing import Self

from ..dht.joining.client import join_as_client
from ..dht.joining.network import Network
from ..swarm.membership.entry import SwarmEntry
from .local_model import OnProgress
from .routing.demand import DemandTeller


class ClientNetwork:
    """Where to find nodes and how to reach them. ``demand`` tells the swarm what this client misses."""

    def __init__(self, joined: Network, demand: DemandTeller | None = None) -> None:
        self.joined = joined
        self.transport = joined.transport
        self.directory = joined.directory
        self.demand = demand or DemandTeller(joined.directory)

    @classmethod
    async def join(cls, entry: SwarmEntry, on_progress: OnProgress | None = None) -> Self:
        """Raises as ``join_as_client``."""
        if on_progress is not None and not (entry.initial_peers or entry.is_alone):
            on_progress("Looking for the swarm ...")
        return cls(await join_as_client(entry, on_progress))

    async def close(self) -> None:
        await self.demand.close()
        await self.joined.close()
