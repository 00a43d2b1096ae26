"""What an idle node could load for others: models that are wanted, that its owner allows, that it can get."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...dht.directory import Directory
from ...shards.checkpoint.known_models import KnownModels
from ...shards.checkpoint.local_models import LocalModels, default_local_models
from ...shards.checkpoint.lookup import ModelLocation, or_on_hub, resolve_name
from ...swarm.errors import SwarmError
from ...swarm.faults import Faults
from ...swarm.names import ModelName, is_same_name, matching
from ...swarm.naming.witnesses import Witnesses
from ...swarm.placement.demand import Demand, Idle, next_model, tally
from ...swarm.types import NodeInfo

ANY = "any"
"""Among the allowed models, this stands for every model that is on this machine's disk, or shared by peers.
It never means the hub: a stranger's wish must not cause a download from the internet."""
BACK_OFF_S = 600.0
"""A model that could not be loaded is left alone for this many seconds."""
LISTING_S = 30.0
"""Age up to which the list of models on the disk is used again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LocatedDemand:
    """A model to load, and where it is."""

    demand: Demand
    location: ModelLocation


class WantedModels:
    """``allowed``: names of models that the owner named, or ``any`` among them. ``clock`` gives seconds.
    ``witnesses`` and ``known`` decide a name that several models have."""

    def __init__(
        self,
        directory: Directory,
        peer_id: str,
        allowed: Sequence[str],
        *,
        local_models: LocalModels | None = None,
        clock: Callable[[], float] = time.monotonic,
        witnesses: Witnesses | None = None,
        known: KnownModels | None = None,
    ) -> None:
        self._directory = directory
        self._witnesses = witnesses
        self._known = known
        self._peer_id = peer_id
        self._any = ANY in allowed
        self._allowed = [ModelName.parse(name) for name in allowed if name != ANY]
        self._local_models = local_models or default_local_models()
        self._clock = clock
        self._faults = Faults("demand")
        self._first_seen: dict[str, float] = {}
        self._failed: dict[str, float] = {}  # → until when
        self._here: list[str] = []
        self._listed_at = float("-inf")

    async def pick(self, idle: Idle) -> LocatedDemand | None:
        """What to load now; None to wait. To be asked every few seconds. Raises NetworkError."""
        demand, nodes = await self._read()
        if self._clock() - self._listed_at >= LISTING_S:
            self._here = [model.name for model in await asyncio.to_thread(self._local_models.models)]
            self._listed_at = self._clock()
        sharing = {node.model.digest for node in nodes if node.shares_weights and node.weights_root}
        chosen = next_model(demand, lambda each: self._can_get(each, sharing), idle, peer_id=self._peer_id)
        if chosen is None:
            return None
        try:
            return LocatedDemand(chosen, await self._locate(chosen))
        except SwarmError as error:
            logger.info("event=wish_failed model=%r error=%r", str(chosen.model), error.message)
            self.failed(chosen)
            return None

    def failed(self, demand: Demand) -> None:
        """It could not be loaded: leave it alone for a time."""
        self._failed[demand.key] = self._clock() + BACK_OFF_S

    async def _read(self) -> tuple[list[Demand], list[NodeInfo]]:
        """The demand, each with how long it was seen here."""
        records = await self._directory.wanted()
        nodes = await self._directory.all_nodes() if records else []
        now = self._clock()
        demand = self._faults.without_culprits(
            lambda some: tally(some, nodes), records, lambda record: record.peer_id
        )
        self._first_seen = {each.key: self._first_seen.get(each.key, now) for each in demand}
        self._failed = {key: until for key, until in self._failed.items() if until > now}
        return [replace(each, seen_s=now - self._first_seen[each.key]) for each in demand], nodes

    def _can_get(self, demand: Demand, sharing: set[str]) -> bool:
        if demand.key in self._failed:
            return False
        named = self._named(demand)
        if named is None and not self._any:
            return False
        if matching(demand.model.name, self._here) or demand.model.digest in sharing:
            return True
        return named is not None and "/" in named.name

    def _named(self, demand: Demand) -> ModelName | None:
        """The owner's name for a model that is wanted. Either of the two may say more than the other."""
        wanted = demand.model.name
        for name in self._allowed:
            is_it = is_same_name(wanted, name.name) or is_same_name(name.name, wanted)
            if is_it and name.fits(demand.model.digest):
                return name
        return None

    async def _locate(self, demand: Demand) -> ModelLocation:
        named, model = self._named(demand), demand.model
        try:
            place = await resolve_name(
                ModelName(model.name, model.digest),
                self._directory,
                self._local_models,
                hub=False,
                witnesses=self._witnesses,
                known=self._known,
            )
            return await or_on_hub(place, self._directory, [] if named is None else [named.name])
        except SwarmError:
            if named is None:
                raise
            return await resolve_name(named, None, self._local_models, known=self._known)
