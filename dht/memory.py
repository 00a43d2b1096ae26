"""A directory inside one process: the real one's behaviour without a network, for tests and simulations."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from ..swarm.errors import LocalProtocolError, NetworkError
from ..swarm.placement.demand import MAX_WANTED, Wanted, WantedModel
from ..swarm.types import Incarnation, ModelRef, NodeInfo
from .directory import TTL_S
from .left_out import LeftOut
from .namesakes import Namesake


class MemoryStore:
    """What the directories of one simulated swarm share. ``ttl``: a record's life in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, ttl: float = TTL_S) -> None:
        self.clock = clock
        self.ttl = ttl
        self.down = False  # set it to simulate a directory that cannot be reached
        self.is_alone = False  # set it to simulate one whose peers reach no others
        self._records: dict[str, tuple[float, NodeInfo]] = {}  # peer id -> (expiration, record)
        self._wanted: dict[str, tuple[float, Wanted]] = {}
        self._numbers = itertools.count(1)

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

    def want(self, record: Wanted) -> None:
        self._check()
        self._wanted.pop(record.peer_id, None)
        if record.models:
            self._wanted[record.peer_id] = (self.clock() + self.ttl, record)

    def wanted(self) -> list[Wanted]:
        """Unexpired records of demand, by peer id."""
        self._check()
        now = self.clock()
        self._wanted = {peer: entry for peer, entry in self._wanted.items() if entry[0] > now}
        return [self._wanted[peer][1] for peer in sorted(self._wanted)]

    def next_name(self) -> str:
        """A peer id for a directory without one."""
        return f"memory-{next(self._numbers)}"

    def _check(self) -> None:
        if self.down:
            raise NetworkError("the directory cannot be reached")


class MemoryDirectory:
    """One participant's view of a MemoryStore. Implements Directory. ``peer_id``: whose demand it tells."""

    def __init__(self, store: MemoryStore | None = None, peer_id: str = "") -> None:
        self.store = store or MemoryStore()
        self._peer_id = peer_id or self.store.next_name()
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

        await self.want(())

    async def is_announced(self) -> bool | None:
        if self._announced is None:
            return None
        return any(info.peer_id == self._announced for info in self.store.live())

    async def want(self, models: Sequence[WantedModel]) -> None:
        if len(models) > MAX_WANTED:
            raise LocalProtocolError(f"{len(models)} models wanted at once, more than {MAX_WANTED}")
        self.store.want(Wanted(self._peer_id, tuple(models)))

    async def wanted(self) -> list[Wanted]:
        return self.store.wanted()

    async def nodes(self, model: ModelRef) -> list[NodeInfo]:
        return await self.nodes_of([model])

    async def nodes_of(self, models: Sequence[ModelRef]) -> list[NodeInfo]:
        wanted = {(model.digest, model.n_blocks) for model in models}
        return [info for info in self.store.live() if (info.model.digest, info.model.n_blocks) in wanted]

    async def models(self) -> list[ModelRef]:
        return sorted({info.model for info in self.store.live()}, key=lambda ref: (ref.name, ref.digest))

    async def all_nodes(self) -> list[NodeInfo]:
        return self.store.live()

    @property
    def incarnation(self) -> Incarnation | None:
        return None

    @property
    def namesakes(self) -> Sequence[Namesake]:
        return ()

    async def look_for_namesakes(self) -> None:
        pass

    @property
    def is_alone(self) -> bool:
        return self.store.is_alone

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        return ()

    async def close(self) -> None:
        pass
