"""A directory inside one process: the real one's behaviour without a network, for tests and simulations."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..swarm.errors import NetworkError
from ..swarm.types import ModelRef, NodeInfo
from .directory import TTL_S


class MemoryStore:
    """What the directories of one simulated swarm share. ``ttl``: a record's life in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, ttl: float = TTL_S) -> None:
        self.clock = clock
        self.ttl = ttl
        self.down = False  # set it to simulate a directory that nobody can reach
        self._records: dict[str, tuple[float, NodeInfo]] = {}  # peer id -> (expiration, record)

    def put(self, info: NodeInfo) -> None:
        self._check()
        self._records[info.peer_id] = (self.clock() + self.ttl, info)

    def remove(self, peer_id: str) -> None:
        self._check()
        self._records.pop(peer_id, None)

    def live(self) -> list[NodeInfo]:
        """Unexpired records, ordered by first block, then peer id."""
        self._check()
        now = self.clock()
        self._records = {peer: entry for peer, entry in self._records.items() if entry[0] > now}
        return sorted(
            (info for _, info in self._records.values()), key=lambda info: (info.span, info.peer_id)
        )

    def _check(self) -> None:
        if self.down:
            raise NetworkError("the directory cannot be reached")


class MemoryDirectory:
    """One participant's view of a MemoryStore. Implements Directory."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self._announced: str | None = None  # our peer id, once announced

    async def announce(self, info: NodeInfo) -> None:
        if self._announced not in (None, info.peer_id):
            await self.withdraw()
        self.store.put(info)
        self._announced = info.peer_id

    async def withdraw(self) -> None:
        if self._announced is not None:
            self.store.remove(self._announced)
            self._announced = None

    async def nodes(self, model: ModelRef) -> list[NodeInfo]:
        return [
            info
            for info in self.store.live()
            if (info.model.digest, info.model.n_blocks) == (model.digest, model.n_blocks)
        ]

    async def models(self) -> list[ModelRef]:
        return sorted({info.model for info in self.store.live()}, key=lambda ref: (ref.name, ref.digest))

    async def all_nodes(self) -> list[NodeInfo]:
        return self.store.live()

    async def close(self) -> None:
        pass
