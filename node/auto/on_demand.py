"""The node that serves what is asked for: it takes up a model that clients miss, and changes it when unused.

Which model (``--models any|NAME,...``) is for ``swarm.placement.demand.next_model`` to say. A model that the
owner named with ``--model`` comes first: others are taken up only while the node stands by for it, and it
comes back to it when they are not used any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ...shards.checkpoint.lookup import ModelLocation
from ...swarm.errors import SwarmError
from ...swarm.faults import Faults
from ...swarm.placement.demand import UNUSED_S, Idle
from ..model_source import ModelSource
from .wanted_models import LocatedDemand, WantedModels

if TYPE_CHECKING:
    from ..node import Node

LOOK_S = 4.0
"""Seconds between looks at the demand of a node that serves nothing. Each costs some 40 questions to
directory nodes."""
SERVING_LOOK_S = 10.0
"""The same of one that serves: its model is not given up within seconds in any case."""

logger = logging.getLogger(__name__)


class OnDemand:
    """``run`` goes on until cancelled. ``home``: the model that the owner named. ``clock`` in seconds."""

    def __init__(
        self,
        host: Node,
        wanted_models: WantedModels,
        open_source: Callable[[ModelLocation], ModelSource],
        *,
        home: ModelSource | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._host = host
        self._wanted_models = wanted_models
        self._open_source = open_source
        self._home = home
        self._clock = clock
        self._sleep = sleep
        self._faults = Faults("serving on demand")
        self._wanted: LocatedDemand | None = None  # whose model this is; None: the owner's, or none
        self._changed_at = self._used_at = clock()

    async def run(self) -> None:
        """Raises SwarmError where the owner's own model cannot be served."""
        if self._home is not None:
            await self._host.take(self._home)
        else:
            self._stand_by()
        while True:
            if await self._model_failed():
                await self._give_up()
                continue
            wanted = await self._next()
            if wanted is not None:
                await self._change(wanted)
            elif self._wanted is not None and self._home is not None and self._is_over:
                await self._return_home(self._home)

    async def _model_failed(self) -> bool:
        """Wait for the next look at the demand. True if the model that was wanted cannot be served meanwhile;
        raises where it is the owner's."""
        waiting = asyncio.ensure_future(self._sleep(SERVING_LOOK_S if self._host.is_serving else LOOK_S))
        failing = asyncio.ensure_future(self._host.failed())
        try:
            await asyncio.wait((waiting, failing), return_when=asyncio.FIRST_COMPLETED)
            if not failing.done():
                return False
            failing.result()
        except SwarmError as error:
            if self._wanted is None:
                raise
            logger.warning(
                "event=wish_failed model=%r error=%r", str(self._wanted.demand.model), error.message
            )
            return True
        except Exception as fault:  # a stranger's request, and perhaps a stranger's files
            if self._wanted is None:
                raise
            self._faults.note(fault)
            return True
        finally:
            for task in (waiting, failing):
                task.cancel()
            await asyncio.gather(waiting, failing, return_exceptions=True)
        return False

    async def _next(self) -> LocatedDemand | None:
        host, now = self._host, self._clock()
        if host.is_used:
            self._used_at = now
        owners = host.is_serving and self._wanted is None
        idle = Idle(
            serving=host.model.digest if host.is_serving and host.model is not None else "",
            in_use=owners or host.is_used,
            since_change_s=now - self._changed_at,
            unused_s=now - self._used_at,
        )
        try:
            return await self._wanted_models.pick(idle)
        except SwarmError as error:
            logger.info("event=demand_unread error=%r", error.message)
        except Exception as fault:  # noqa: BLE001 - what strangers want must not end a node
            self._faults.note(fault)
        return None

    @property
    def _is_over(self) -> bool:
        return not self._host.is_serving or self._clock() - self._used_at >= UNUSED_S

    async def _change(self, wanted: LocatedDemand) -> None:
        demand = wanted.demand
        self._host.emit("wanted", wanted=str(demand.model), peers=len(demand.peers))
        await self._host.leave()
        self._wanted = wanted
        try:
            await self._host.take(self._open_source(wanted.location))
        except SwarmError as error:
            self._host.emit("wish_failed", wanted=str(demand.model), message=error.message)
            await self._give_up()
        except Exception as fault:  # noqa: BLE001 - a stranger's request, and perhaps a stranger's files
            self._faults.note(fault)
            self._host.emit("wish_failed", wanted=str(demand.model), message=f"unexpected: {fault!r:.200}")
            await self._give_up()
        self._changed_at = self._used_at = self._clock()

    async def _give_up(self) -> None:
        if self._wanted is not None:
            self._wanted_models.failed(self._wanted.demand)
        self._wanted = None
        await self._host.leave()
        if self._home is not None:
            await self._host.take(self._home)
        else:
            self._stand_by()

    async def _return_home(self, home: ModelSource) -> None:
        self._wanted = None
        await self._host.leave()
        await self._host.take(home)
        self._changed_at = self._used_at = self._clock()

    def _stand_by(self) -> None:
        self._host.emit("standing_by", why="no client wants a model that this node may load")
